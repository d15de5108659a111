"""Tiny-ImageNet-200 as published: 200 classes of 64-pixel images, the validation set in one folder."""

from pathlib import Path

import pandas as pd

from daft.common.errors import UserError
from daft.config.schema import DatasetConfig, SplitConfig
from daft.data.labelled import Labelled

FOLDER = "tiny-imagenet-200"


def classes(cfg: DatasetConfig) -> list[str]:
    """WordNet ids in the order of wnids.txt, sorted."""
    file = Path(cfg.root).expanduser() / FOLDER / "wnids.txt"
    if not file.is_file():
        raise UserError(f"{file} does not exist")
    return sorted(file.read_text().split())


def read_split(cfg: DatasetConfig, split: SplitConfig, name: str, classes: list[str]) -> Labelled:
    """path `train` or `val`; raises UserError for another, and for labels that are not classes."""
    root = Path(cfg.root).expanduser() / FOLDER
    if split.path == "train":
        found = [(wnid, file) for wnid in classes for file in sorted((root / "train" / wnid).rglob("*.JPEG"))]
        if lost := sorted(set(classes) - {wnid for wnid, _ in found}):
            raise UserError(f"{root / 'train'} has no image of {', '.join(lost)}")
    elif split.path == "val":
        notes = root / "val" / "val_annotations.txt"  # file, wnid, and four corners of a box
        if not notes.is_file():
            raise UserError(f"{notes} does not exist")
        rows = [line.split("\t")[:2] for line in notes.read_text().splitlines()]
        if lost := sorted({row[1] if len(row) == 2 else "" for row in rows} - set(classes)):
            raise UserError(f"{notes}: {', '.join(map(repr, lost))} is no class of wnids.txt")
        found = [(wnid, root / "val" / "images" / file) for file, wnid in rows]
    else:
        raise UserError(f"dataset.{name}.path: {split.path!r} is no split; choose from train, val")
    rows = [(f"{wnid}/{file.name}", str(file), wnid) for wnid, file in found]
    listed = pd.DataFrame(rows, columns=["path", "file", "label"])
    return Labelled.of_files(listed, classes, split.path)
