"""Pascal VOC 2012 segmentation, and its training set with the masks of SBD ("trainaug").

Layout: pytorch/vision, torchvision/datasets/{voc,sbd}.py. The list of trainaug and SegmentationClassAug are
those of VainF/DeepLabV3Plus-Pytorch; evaluation reads VOC's own masks always.
"""

from pathlib import Path

import torch

from daft.common.errors import UserError
from daft.config.schema import DatasetConfig, SplitConfig
from daft.data.labelled import IGNORED, INVALID, ImageFile, Labelled
from daft.data.tables import read_lines

FOLDER = "VOCdevkit/VOC2012"

CLASSES = 21

CLASS_OF_VALUE = torch.full((256,), INVALID, dtype=torch.int16)
CLASS_OF_VALUE[:CLASSES] = torch.arange(CLASSES, dtype=torch.int16)
CLASS_OF_VALUE[255] = IGNORED

SPLITS = {"train": "train", "val": "val", "trainaug": "trainaug", "sbd/trainaug": "trainaug"}
"""Split: its list in ImageSets/Segmentation. `sbd/trainaug` reads SBD's own files, where VOC has no mask."""


def classes(cfg: DatasetConfig) -> list[str]:
    """As configured; raises UserError if they are not as many as VOC's."""
    if len(cfg.classes or []) != CLASSES:
        raise UserError(f"dataset.classes: {cfg.classes}; name the {CLASSES} in label order")
    return cfg.classes or []


def read_split(cfg: DatasetConfig, split: SplitConfig, name: str, classes: list[str]) -> Labelled:
    """path one of SPLITS; raises UserError for another, and for a list that is not there."""
    if split.path not in SPLITS:
        raise UserError(f"dataset.{name}.path: no split {split.path!r}; choose from {', '.join(SPLITS)}")
    root = Path(cfg.root).expanduser()
    folder = root / FOLDER
    names = _listed(folder / "ImageSets/Segmentation" / f"{SPLITS[split.path]}.txt")

    def mask(name: str) -> Path:
        if split.path == "trainaug":
            return folder / "SegmentationClassAug" / f"{name}.png"
        own = folder / "SegmentationClass" / f"{name}.png"
        if split.path == "sbd/trainaug" and not own.is_file():
            return root / "benchmark_RELEASE/dataset/cls" / f"{name}.mat"
        return own

    listed = [(ImageFile(name, folder / "JPEGImages" / f"{name}.jpg", ""), mask(name)) for name in names]
    return Labelled.of_masks(listed, CLASS_OF_VALUE, split.path)


def _listed(file: Path) -> list[str]:
    """The names of images in a list."""
    names = []
    for number, line in read_lines(file):
        name, *others = line.split()
        if others:
            raise UserError(f"{file} line {number}: {line!r} is not the name of one image")
        names.append(name)
    if len(set(names)) != len(names):
        raise UserError(f"{file} names an image twice")
    return names
