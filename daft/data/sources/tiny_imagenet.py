"""Tiny-ImageNet-200 as published: 200 classes of 64-pixel images, the validation set in one folder."""

from pathlib import Path

from daft.common.errors import UserError
from daft.config.schema import DatasetConfig, SplitConfig
from daft.data.folders import LeftOut, image_files
from daft.data.labelled import ImageFile, Labelled
from daft.data.tables import read_lines, read_text

FOLDER = "tiny-imagenet-200"


def classes(cfg: DatasetConfig) -> list[str]:
    """WordNet ids in the order of wnids.txt, sorted."""
    return sorted(read_text(Path(cfg.root).expanduser() / FOLDER / "wnids.txt").split())


def read_split(cfg: DatasetConfig, split: SplitConfig, name: str, classes: list[str]) -> Labelled:
    """path `train` or `val`; raises UserError for another, and for labels that are not classes."""
    if split.path not in ("train", "val"):
        raise UserError(f"dataset.{name}.path: {split.path!r} is no split; choose from train, val")
    folder, left_out = Path(cfg.root).expanduser() / FOLDER / split.path, LeftOut()
    if split.path == "train":
        found = [
            (wnid, file)
            for wnid in classes
            if (folder / wnid).is_dir()
            for file in image_files(folder / wnid, left_out, _is_published)
        ]
        del left_out[".txt"]  # boxes, as published
    else:
        labels = _val_labels(folder / "val_annotations.txt", classes)
        found = [(wnid, folder / "images" / file) for file, wnid in labels]
        files = image_files(folder / "images", left_out, _is_published)
        if unnamed := {file.name for file in files} - {file for file, _ in labels}:
            left_out["not in val_annotations.txt"] = len(unnamed)
    left_out.say(f"dataset.{name}", folder, len(found))
    if lost := sorted(set(classes) - {wnid for wnid, _ in found}):
        raise UserError(f"{folder} has no image of {', '.join(lost)}")
    listed = [ImageFile(f"{wnid}/{file.name}", file, wnid) for wnid, file in found]
    return Labelled.of_files(listed, classes, split.path)


def _is_published(name: str) -> bool:
    return name.lower().endswith(".jpeg")


def _val_labels(notes: Path, classes: list[str]) -> list[tuple[str, str]]:
    """File name and WordNet id of every validation image."""
    labels = []
    for number, line in read_lines(notes):
        file, wnid, *_ = [*line.split("\t"), ""]  # then four corners of a box
        if wnid not in classes:
            raise UserError(f"{notes} line {number}: {wnid!r} is no class of wnids.txt")
        labels.append((file, wnid))
    return labels
