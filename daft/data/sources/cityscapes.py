"""Cityscapes with fine annotations: street scenes, 19 classes.

Layout and ids: mcordts/cityscapesScripts, README and cityscapesscripts/helpers/labels.py.
"""

from pathlib import Path

import torch

from daft.common.errors import UserError
from daft.config.schema import DatasetConfig, SplitConfig
from daft.data.folders import LeftOut, image_files
from daft.data.labelled import IGNORED, INVALID, ImageFile, Labelled

TRAINED = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""Ids in the order of the classes."""

IDS = 34
"""Beside these there is -1, a licence plate, which is 255 in a file."""

CLASS_OF_VALUE = torch.full((256,), INVALID, dtype=torch.int16)
CLASS_OF_VALUE[:IDS] = IGNORED
CLASS_OF_VALUE[list(TRAINED)] = torch.arange(len(TRAINED), dtype=torch.int16)
CLASS_OF_VALUE[255] = IGNORED

SPLITS = ("train", "val")

IMAGE, MASK = "_leftImg8bit.png", "_gtFine_labelIds.png"


def classes(cfg: DatasetConfig) -> list[str]:
    """As configured; raises UserError if they are not as many as Cityscapes'."""
    if len(cfg.classes or []) != len(TRAINED):
        raise UserError(f"dataset.classes: {cfg.classes}; name the {len(TRAINED)} in the order of train ids")
    return cfg.classes or []


def read_split(cfg: DatasetConfig, split: SplitConfig, name: str, classes: list[str]) -> Labelled:
    """path `train` or `val`; raises UserError for another, and if there are no images."""
    if split.path not in SPLITS:
        raise UserError(f"dataset.{name}.path: no split {split.path!r}; choose from {', '.join(SPLITS)}")
    root = Path(cfg.root).expanduser()
    folder, left_out = root / "leftImg8bit" / split.path, LeftOut()
    images = image_files(folder, left_out, lambda name: name.endswith(IMAGE)) if folder.is_dir() else []
    left_out.say(f"dataset.{name}", folder, len(images))
    if not images:
        raise UserError(f"{folder} has no <city>/*{IMAGE}")
    listed = []
    for image in images:
        path = str(image.relative_to(root / "leftImg8bit")).removesuffix(IMAGE)
        listed.append((ImageFile(path, image, ""), root / "gtFine" / f"{path}{MASK}"))
    return Labelled.of_masks(listed, CLASS_OF_VALUE, split.path)
