"""Claims about images that stay in memory from one run of a process to the next."""

import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image

from daft.config.operations import Operation, Resize
from daft.config.schema import SplitConfig
from daft.data import datasets, images
from daft.data.images import ImageStore, Resident, Streamed
from daft.data.labelled import Labelled
from tests.data.test_datasets import dataset, paint_folder

ALL = 4 + 1
"""Files that are read for four images: the first one also for its size."""

CPU = torch.device("cpu")


class Loaded(NamedTuple):
    images: object
    read: int


Load = Callable[..., Loaded]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Load a split as a run would, and count the files that are read."""
    read: list[Path] = []
    real = images.read_image
    monkeypatch.setattr(images, "read_image", lambda path, *more: read.append(path) or real(path, *more))

    def loaded(split: Labelled, limit: float = 1.0, operations: Sequence[Operation] = ()) -> Loaded:
        read.clear()
        found, _ = ImageStore(limit, 1, tmp_path / "cache", CPU).load(split, operations, "train")
        return Loaded(found, len(read))

    return loaded


def split_of(folder: Path) -> Labelled:
    cfg = dataset(paint_folder(folder, {"cat": 2, "dog": 2}), train=SplitConfig(path="."))
    return datasets.read_split(cfg, cfg.train, "train", datasets.class_names(cfg))


def test_the_next_run_takes_what_the_last_one_has_decoded(tmp_path: Path, load: Load) -> None:
    split = split_of(tmp_path / "a")
    first, again = load(split), load(split)
    assert (first.read, again.read) == (ALL, 1)
    assert again.images is first.images


def test_other_operations_and_changed_files_are_decoded_anew(tmp_path: Path, load: Load) -> None:
    split = split_of(tmp_path / "a")
    load(split)
    assert load(split, operations=[Resize(size=8)]).read == ALL
    assert isinstance(split.images, list)
    Image.new("RGB", (20, 16), "red").save(split.images[0])
    changed = load(split, operations=[Resize(size=8)])
    assert changed.read == ALL
    assert isinstance(changed.images, Resident)
    assert (changed.images.pixels[0, 0] == 255).all()


def test_a_smaller_limit_holds_for_what_is_in_memory_already(tmp_path: Path, load: Load) -> None:
    split = split_of(tmp_path / "a")
    load(split)
    assert isinstance(load(split, limit=1e-9).images, Streamed)


def test_images_of_another_dataset_take_the_room(tmp_path: Path, load: Load) -> None:
    held = weakref.ref(load(split_of(tmp_path / "a")).images)
    assert held() is not None
    load(split_of(tmp_path / "b"))
    assert held() is None
