"""Claims about images that splits share: linked, copied or drawn alike, they are found; some may be."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from daft.common.errors import UserError
from daft.config.operations import Grayscale, Operation
from daft.config.schema import Config, SplitConfig
from daft.data import datasets, overlap
from daft.data.labelled import ImageFile, Labelled
from tests.helpers import fabricate

CPU = torch.device("cpu")
Load = Callable[..., datasets.Data]


@pytest.fixture(scope="module")
def config(configure: Callable[..., Config]) -> Config:
    fixed = ["dataset.train_transform=[]", "dataset.eval_transform=[]", "compute.device=cpu"]
    return configure("dataset=folder", "dataset.root=/nowhere", *fixed, "compute.workers=0")


@pytest.fixture
def load(tmp_path: Path, config: Config) -> Load:
    """A function that lists and loads train, val and these OOD sets, below the test's folder."""
    for split in ("train", "val", "night"):
        for label in ("cat", "dog"):
            for n in range(20):
                seed = int.from_bytes(f"{split[0]}{label[0]}{n:02}".encode(), "big")
                fabricate.picture(tmp_path / split / label / f"{n:02}.png", seed, 8, 8)

    def loaded(selection: str = "paper", known: int | None = None, **ood: SplitConfig) -> datasets.Data:
        id_ = replace(config.dataset.id, known_images=known)
        here = replace(
            config,
            dataset=replace(config.dataset, root=str(tmp_path), ood=ood, id=id_),
            paths=replace(config.paths, cache=str(tmp_path / "cache")),
            training=replace(config.training, selection=selection),
        )
        return datasets.load(here, datasets.listing(here), CPU)

    return loaded


NIGHT = SplitConfig(path="night")
LINKS = {"hard": os.link, "symbolic": os.symlink, "copied": shutil.copyfile}


@pytest.mark.parametrize("kind", LINKS)
@pytest.mark.parametrize(
    ("file", "other", "named"),
    [
        ("val/cat/new.png", "train/dog/07.png", r"dataset\.id: 1 of 41 .* dataset\.train"),
        ("night/cat/new.png", "train/cat/07.png", r"dataset\.ood\.dark: 1 of 41 .* dataset\.train"),
        ("night/dog/new.png", "val/dog/07.png", r"dataset\.ood\.dark: 1 of 41 .* dataset\.id"),
    ],
)
def test_an_image_of_another_split_is_found_however_it_came_there(
    tmp_path: Path, load: Load, kind: str, file: str, other: str, named: str
) -> None:
    load(dark=NIGHT)
    LINKS[kind](tmp_path / other, tmp_path / file)
    told = rf"{named}, {tmp_path / file} \(there {tmp_path / other}\) among them; evaluate on others"
    with pytest.raises(UserError, match=told):
        load(dark=NIGHT)


def test_a_folder_linked_as_two_splits_is_found(tmp_path: Path, load: Load) -> None:
    (tmp_path / "again").symlink_to(tmp_path / "train")
    with pytest.raises(UserError, match=r"dataset\.ood\.x: 40 of 40 images are also in dataset\.train"):
        load(x=SplitConfig(path="again"))


def test_an_ood_set_may_be_the_shifted_id_set_but_never_the_training_set(load: Load) -> None:
    shift: list[Operation] = [Grayscale()]
    gray = load(gray=SplitConfig(path="val", shift=shift), dim=SplitConfig(path="val", shift=shift))
    assert len(gray.evaluation["gray"]) == 40
    with pytest.raises(UserError, match=r"dataset\.ood\.gray: 40 of 40 images are also in dataset\.id"):
        load(gray=SplitConfig(path="val"))
    with pytest.raises(UserError, match=r"dataset\.ood\.gray: 40 of 40 images are also in dataset\.train"):
        load(gray=SplitConfig(path="train", shift=shift))


def test_ood_sets_may_have_images_in_common(load: Load) -> None:
    assert len(load(one=NIGHT, pooled=NIGHT).evaluation["pooled"]) == 40


def test_an_image_twice_in_training_is_not_held_out_and_trained_on(tmp_path: Path, load: Load) -> None:
    load(selection="holdout")
    os.link(tmp_path / "train/cat/03.png", tmp_path / "train/cat/08b.png")  # every tenth is held out
    with pytest.raises(UserError, match=r"selection=holdout: 1 of 4 .*; have each once in dataset\.train"):
        load(selection="holdout")


@pytest.mark.parametrize(("copied", "refused"), [(4, False), (5, True)])
def test_a_few_copies_in_a_published_split_are_told(
    tmp_path: Path, load: Load, capsys: pytest.CaptureFixture[str], copied: int, refused: bool
) -> None:
    for n in range(copied):
        shutil.copyfile(tmp_path / f"train/cat/{n:02}.png", tmp_path / f"val/dog/{n:02}.png")
    told = f"dataset.id: {copied} of 40 images are copies of images in dataset.train, "
    if refused:
        with pytest.raises(UserError, match=rf"{told}.*evaluate on others"):
            load(known=40)
        return
    for _ in range(2):
        load(known=40)
    assert capsys.readouterr().err.splitlines() == [
        f"{told}{tmp_path}/val/dog/00.png (there {tmp_path}/train/cat/00.png) among them"
    ]
    with pytest.raises(UserError, match="evaluate on others"):
        load()  # one's own can be mended


def test_files_are_read_once_and_only_where_sizes_agree(
    tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    for name in ("_middle", "_whole"):
        digest = getattr(overlap, name)
        monkeypatch.setattr(overlap, name, lambda file, digest=digest: (read.append(file), digest(file))[1])
    sizes = {file: file.stat().st_size for file in tmp_path.rglob("*.png")}
    shared = {s for f, s in sizes.items() if f.parts[-3] == "val"} & {
        s for f, s in sizes.items() if f.parts[-3] == "train"
    }
    alike = {file for file, size in sizes.items() if size in shared and file.parts[-3] != "night"}
    load()
    assert set(read) == alike
    assert len(read) == len(alike)
    read.clear()
    load()
    assert read == []
    [kept] = (tmp_path / "cache/copies").glob("*.json")
    kept.write_text(json.dumps([["id", "train", [[0, 10**9]]]]))  # of another set
    load()
    assert set(read) == alike


def test_files_that_agree_in_the_middle_are_told_apart(tmp_path: Path) -> None:
    content = bytearray(np.random.default_rng(0).integers(256, size=50_000, dtype=np.uint8))
    files = []
    for n, (place, value) in enumerate([(0, 1), (49_999, 1), (0, 1), (25_000, 1)]):
        changed = content.copy()
        changed[place] ^= value
        files.append(tmp_path / f"{n}.bmp")
        files[-1].write_bytes(changed)
    one, other = (
        Labelled.of_files([ImageFile(file.name, file, "x") for file in some], ["x"], "x")
        for some in (files[:2], files[2:])
    )
    assert overlap.copies({"a": one, "b": other}, [("a", "b")], 1) == {("a", "b"): [(0, 0)]}


def test_empty_files_are_no_copies(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).touch()
    splits = {n: Labelled.of_files([ImageFile(n, tmp_path / n, "x")], ["x"], "x") for n in ("a", "b")}
    assert overlap.copies(splits, [("a", "b")], 1) == {}


def test_pixels_in_memory_are_compared_image_by_image() -> None:
    pixels = fabricate.noise(0, 30, 3, 4, 4)
    one = Labelled.of_pixels(pixels[:20], np.arange(20))
    other = Labelled.of_pixels(pixels[15:], np.arange(15))
    larger = Labelled.of_pixels(fabricate.noise(0, 30, 3, 8, 8), np.arange(30))
    found = overlap.copies({"a": one, "b": other, "c": larger}, [("a", "b"), ("a", "c"), ("b", "c")], 1)
    assert found == {("a", "b"): [(15 + i, i) for i in range(5)]}


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("dataset.id.seed=0", r"dataset\.id: the sketch images of seed 0 are in dataset\.train too"),
        ("dataset.ood.neon={path: sketch, images: 9, seed: 1}", r"dataset\.ood\.neon: .* in dataset\.id too"),
    ],
)
def test_what_is_drawn_from_one_seed_is_refused(
    tiny: Callable[..., Config], override: str, named: str
) -> None:
    with pytest.raises(UserError, match=named):
        datasets.listing(tiny(override))


def test_a_published_file_is_not_read_as_two_splits(tmp_path: Path, configure: Callable[..., Config]) -> None:
    fabricate.cifar10(tmp_path)
    config = configure("dataset=cifar10", f"dataset.root={tmp_path}")
    split = SplitConfig(path="cifar10/train")
    config = replace(config, dataset=replace(config.dataset, train=split, id=split, ood={}))
    with pytest.raises(UserError, match=r"dataset\.id: the cifar10/train images are in dataset\.train too"):
        datasets.listing(config)
