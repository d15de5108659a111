"""What the tests of finished runs in use share: one run on image files as they are, one of masks."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from daft import experiment
from daft.config.compose import configuration
from daft.data import datasets
from daft.experiment import RunResult
from tests.conftest import FAST

CLASSES = ["circle", "square", "star"]
KINDS = ("RGB", "L", "RGBA", "P")
"""Modes of the files, in turn."""


def draw(folder: Path, path: str, images: int, seed: int) -> None:
    """Drawn shapes as files of several sizes, formats and modes, `<class>/<number>.<suffix>`."""
    overrides = [f"dataset.id.path={path}", f"dataset.id.images={images}", f"dataset.id.seed={seed}"]
    cfg = configuration("dataset=shapes", "dataset.image_size=48", *overrides).dataset
    classes = datasets.class_names(cfg)
    drawn = datasets.read_split(cfg, cfg.id, "id", classes)
    assert isinstance(drawn.images, torch.Tensor)
    labels = [classes[label] for label in drawn.labels]
    wanted = [pair for pair in zip(drawn.images, labels, strict=True) if pair[1] in CLASSES]
    for number, (pixels, label) in enumerate(wanted):
        image = Image.fromarray(pixels.permute(1, 2, 0).numpy()).convert(KINDS[number % len(KINDS)])
        if image.mode == "RGBA":
            image.putalpha(128)
        exif = Image.Exif()
        exif[0x0112] = 6  # a quarter turn, which this dataset applies
        image = image.resize((48 + number % 5, 40))
        file = folder / label / (f"{number:03}.jpg" if image.mode == "L" else f"{number:03}.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file, exif=exif)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train`, `val` and `art` with folders of three classes."""
    folder = tmp_path_factory.mktemp("images")
    for split, path, count, seed in (
        ("train", "sketch", 200, 0),
        ("val", "sketch", 110, 1),
        ("art", "painting", 40, 2),
    ):
        draw(folder / split, path, count, seed)
    return folder


@pytest.fixture(scope="session")
def original(images: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A run on files that are decoded, turned, laid on white, resized and cropped, and where it was made."""
    folder = tmp_path_factory.mktemp("original")
    config = configuration(
        *("dataset=folder", "dataset.name=drawn", f"dataset.root={images}", "method=daft"),
        "dataset.ood={art: {path: art}}",
        *("dataset.exif_orientation=apply", "dataset.transparency=white"),
        "dataset.train_transform=[{random_resized_crop: 32}, flip]",
        "dataset.eval_transform=[{resize: 40}, {center_crop: 32}]",
        *("training.batch_size=16", *FAST),
        *(f"paths.{name}={folder / name}" for name in ("runs", "cache", "data", "weights")),
    )
    return experiment.run(config)


@pytest.fixture
def copied(original: RunResult, tmp_path: Path) -> Path:
    """A copy of that run's folder alone."""
    return Path(shutil.copytree(original.directory, tmp_path / "copied" / original.directory.name))


@pytest.fixture(scope="session")
def segmentation(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A run on drawn masks."""
    folder = tmp_path_factory.mktemp("masks")
    config = configuration(
        *("dataset=shapes_masks", "method=daft", "dataset.image_size=32", "dataset.train.images=36"),
        *("dataset.id.images=18", "dataset.ood.painting.images=18"),
        *("segmentation.channels=8", "training.steps=5", *FAST),
        *(f"paths.{name}={folder / name}" for name in ("runs", "cache", "data", "weights")),
    )
    return experiment.run(config)
