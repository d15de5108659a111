"""Datasets from files: what is listed, decoded, held in memory or streamed, and in which batches."""

import itertools
import os
import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from torchvision.transforms import v2

from daft.common.errors import ConfigError, UserError
from daft.config.check import validate
from daft.config.compose import configuration
from daft.config.operations import (
    CenterCrop,
    Flip,
    Grayscale,
    Operation,
    RandomCrop,
    RandomResizedCrop,
    Resize,
)
from daft.config.schema import Config, DatasetConfig, SplitConfig
from daft.data import datasets
from daft.data.images import ImageStore, Resident, Streamed, read_image
from daft.data.labelled import Labelled
from daft.data.loader import Loader, batch_boundaries

CONF = Path(__file__).resolve().parents[2] / "conf"
CPU = torch.device("cpu")

Configure = Callable[..., Config]
LoadTraining = Callable[..., Loader]


def paint(path: Path, size: tuple[int, int] = (20, 16), seed: int = 0, **options: Any) -> Path:
    """An image file of noise; size is width and height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(256, size=(size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def paint_folder(folder: Path, counts: dict[str, int], **options: Any) -> Path:
    """`counts` images per class, every one different, and other ones in a folder of another name."""
    seeds = itertools.count(1000 * zlib.crc32(folder.name.encode()))
    for label, count in counts.items():
        for i in range(count):
            paint(folder / label / f"{i:03}.png", seed=next(seeds), **options)
    return folder


def dataset(root: Path, **changes: Any) -> DatasetConfig:
    """Folders train and test below the root, no transforms."""
    settings: dict[str, Any] = {
        "name": "files",
        "source": "folder",
        "root": str(root),
        "train": SplitConfig(path="train"),
        "id": SplitConfig(path="test"),
        "ood": {},
        "train_transform": [],
        "eval_transform": [],
        "epochs": 1,
    }
    return DatasetConfig(**settings | changes)


@pytest.fixture(scope="module")
def defaults() -> Config:
    with hydra.initialize_config_dir(str(CONF), version_base=None):
        return validate(hydra.compose("train"))


@pytest.fixture
def configure(defaults: Config, tmp_path: Path):
    def configured(
        cfg: DatasetConfig, selection: str = "paper", batch_size: int = 4, **compute: Any
    ) -> Config:
        paths = replace(defaults.paths, cache=str(tmp_path / "cache"))
        training = replace(defaults.training, selection=selection, batch_size=batch_size)
        compute = {"workers": 0} | compute
        return replace(
            defaults,
            dataset=cfg,
            paths=paths,
            training=training,
            compute=replace(defaults.compute, **compute),
        )

    return configured


def names(labelled: Labelled) -> list[str]:
    assert isinstance(labelled.images, list)
    return [f"{path.parent.name}/{path.name}" for path in labelled.images]


def split_of(root: Path, path: str = ".", classes: Sequence[str] | None = None) -> Labelled:
    cfg = dataset(root, train=SplitConfig(path=path), classes=classes)
    return datasets.read_split(cfg, cfg.train, "train", datasets.class_names(cfg))


def numbered(counts: Sequence[int]) -> Labelled:
    """Images that are their own index, so many per class."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return Labelled(torch.arange(sum(counts)).view(-1, 1, 1, 1).expand(-1, 3, 1, 1), labels, "numbered")


def indices(labelled: Labelled) -> list[int]:
    assert isinstance(labelled.images, Tensor)
    return labelled.images[:, 0, 0, 0].tolist()


# --- listing ---------------------------------------------------------------------------------------


def test_a_folder_lists_nested_and_upper_case_files_by_class_then_path(tmp_path: Path) -> None:
    for file in ("dog/b.PNG", "dog/a.jpeg", "cat/2/x.JPG", "cat/10/y.webp", "cat/z.bmp"):
        paint(tmp_path / file)
    found = split_of(tmp_path)
    assert isinstance(found.images, list)
    relative = [path.relative_to(tmp_path).as_posix() for path in found.images]
    assert relative == ["cat/10/y.webp", "cat/2/x.JPG", "cat/z.bmp", "dog/a.jpeg", "dog/b.PNG"]
    assert found.labels.tolist() == [0, 0, 0, 1, 1]


def test_hidden_and_foreign_files_are_ignored(tmp_path: Path) -> None:
    paint_folder(tmp_path, {"cat": 1, "dog": 1})
    for hidden in ("cat/.000.png", "cat/.ipynb_checkpoints/000-checkpoint.png", ".trash/a.png"):
        paint(tmp_path / hidden)
    paint(tmp_path / "stray.png")
    for foreign in ("cat/notes.txt", "dog/Thumbs.db", "dog/paper.pdf", "dog/noextension"):
        (tmp_path / foreign).write_text("no image")
    assert names(split_of(tmp_path)) == ["cat/000.png", "dog/000.png"]


def test_a_dangling_link_is_named_not_skipped(tmp_path: Path) -> None:
    paint_folder(tmp_path, {"cat": 1, "dog": 1})
    (tmp_path / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(UserError, match=r"dataset\.train: 1 of the 3 file.* do not exist: .*gone\.png"):
        split_of(tmp_path)


def test_a_csv_lists_paths_relative_to_itself(tmp_path: Path) -> None:
    paint_folder(tmp_path / "images", {"x": 3})
    absolute = paint(tmp_path / "elsewhere.png")
    lists = tmp_path / "lists"
    lists.mkdir()
    rows = ["note,label,path", "n,dog,../images/x/001.png", "n,01,../images/x/000.png", f"n,dog,{absolute}"]
    (lists / "train.csv").write_text("\n".join(rows))
    found = split_of(tmp_path, "lists/train.csv")
    assert isinstance(found.images, list)
    # Labels stay text ("01"); within a class paths are in order as they are written, "." before "/".
    assert [path.resolve() for path in found.images] == [
        tmp_path / "images/x/000.png",
        tmp_path / "images/x/001.png",
        absolute,
    ]
    assert found.labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("file,label\na.png,cat\n", r"columns file, label; the first line must name path,label"),
        ("path|label\na.png|cat\n", r"columns path\|label; the first line must name path,label"),
        ("", r"the first line must name path,label"),
        ('path,label\na.png,"cat\n', r"no CSV of path,label"),
        ("path,label\n", r"no images"),
        ("path,label\nyes.png,cat\n\nyes.png\n", r"line 4 has no label"),
        ("path,label\nyes.png,cat\nyes.png,\n", r"line 3 has no label"),
        ("path,label\n,cat\n", r"line 2 has no path"),
        ("path,label,label\nyes.png,cat,dog\n", r"two columns label"),
        ("path,label\nyes.png,cat\nno.png,cat\nnor.png,dog\n", r"do not exist: .*no\.png, .*nor\.png"),
    ],
)
def test_a_bad_csv_is_named_with_what_is_wrong(tmp_path: Path, text: str, named: str) -> None:
    paint(tmp_path / "yes.png")
    (tmp_path / "train.csv").write_text(text)
    with pytest.raises(UserError, match=rf"dataset\.train: .*train\.csv.*{named}|{named}.*train\.csv"):
        split_of(tmp_path, "train.csv")


def test_a_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dataset\.train\.path: .*/nowhere "):
        split_of(tmp_path, "nowhere")


def test_a_folder_without_images_is_named(tmp_path: Path) -> None:
    (tmp_path / "train" / "cat").mkdir(parents=True)
    with pytest.raises(UserError, match=r"no images below .*/train; expected <class>/<image file>"):
        split_of(tmp_path, "train")


def test_one_class_or_a_repeated_one_is_refused(tmp_path: Path) -> None:
    paint_folder(tmp_path, {"cat": 2})
    with pytest.raises(UserError, match=r"two or more distinct names, not \['cat'\]"):
        split_of(tmp_path)
    with pytest.raises(UserError, match=r"two or more distinct"):
        split_of(tmp_path, classes=["cat", "cat"])


def test_the_configured_order_of_classes_is_the_order_of_labels(tmp_path: Path) -> None:
    paint_folder(tmp_path, {"ant": 1, "bee": 1, "cow": 1})
    found = split_of(tmp_path, classes=["cow", "ant", "bee"])
    assert names(found) == ["cow/000.png", "ant/000.png", "bee/000.png"]
    assert found.labels.tolist() == [0, 1, 2]


def test_missing_and_extra_classes_of_any_split_are_named(tmp_path: Path, configure: Configure) -> None:
    paint_folder(tmp_path / "train", {"cat": 2, "dog": 2})
    paint_folder(tmp_path / "test", {"cat": 1, "dog": 1})
    paint_folder(tmp_path / "night", {"cat": 1, "owl": 1})
    cfg = dataset(tmp_path, ood={"dark": SplitConfig(path="night")})
    with pytest.raises(
        UserError, match=r"dataset\.ood\.dark: .*/night .* missing dog; extra owl; expected cat, dog"
    ):
        datasets.listing(configure(cfg))
    with pytest.raises(UserError, match=r"dataset\.train: .* missing owl; expected cat, dog, owl"):
        datasets.listing(configure(replace(cfg, classes=["cat", "dog", "owl"])))


def test_cifar10s_own_file_lists_its_layout(tmp_path: Path) -> None:
    with hydra.initialize_config_dir(str(CONF), version_base=None):
        config = validate(hydra.compose("train", ["dataset=cifar10_folder", f"paths.data={tmp_path}"]))
    for split in ("train", "test"):
        paint_folder(
            tmp_path / "cifar10" / split, dict.fromkeys(config.dataset.classes or [], 2), size=(32, 32)
        )
    listed = datasets.listing(config)
    assert {name: len(split) for name, split in listed.evaluation.items()} == {
        "id": 20,
        "gray": 20,
        "lowres": 20,
    }
    loaded = datasets.load(config, listed, CPU)
    assert {tuple(next(loader.epoch())[0].shape[1:]) for loader in loaded.evaluation.values()} == {
        (3, 64, 64)
    }


# --- divisions -------------------------------------------------------------------------------------


def test_eval_every_takes_the_nth_of_each_class_in_path_order(tmp_path: Path, configure: Configure) -> None:
    paint_folder(tmp_path / "all", {"cat": 7, "dog": 3})
    split = SplitConfig(path="all", part="train")
    cfg = dataset(tmp_path, train=split, id=replace(split, part="id"), eval_every=3)
    listed = datasets.listing(configure(cfg))
    held = ["cat/002.png", "cat/005.png", "dog/002.png"]
    every = [f"cat/00{i}.png" for i in range(7)] + [f"dog/00{i}.png" for i in range(3)]
    assert names(listed.evaluation["id"]) == held
    assert names(listed.train) == [name for name in every if name not in held]
    assert listed.evaluation["id"].labels.tolist() == [0, 0, 1]


def test_holdout_is_every_tenth_training_image_of_a_class(tmp_path: Path, configure: Configure) -> None:
    paint_folder(tmp_path / "train", {"cat": 21, "dog": 10}, size=(4, 4))
    paint_folder(tmp_path / "test", {"cat": 1, "dog": 1})
    listed = datasets.listing(configure(dataset(tmp_path), selection="holdout"))
    held = ["cat/009.png", "cat/019.png", "dog/009.png"]
    assert names(listed.evaluation["holdout"]) == held
    assert len(listed.train) == 28
    assert not set(held) & set(names(listed.train))
    assert list(listed.evaluation) == ["id", "holdout"]


def test_a_division_that_leaves_nothing_is_refused(tmp_path: Path, configure: Configure) -> None:
    paint_folder(tmp_path / "train", {"cat": 9, "dog": 9}, size=(4, 4))
    paint_folder(tmp_path / "test", {"cat": 1, "dog": 1})
    with pytest.raises(UserError, match=r"selection=holdout: no class has 10"):
        datasets.listing(configure(dataset(tmp_path), selection="holdout"))
    one = dataset(tmp_path, train=SplitConfig(path="train", images=1))
    with pytest.raises(UserError, match=r"dataset\.train\.images: 1 leaves no image of dog"):
        datasets.listing(configure(one))


@pytest.mark.parametrize(
    ("counts", "keep", "kept"),
    [
        # Shares 2.5 and 2.5 of 5: the half goes to the lower label. Spacing 10/3: 0, 3, 6; 10/2: 0, 5.
        ((10, 10), 5, [0, 3, 6, 10, 15]),
        # Shares 3.5, 1.4 and 2.1 of 7: whole 3, 1, 2, and the one left over to .5. 10/4: 0, 2, 5, 7.
        ((10, 4, 6), 7, [0, 2, 5, 7, 10, 14, 17]),
        # Shares 4/3, 1/3, 1/3: a three-way tie, which floating point would give to the second.
        ((4, 1, 1), 2, [0, 2]),
        ((3, 2), 5, [0, 1, 2, 3, 4]),
    ],
)
def test_thinning_keeps_the_classes_shares_evenly_spaced(
    counts: Sequence[int], keep: int, kept: list[int]
) -> None:
    thinned = numbered(counts).stratified_subset(keep)
    assert indices(thinned) == kept
    assert torch.equal(thinned.labels, numbered(counts).labels[kept])


def test_thinning_and_dividing_give_the_right_sizes_for_any_classes() -> None:
    for counts in ((5,), (1, 2, 3, 4), (7, 1, 100, 13)):
        whole = numbered(counts)
        for keep in range(1, len(whole) + 1):
            kept = whole.stratified_subset(keep)
            assert len(set(indices(kept))) == len(kept) == keep
            share = torch.tensor(counts) * keep / len(whole)
            got = kept.labels.bincount(minlength=len(counts))
            assert ((got - share).abs() < 1).all()  # largest remainder never strays by a whole image
        rest, nth = whole.split_every_nth(3)
        assert sorted(indices(rest) + indices(nth)) == list(range(len(whole)))
        assert nth.labels.bincount(minlength=len(counts)).tolist() == [count // 3 for count in counts]


def test_images_thins_a_split_and_too_many_are_refused(tmp_path: Path, configure: Configure) -> None:
    paint_folder(tmp_path / "train", {"cat": 4, "dog": 2})
    paint_folder(tmp_path / "test", {"cat": 2, "dog": 2})
    cfg = dataset(tmp_path, train=SplitConfig(path="train", images=3))
    assert names(datasets.listing(configure(cfg)).train) == ["cat/000.png", "cat/002.png", "dog/000.png"]
    with pytest.raises(UserError, match=r"dataset\.id\.images: 5, but there are only 4"):
        datasets.listing(configure(replace(cfg, id=SplitConfig(path="test", images=5))))


# --- identity --------------------------------------------------------------------------------------


def test_the_fingerprint_stays_when_the_folder_moves(tmp_path: Path) -> None:
    before = split_of(paint_folder(tmp_path / "here", {"cat": 2, "dog": 2})).fingerprint
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert split_of(tmp_path / "there").fingerprint == before


def test_the_fingerprint_changes_with_any_file_size_or_label(tmp_path: Path) -> None:
    root = paint_folder(tmp_path, {"cat": 3, "dog": 3})
    seen = [split_of(root).fingerprint]
    paint(root / "cat" / "new.png", seed=99)
    seen.append(split_of(root).fingerprint)
    paint(root / "cat" / "new.png", size=(30, 30), seed=99)
    seen.append(split_of(root).fingerprint)
    (root / "cat" / "new.png").rename(root / "dog" / "new.png")
    seen.append(split_of(root).fingerprint)
    seen.append(split_of(root, classes=["dog", "cat"]).fingerprint)
    seen += [part.fingerprint for part in split_of(root).split_every_nth(2)]
    seen.append(split_of(root).stratified_subset(4).fingerprint)
    assert len(set(seen)) == len(seen) == 8


# --- decoding --------------------------------------------------------------------------------------


def test_resident_images_are_pils_pixels_in_file_order(tmp_path: Path) -> None:
    split = split_of(paint_folder(tmp_path, {"cat": 3, "dog": 2}))
    images, _ = ImageStore(1.0, 2, tmp_path / "cache", CPU).load(split, [], "train")
    assert isinstance(images, Resident)
    assert isinstance(split.images, list)
    for pixels, path in zip(images.pixels, split.images, strict=True):
        with Image.open(path) as image:
            assert np.array_equal(pixels.permute(1, 2, 0), np.array(image))


@pytest.mark.parametrize(("side", "held", "done"), [(8, 8, 0), (16, 16, 0), (24, 16, 1)])
def test_equal_sized_images_are_kept_at_the_smaller_of_native_and_resized(
    tmp_path: Path, side: int, held: int, done: int
) -> None:
    split = split_of(paint_folder(tmp_path, {"cat": 2, "dog": 2}, size=(side, side)))
    store = ImageStore(1.0, 1, tmp_path / "cache", CPU)
    images, _ = store.load(split, [Resize(size=16), Flip()], "train")
    assert isinstance(images, Resident)
    assert images.pixels.shape == (4, 3, held, held)
    assert images.applied == done


def test_images_of_several_sizes_are_resized_once_if_that_makes_them_equal(tmp_path: Path) -> None:
    for i, size in enumerate([(10, 10), (30, 20), (20, 30)]):
        paint(tmp_path / "cat" / f"{i}.png", size=size, seed=i)
        paint(tmp_path / "dog" / f"{i}.png", size=size, seed=i + 3)
    split, store = split_of(tmp_path), ImageStore(1.0, 2, tmp_path / "cache", CPU)
    images, _ = store.load(split, [Resize(size=(12, 12)), Flip()], "train")
    assert isinstance(images, Resident)
    assert (images.pixels.shape, images.applied) == ((6, 3, 12, 12), 1)
    images, _ = store.load(split, [Resize(size=12), RandomCrop(size=12)], "train")  # sizes still differ
    assert isinstance(images, Streamed)


def test_images_beyond_the_limit_are_streamed(tmp_path: Path) -> None:
    split = split_of(paint_folder(tmp_path, {"cat": 2, "dog": 2}))
    size = 4 * 3 * 20 * 16 / 2**30
    exact, _ = ImageStore(size, 1, tmp_path / "cache", CPU).load(split, [], "train")
    assert isinstance(exact, Resident)
    short, _ = ImageStore(0.999 * size, 1, tmp_path / "cache", CPU).load(split, [], "train")
    assert isinstance(short, Streamed)


def test_splits_over_the_same_files_share_the_memory(tmp_path: Path, configure: Configure) -> None:
    paint_folder(tmp_path / "train", {"cat": 2, "dog": 2})
    paint_folder(tmp_path / "test", {"cat": 2, "dog": 2})
    ood = {
        "gray": SplitConfig(path="test", shift=[Grayscale()]),
        "low": SplitConfig(path="test", shift=[Resize(size=8)]),
    }
    cfg = dataset(tmp_path, ood=ood, eval_transform=[Resize(size=24)])
    # Room for exactly the two sets of files: sharing is what makes the rest fit.
    config = configure(cfg, resident_gib=8 * 3 * 20 * 16 / 2**30)
    loaded = datasets.load(config, datasets.listing(config), CPU)
    held = [loader.images for loader in loaded.evaluation.values()]
    # `low` is smaller in memory after its shift, but there is no room left; it shares what is there.
    assert all(isinstance(images, Resident) for images in held)
    assert len({images.pixels.data_ptr() for images in held if isinstance(images, Resident)}) == 1


def test_files_of_the_same_names_and_sizes_do_not_share_the_memory(
    tmp_path: Path, configure: Configure
) -> None:
    for i, split in enumerate(("train", "test", "noise", "blur")):  # BMP: equal shape, equal bytes
        for label in ("cat", "dog"):
            paint(tmp_path / split / label / "0.bmp", seed=i)
    config = configure(dataset(tmp_path, ood={n: SplitConfig(path=n) for n in ("noise", "blur")}))
    loaded = datasets.load(config, datasets.listing(config), CPU)
    for name, folder in (("id", "test"), ("noise", "noise"), ("blur", "blur")):
        [(images, _)] = loaded.evaluation[name].epoch()
        assert torch.equal(images[0], read_image(tmp_path / folder / "cat" / "0.bmp"))


def test_shifts_come_before_the_evaluation_transform(tmp_path: Path, configure: Configure) -> None:
    paint_folder(tmp_path / "train", {"cat": 2, "dog": 2})
    paint_folder(tmp_path / "test", {"cat": 1, "dog": 1}, size=(40, 40))
    cfg = dataset(
        tmp_path,
        ood={"low": SplitConfig(path="test", shift=[Resize(size=8)])},
        eval_transform=[Resize(size=32)],
    )
    config = configure(cfg)
    loaded = datasets.load(config, datasets.listing(config), CPU)
    [(shifted, _)], [(plain, _)] = loaded.evaluation["low"].epoch(), loaded.evaluation["id"].epoch()
    image = read_image(tmp_path / "test" / "cat" / "000.png")[None]
    assert torch.equal(plain[:1], v2.Resize(32)(image))
    assert torch.equal(shifted[:1], v2.Resize(32)(v2.Resize(8)(image)))


def test_a_shift_of_the_id_split_is_refused_not_ignored(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"id\.shift: only OOD sets have a shift"):
        dataset(tmp_path, id=SplitConfig(path="test", shift=[Grayscale()]))


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """Three splits of 2 x 4 images, with three that do not decode: an empty, a cut and a false one."""
    for split in ("train", "test", "night"):
        paint_folder(tmp_path / split, {"cat": 4, "dog": 4})
    (tmp_path / "train" / "cat" / "000.png").write_bytes(b"")
    cut = tmp_path / "train" / "dog" / "002.png"
    cut.write_bytes(cut.read_bytes()[:300])
    (tmp_path / "night" / "cat" / "003.png").write_text("<html>404</html>")
    return tmp_path


BROKEN = ["train/cat/000.png", "train/dog/002.png", "night/cat/003.png"]


def load_damaged(root: Path, configure: Configure, **compute: Any) -> datasets.Data:
    night = SplitConfig(path="night")
    gray = SplitConfig(path="night", shift=[Grayscale()])
    config = configure(dataset(root, ood={"night": night, "gray": gray}), **compute)
    return datasets.load(config, datasets.listing(config), CPU)


@pytest.mark.parametrize("resident_gib", [1.0, 0.0])
def test_all_unreadable_images_of_all_splits_are_listed_once_in_one_error(
    damaged: Path, configure: Configure, resident_gib: float
) -> None:
    for _ in range(2):  # the second time by the verdict on disk
        with pytest.raises(UserError) as caught:
            load_damaged(damaged, configure, resident_gib=resident_gib)
        first, *listed = str(caught.value).splitlines()
        assert first.startswith("3 image(s) cannot be read")
        for line, name, reason in zip(listed, BROKEN, ("empty", "cut off", "a web page"), strict=True):
            assert line.strip().startswith(f"{damaged / name}: {reason}")


@pytest.mark.parametrize("content", ["", "[0, 0]", "[99]", "[1, 0]", "[true]", '["0"]', "{}", "null"])
def test_a_damaged_verdict_on_files_is_made_anew_with_a_word(
    damaged: Path, configure: Configure, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = {"unreadable": "skip", "resident_gib": 0.0}
    expected = load_damaged(damaged, configure, **settings).unreadable
    verdicts = {file: file.read_text() for file in damaged.glob("**/verified/*.json")}
    assert verdicts
    for file in verdicts:
        file.write_text(content)
    capsys.readouterr()
    assert load_damaged(damaged, configure, **settings).unreadable == expected
    told = capsys.readouterr().err.splitlines()
    assert all(any(line.startswith(f"{file}: damaged (") for line in told) for file in verdicts)
    assert {file: file.read_text() for file in verdicts} == verdicts


def test_skipping_leaves_the_same_images_out_resident_and_streamed_and_counts_them(
    damaged: Path, configure: Configure
) -> None:
    loaded = [load_damaged(damaged, configure, unreadable="skip", resident_gib=gib) for gib in (1.0, 0.0)]
    for one in loaded:
        assert one.unreadable == {"train": 2, "night": 1, "gray": 1}
        assert datasets.describe(one)["images"] == {"train": 6, "id": 8, "night": 7, "gray": 7}
    resident, streamed = loaded
    assert datasets.describe(resident)["resident"] == ["train", "id", "night", "gray"]
    assert datasets.describe(streamed)["resident"] == []
    assert_same_batches(resident.train, streamed.train, 1)
    for name, loader in resident.evaluation.items():
        assert_same_batches(loader, streamed.evaluation[name], 0)
    [*batches] = streamed.evaluation["night"].epoch()
    kept = [damaged / "night" / c / f"00{i}.png" for c in ("cat", "dog") for i in range(4)]
    kept.remove(damaged / "night" / "cat" / "003.png")
    assert torch.equal(torch.cat([images for images, _ in batches]), torch.stack([*map(read_image, kept)]))
    assert torch.cat([labels for _, labels in batches]).tolist() == [0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("resident_gib", [1.0, 0.0])
def test_a_split_of_which_nothing_is_readable_is_refused_even_when_skipping(
    tmp_path: Path, configure: Configure, resident_gib: float
) -> None:
    paint_folder(tmp_path / "train", {"cat": 2, "dog": 2})
    for label in ("cat", "dog"):
        (tmp_path / "test" / label).mkdir(parents=True)
        (tmp_path / "test" / label / "a.png").write_text("no image")
    config = configure(dataset(tmp_path), unreadable="skip", resident_gib=resident_gib)
    with pytest.raises(UserError, match=r"dataset\.id: no images"):
        datasets.load(config, datasets.listing(config), CPU)


def test_a_file_mended_in_place_is_read_again(tmp_path: Path) -> None:
    split = split_of(paint_folder(tmp_path, {"cat": 1, "dog": 1}))
    file = tmp_path / "cat" / "000.png"
    whole = file.read_bytes()
    file.write_bytes(b"x" * len(whole))  # same name and size: same fingerprint
    os.utime(file, ns=(1, 1))
    for content, bad in ((None, 1), (whole, 0)):
        if content:
            file.write_bytes(content)
        store = ImageStore(0.0, 1, tmp_path / "cache", CPU)
        _, read = store.load(split, [], "train")
        assert len(read) == 2 - bad


@pytest.mark.parametrize("resident_gib", [1.0, 0.0])
@pytest.mark.parametrize("crop", [RandomCrop(size=18), CenterCrop(size=18)])
def test_an_image_too_small_for_a_crop_is_named_before_training(
    tmp_path: Path, configure: Configure, resident_gib: float, crop: Operation
) -> None:
    paint_folder(tmp_path / "train", {"cat": 2, "dog": 2}, size=(20, 18))
    paint_folder(tmp_path / "test", {"cat": 2, "dog": 2}, size=(20, 18))
    transform = "eval_transform" if isinstance(crop, CenterCrop) else "train_transform"
    split, folder = ("id", "test") if isinstance(crop, CenterCrop) else ("train", "train")
    config = configure(dataset(tmp_path, **{transform: [crop]}), resident_gib=resident_gib)
    datasets.load(config, datasets.listing(config), CPU)
    paint(tmp_path / folder / "dog" / "001.png", size=(20, 17))
    match = rf"dataset\.{split}: .*/{folder}/dog/001\.png of 17 x 20 pixels.* crop of 18"
    with pytest.raises(UserError, match=match):
        datasets.load(config, datasets.listing(config), CPU)


def test_a_crop_larger_than_the_resize_before_it_names_the_split(
    tmp_path: Path, configure: Configure
) -> None:
    paint_folder(tmp_path / "train", {"cat": 2, "dog": 2})
    paint_folder(tmp_path / "test", {"cat": 2, "dog": 2})
    config = configure(dataset(tmp_path, eval_transform=[Resize(size=12), CenterCrop(size=13)]))
    with pytest.raises(UserError, match=r"dataset\.id: a crop of 13 pixels .* 12 pixels"):
        datasets.load(config, datasets.listing(config), CPU)


def test_a_crop_larger_than_the_generated_images_names_the_split(defaults: Config) -> None:
    few = SplitConfig(path="sketch", images=10)
    cfg = replace(
        defaults.dataset,
        train=few,
        id=replace(few, seed=1),
        ood={},
        image_size=16,
        train_transform=[RandomCrop(size=17)],
    )
    config = replace(defaults, dataset=cfg)
    with pytest.raises(UserError, match=r"dataset\.train: images of 16 x 16 pixels"):
        datasets.load(config, datasets.listing(config), CPU)


# --- batches ---------------------------------------------------------------------------------------


def pixels_of(loader: Loader) -> Tensor:
    assert isinstance(loader.images, Resident)
    return loader.images.pixels


def assert_same_batches(a: Loader, b: Loader, epoch: int) -> None:
    ours, theirs = list(a.epoch(epoch)), list(b.epoch(epoch))
    assert len(ours) == len(theirs) == a.num_batches == b.num_batches
    for (images, labels), (other_images, other_labels) in zip(ours, theirs, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)


TRAINING = [Resize(size=20), RandomResizedCrop(size=18), RandomCrop(size=16), Flip()]


@pytest.fixture
def many(tmp_path: Path, configure: Configure):
    """A function that loads 2 x 7 images, in memory or streamed."""
    paint_folder(tmp_path / "train", {"cat": 7, "dog": 7}, size=(26, 22))
    paint_folder(tmp_path / "test", {"cat": 1, "dog": 1})

    def loader(operations: Sequence[Operation] = TRAINING, seed: int = 0, **compute: Any) -> Loader:
        config = replace(configure(dataset(tmp_path, train_transform=list(operations)), **compute), seed=seed)
        return datasets.load(config, datasets.listing(config), CPU).train

    return loader


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_and_resident_batches_are_the_same_bits(many: LoadTraining, workers: int) -> None:
    resident, streamed = many(), many(resident_gib=0.0, workers=workers)
    assert isinstance(resident.images, Resident)
    assert isinstance(streamed.images, Streamed)
    for epoch in (0, 1, 1):
        assert_same_batches(resident, streamed, epoch)
    next(streamed.epoch(2))  # left in the middle; the workers forget it
    assert_same_batches(resident, streamed, 3)


def test_batches_do_not_depend_on_whether_the_resize_is_done_once(many: LoadTraining) -> None:
    once, each_time = many(), many()
    streamed = many(resident_gib=0.0).images
    assert isinstance(streamed, Streamed)
    assert isinstance(once.images, Resident)
    assert once.images.applied == 1
    pixels = torch.stack([*map(read_image, streamed.paths)])
    native = replace(each_time, images=Resident(pixels))
    assert_same_batches(once, native, 1)


def test_streaming_leaves_the_global_random_numbers_alone(many: LoadTraining) -> None:
    streamed = many(resident_gib=0.0)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    list(streamed.epoch(1))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_same_seed_and_epoch_repeat_and_others_differ(many: LoadTraining) -> None:
    loader = many([])

    def order(loader: Loader, epoch: int) -> bytes:
        return torch.cat([images for images, _ in loader.epoch(epoch)]).numpy().tobytes()

    first = order(loader, 1)
    # Of 14! orders two are equal by chance once in 10^10.
    assert len({first, order(loader, 0), order(loader, 2), order(many([], seed=1), 1)}) == 4
    assert order(loader, 1) == first == order(many([]), 1)


def test_an_epoch_has_every_image_once_with_its_label(many: LoadTraining) -> None:
    loader = many([])
    wanted = Counter(
        (p.numpy().tobytes(), int(y)) for p, y in zip(pixels_of(loader), loader.labels, strict=True)
    )
    got = Counter(
        (image.contiguous().numpy().tobytes(), int(label))
        for images, labels in loader.epoch(5)
        for image, label in zip(images, labels, strict=True)
    )
    assert got == wanted
    assert set(got.values()) == {1}


def test_the_order_of_an_epoch_is_that_of_its_batches(many: LoadTraining) -> None:
    for loader in (many([RandomCrop(size=1)]), many([], resident_gib=0.0)):
        for epoch in (0, 5):
            labels = torch.cat([labels for _, labels in loader.epoch(epoch)])
            assert torch.equal(loader.labels[loader.order(epoch)], labels)
    unmoved = many([])
    pixels = torch.cat([images for images, _ in unmoved.epoch()])
    assert torch.equal(pixels_of(unmoved)[unmoved.order()], pixels)


def test_crops_differ_between_images_and_epochs(many: LoadTraining) -> None:
    loader = many([RandomCrop(size=1)])
    pixels_of(loader)[:] = torch.arange(26).byte()  # a pixel tells its column
    columns = [torch.cat([images for images, _ in loader.epoch(e)])[:, 0, 0, 0].tolist() for e in (1, 2)]
    assert columns[0] != columns[1]
    assert len(set(columns[0])) > 5  # of 14 draws among 26 columns, 11 or so are distinct


def test_evaluation_is_in_file_order_every_time(tmp_path: Path, configure: Configure) -> None:
    paint_folder(tmp_path / "train", {"cat": 2, "dog": 2})
    paint_folder(tmp_path / "test", {"cat": 5, "dog": 4})
    config = configure(dataset(tmp_path))
    loader = datasets.load(config, datasets.listing(config), CPU).evaluation["id"]
    files = sorted((tmp_path / "test").rglob("*.png"))
    for epoch in (0, 3):
        batches = list(loader.epoch(epoch))
        assert [len(labels) for _, labels in batches] == [4, 5]
        assert torch.equal(
            torch.cat([images for images, _ in batches]), torch.stack([*map(read_image, files)])
        )
        assert torch.cat([labels for _, labels in batches]).tolist() == [0] * 5 + [1] * 4


def test_batches_are_laid_out_channels_last(many: LoadTraining) -> None:
    images, labels = next(many().epoch())
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)


@pytest.mark.parametrize(
    ("images", "sizes"),
    [
        (1, [1]),
        (2, [2]),
        (64, [64]),
        (65, [65]),
        (66, [64, 2]),
        (128, [64, 64]),
        (129, [64, 65]),
        (130, [64, 64, 2]),
    ],
)
def test_a_last_batch_of_one_image_is_joined_to_the_one_before(images: int, sizes: list[int]) -> None:
    ends = batch_boundaries(images, 64)
    assert [b - a for a, b in itertools.pairwise([0, *ends])] == sizes
    pixels = torch.zeros(images, 3, 1, 1, dtype=torch.uint8)
    loader = Loader(
        name="x",
        images=Resident(pixels),
        labels=torch.zeros(images, dtype=torch.long),
        fingerprint="x",
        operations=[],
        batch_size=64,
        seed=0,
        shuffle=True,
        device=CPU,
        workers=0,
    )
    assert [len(labels) for _, labels in loader.epoch(1)] == sizes
    assert loader.num_batches == len(sizes)


# --- configuration ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "named"),
    [
        (
            "dataset.train_transform=[blur]",
            r"dataset\.train_transform\.0: .*'blur'.*random_resized_crop, flip",
        ),
        ("dataset.eval_transform=[flip]", r"dataset\.eval_transform: .*not be random"),
        ("++dataset.ood.neon.shift=[flip]", r"dataset\.ood\.neon\.shift: .*not be random"),
        ("++dataset.train.shift=[grayscale]", r"dataset\.train\.shift: "),
        ("++dataset.train.part=id", r"dataset\.train\.part: .*seed"),
        ("++dataset.ood.holdout={path: neon}", r"dataset\.ood\.holdout: .*taken"),
    ],
)
def test_a_bad_dataset_key_is_named(override: str, named: str) -> None:
    with hydra.initialize_config_dir(str(CONF), version_base=None):
        composed = hydra.compose("train", [override])
    with pytest.raises(ConfigError, match=named):
        validate(composed)


def test_a_dataset_file_of_a_dozen_lines_is_enough() -> None:
    written = {
        "name": "mine",
        "source": "folder",
        "root": "x",
        "train": {"path": "train"},
        "id": {"path": "val"},
    }
    written |= {"ood": {}, "train_transform": ["flip"], "eval_transform": [{"resize": 64}], "epochs": 3}
    assert TypeAdapter(DatasetConfig).validate_python(written).eval_transform == [Resize(size=64)]


@pytest.mark.parametrize("split", ["train", "eval"])
def test_a_batch_that_cannot_fit_into_memory_is_refused_before_anything_is_resized(
    split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"train": "[32, 32]", "eval": "[32, 32]"} | {split: "[60000, 60000]"}
    resizes = [f"dataset.{key}_transform=[{{resize: {size}}}]" for key, size in sizes.items()]
    few = ["dataset.image_size=32", "dataset.train.images=20", "dataset.id.images=20"]
    few += [f"~dataset.ood.{name}" for name in ("photo", "clipart", "painting", "neon")]
    config = configuration("training.batch_size=16", *few, *resizes)
    load = ImageStore.load

    def loaded(store: ImageStore, of: Labelled, operations: Any, name: str, **how: Any) -> Any:
        assert (name == "train") != (split == "train")
        return load(store, of, operations, name, **how)

    monkeypatch.setattr(ImageStore, "load", loaded)
    words = f"dataset.{split}_transform: 16 images of 60000 x 60000 pixels at a time: 804.7 GiB of memory"
    with pytest.raises(UserError, match=words):
        datasets.load(config, datasets.listing(config), torch.device("cpu"))
