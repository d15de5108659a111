"""Claims about the cache of decoded images: the same pixels, decoded once, whole or made anew."""

import os
import pickle
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from daft.common.errors import UserError
from daft.config.schema import Config
from daft.data import cache, datasets, images
from daft.data.decoding import USUAL, Decoding, read_image
from daft.data.images import ImageStore, Resident
from daft.data.labelled import Labelled
from daft.data.loader import Loader
from tests.helpers.waiting import wait_until

CPU = torch.device("cpu")
SIDE = 20
SIZES = [(41, 30), (30, 50), (16, 24), (20, 33), (64, 64), (24, 18), (29, 21)]
"""widths and heights: larger than SIDE, smaller than it, equal to it"""

Load = Callable[..., datasets.Data]
OVERRIDES = [
    *("dataset=folder", "dataset.id.path=val", "training.batch_size=4", "compute.device=cpu"),
    "dataset.train_transform=[{random_resized_crop: 16}, flip]",
    "dataset.eval_transform=[{resize: 20}, {center_crop: 16}]",
]


def paint(path: Path, size: tuple[int, int], seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(256, size=(size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two splits of 2 x 7 images of several sizes; three images make a shard."""
    monkeypatch.setattr(cache, "SHARD", 3)
    for seed, split in enumerate(("train", "val")):
        for i, size in enumerate(2 * SIZES):
            paint(tmp_path / "data" / split / ("cat", "dog")[i % 2] / f"{i:02}.png", size, 100 * seed + i)
    return tmp_path / "data"


@pytest.fixture
def load(configure: Callable[..., Config], folders: list[str]) -> Load:
    """A function that loads what is below a folder, streamed and kept at 20 pixels unless told otherwise."""

    def loaded(root: Path, *overrides: str, cache_side: int | None = SIDE, workers: int = 0) -> datasets.Data:
        settings = ["compute.resident_gib=0", f"compute.workers={workers}", f"dataset.root={root}"]
        config = configure(*OVERRIDES, *folders, *settings, *overrides)
        config = replace(config, dataset=replace(config.dataset, cache_side=cache_side))
        return datasets.load(config, datasets.listing(config), CPU)

    return loaded


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that have been decoded so far."""
    paths: list[Path] = []

    def noted(path: Path, decoding: Decoding = USUAL) -> Tensor:
        paths.append(path)
        return read_image(path, decoding)

    monkeypatch.setattr(images, "read_image", noted)
    return paths


def shards(root: Path) -> dict[str, int]:
    """Names of the complete shards, and when they were made; nothing else may be there but the lock."""
    files = [*(root.parent / "cache" / "pixels").iterdir()]
    assert {file.suffix for file in files if file.name != ".lock"} <= {".pixels"}
    return {file.name: file.stat().st_mtime_ns for file in files if file.name != ".lock"}


def batches(loader: Loader, epoch: int) -> list[Tensor]:
    return [part for batch in loader.epoch(epoch) for part in batch]


def assert_same_batches(ours: Loader, theirs: Loader, epoch: int) -> None:
    pairs = zip(batches(ours, epoch), batches(theirs, epoch), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def assert_same(ours: datasets.Data, theirs: datasets.Data) -> None:
    for epoch in (0, 1, 1):
        assert_same_batches(ours.train, theirs.train, epoch)
    assert_same_batches(ours.evaluation["id"], theirs.evaluation["id"], 0)


def files_of(folder: Path) -> list[Path]:
    return sorted((folder / "train").rglob("*.png"))


def build(paths: list[Path], where: Path) -> cache.Cached:
    return cache.build(paths, SIDE, where, images.read_image, 2, "train")


def resized_copies(folder: Path, copy: Path) -> Path:
    """The same images, saved without loss with a shorter side of at most 20 pixels."""
    resize = v2.Resize(SIDE, antialias=True)
    for file in folder.rglob("*.png"):
        image = read_image(file)
        small = resize(image) if min(image.shape[1:]) > SIDE else image
        (copy / file.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(small.permute(1, 2, 0).numpy()).save(copy / file.relative_to(folder))
    return copy


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_a_folder_of_resized_images(
    folder: Path, load: Load, tmp_path: Path, workers: int
) -> None:
    cached = load(folder, workers=workers)
    assert isinstance(cached.train.images, cache.Cached)
    small = load(resized_copies(folder, tmp_path / "small"), cache_side=None)
    assert cached.train.shape() == small.train.shape() == (3, 16, 16)
    assert_same(cached, small)


def test_images_that_fit_into_memory_are_the_resized_ones(folder: Path, load: Load, tmp_path: Path) -> None:
    fixed = "dataset.train_transform=[{resize: [18, 18]}, flip]"
    cached = load(folder, fixed, "compute.resident_gib=1")
    assert isinstance(cached.train.images, Resident)
    assert_same(cached, load(resized_copies(folder, tmp_path / "small"), fixed, cache_side=None))


def test_shrinking_is_pillows_antialiased_bilinear_and_never_enlarges(folder: Path) -> None:
    for file in files_of(folder):
        with Image.open(file) as image:
            factor = min(1, SIDE / min(image.size))
            size = (int(factor * image.width + 1e-6), int(factor * image.height + 1e-6))
            expected = np.asarray(image.resize(size, Image.Resampling.BILINEAR)).astype(int)
        found = cache.shrink(read_image(file), SIDE).permute(1, 2, 0).numpy()
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= 1


def test_generated_images_are_shrunk_as_files_are() -> None:
    pixels = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    store = ImageStore(1, 1, Path(), CPU, cache_side=16)
    held, _ = store.load(Labelled(pixels, torch.arange(3), "three"), [], "train")
    assert isinstance(held, Resident)
    assert torch.equal(held.pixels, cache.shrink(pixels, 16))
    assert held.pixels.shape[-2:] == (16, 16)


def test_a_later_run_decodes_nothing(folder: Path, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, decoding: Decoding) -> Tensor:
        raise AssertionError(path)

    first = load(folder)
    monkeypatch.setattr(images, "read_image", fail)
    assert_same(first, load(folder))


def test_features_of_resized_images_are_not_taken_for_those_of_the_originals(
    folder: Path, load: Load
) -> None:
    loaded = [load(folder, cache_side=side).evaluation["id"].identity for side in (None, 20, 24)]
    assert len({str(identity) for identity in loaded}) == 3


def test_workers_are_sent_no_pixels(folder: Path, tmp_path: Path) -> None:
    cached = build(files_of(folder), tmp_path / "pixels")
    before = len(pickle.dumps(cached))
    for i in range(len(cached.paths)):
        assert cached.read(i).shape[1:] == cached.size(i)
    assert len(pickle.dumps(cached)) == before


def test_an_interrupted_build_goes_on_with_the_shard_it_was_at(
    folder: Path, load: Load, decoded: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    count, files = images.read_image, files_of(folder)

    def interrupted(path: Path, decoding: Decoding) -> Tensor:
        if path == files[7]:
            raise KeyboardInterrupt
        return count(path, decoding)

    monkeypatch.setattr(images, "read_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load(folder)
    done = shards(folder)
    assert len(done) == 2
    decoded.clear()
    monkeypatch.setattr(images, "read_image", count)
    load(folder)
    assert sorted(path for path in decoded if path in files) == files[6:]
    assert done.items() <= shards(folder).items()


def test_what_a_kill_left_half_written_is_removed(folder: Path, load: Load) -> None:
    leftover = folder.parent / "cache" / "pixels" / ".shard.partial"
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"half")
    load(folder)
    assert not leftover.exists()


@pytest.mark.parametrize("kept", [0, 7, 24, -1])
def test_a_truncated_shard_is_made_anew_with_a_word_and_no_other(
    folder: Path, tmp_path: Path, decoded: list[Path], kept: int, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = files_of(folder)
    cached = build(paths, tmp_path / "pixels")
    expected = [cached.read(i).clone() for i in range(len(paths))]
    content = cached.shards[1].read_bytes()
    cached.shards[1].write_bytes(content[:kept])
    decoded.clear()
    capsys.readouterr()
    again = build(paths, tmp_path / "pixels")
    assert capsys.readouterr().err == f"{cached.shards[1]}: damaged; it is made anew\n"
    assert sorted(decoded) == paths[3:6]
    assert cached.shards[1].read_bytes() == content
    assert all(torch.equal(again.read(i), pixels) for i, pixels in enumerate(expected))


@pytest.mark.parametrize("kind", ["zeros", "negative sizes", "half an image", "a folder", "a pipe"])
def test_other_content_of_a_shard_is_not_taken_for_pixels(
    folder: Path, tmp_path: Path, decoded: list[Path], kind: str
) -> None:
    paths = files_of(folder)[:3]
    (shard,) = build(paths, tmp_path / "pixels").shards
    content = shard.read_bytes()
    sizes = np.frombuffer(content[:24], "<i4").reshape(3, 2)
    if kind in ("a folder", "a pipe"):
        shard.unlink()
        shard.mkdir() if kind == "a folder" else os.mkfifo(shard)
    elif kind == "zeros":
        shard.write_bytes(bytes(len(content)))
    else:  # of the same number of pixels in all
        whole = [[sizes.prod(axis=1).sum() // SIDE, SIDE], [0, 0], [0, 5]]
        changed = -sizes if kind == "negative sizes" else np.array(whole)
        shard.write_bytes(changed.astype("<i4").tobytes() + content[24:])
    decoded.clear()
    build(paths, tmp_path / "pixels")
    assert sorted(decoded) == paths
    assert shard.read_bytes() == content


def test_a_changed_file_costs_one_shard(folder: Path, tmp_path: Path, decoded: list[Path]) -> None:
    paths = files_of(folder)
    build(paths, tmp_path / "pixels")
    decoded.clear()
    paint(paths[4], (50, 40), seed=999)
    cached = build(paths, tmp_path / "pixels")
    assert sorted(decoded) == paths[3:6]
    assert torch.equal(cached.read(4), cache.shrink(read_image(paths[4]), SIDE))


@pytest.mark.parametrize("gib", [0, 1])
def test_unreadable_images_are_named_by_the_first_run_and_by_later_ones(
    folder: Path, load: Load, decoded: list[Path], gib: int
) -> None:
    broken = [folder / "train" / "cat" / "02.png", folder / "val" / "dog" / "13.png"]
    broken[0].write_bytes(b"")
    broken[1].write_bytes(broken[1].read_bytes()[:300])
    resident = f"compute.resident_gib={gib}"
    for _ in range(2):
        with pytest.raises(UserError, match=r"2 image\(s\) cannot be read") as caught:
            load(folder, resident)
        named = [line.strip().partition(": ")[0] for line in str(caught.value).splitlines()[1:]]
        assert named == [*map(str, broken)]
    assert len(decoded) == 28 + 2 * len(broken)  # which are opened again to say what is wrong with them
    skipped = load(folder, resident, "compute.unreadable=skip")
    assert skipped.unreadable == {"train": 1, "id": 1}
    assert len(skipped.train) == 13
    for file in broken:
        file.unlink()
    originals = load(folder, cache_side=None)  # evaluation resizes them to the same 20 pixels
    assert_same_batches(skipped.evaluation["id"], originals.evaluation["id"], 0)


def test_builds_that_start_together_decode_every_file_once(
    folder: Path, tmp_path: Path, decoded: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    paths, where, built = files_of(folder), tmp_path / "pixels", []
    waiting = [threading.Thread(target=lambda: built.append(build(paths, where))) for _ in range(2)]
    with FileLock(where / ".lock"):  # as another process would hold it
        for thread in waiting:
            thread.start()
        told, shown = f"another process is filling {where}; waiting", []
        wait_until(lambda: "".join(shown).count(told) == 2, lambda: shown.append(capsys.readouterr().err))
        assert not built
    for thread in waiting:
        thread.join()
    assert sorted(decoded) == paths
    assert all(torch.equal(built[0].read(i), built[1].read(i)) for i in range(len(paths)))


def test_a_full_disk_is_named_before_anything_is_written(
    folder: Path, load: Load, decoded: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = sum(cache.shrink(read_image(file), SIDE).numel() for file in files_of(folder))
    for free, fits in ((0.95 * needed, False), (1.2 * needed, True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        decoded.clear()
        if fits:
            load(folder)
        else:
            with pytest.raises(UserError, match=r"cache_side=20: the 14 .* of dataset\.train.*paths\.cache"):
                load(folder)
            assert not decoded
            assert not shards(folder)


def test_a_cache_that_cannot_be_written_is_named(folder: Path, load: Load) -> None:
    (folder.parent / "cache").write_text("a file where a folder should be")
    with pytest.raises(UserError, match=r"paths\.cache: .*cache/pixels cannot be filled"):
        load(folder)


def test_a_crop_that_does_not_fit_is_named(folder: Path, load: Load) -> None:
    with pytest.raises(UserError, match=r"dataset\.train: dataset\.cache_side=20 .* crop of 22"):
        load(folder, "dataset.train_transform=[{random_crop: 22}]")
    with pytest.raises(UserError, match=r"dataset\.train: .*\.png of (16|18) x \d\d|\d\d x (16|18) pixels"):
        load(folder, "dataset.train_transform=[{random_crop: 19}]")
