"""Cityscapes with fine annotations: street scenes, 19 classes.

Layout and ids: mcordts/cityscapesScripts, README and cityscapesscripts/helpers/labels.py.
"""

from pathlib import Path

import pandas as pd
import torch

from daft.common.errors import UserError
from daft.config.schema import DatasetConfig, SplitConfig
from daft.data.labelled import IGNORED, INVALID, Labelled

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
    images = sorted((root / "leftImg8bit" / split.path).glob(f"*/*{IMAGE}"))
    if not images:
        raise UserError(f"{root / 'leftImg8bit' / split.path} has no <city>/*{IMAGE}")
    paths = [str(image.relative_to(root / "leftImg8bit")).removesuffix(IMAGE) for image in images]
    masks = [str(root / "gtFine" / f"{path}{MASK}") for path in paths]
    listed = pd.DataFrame({"path": paths, "file": map(str, images), "mask": masks})
    return Labelled.of_masks(listed, CLASS_OF_VALUE, split.path)
