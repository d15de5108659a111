"""Images with masks that are your own, for segmentation: a split is a list of pairs of files.

A list is a table with the columns `image` and `mask` (CSV, TSV), or a text with two paths a line, or with one
name for `images/<name>.*` and `masks/<name>.*`. All of it is below the dataset's root.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from daft.common.errors import UserError, join_first, shown
from daft.config.schema import DatasetConfig, SplitConfig
from daft.data.folders import LeftOut, image_files
from daft.data.labelled import IGNORED, INVALID, ImageFile, Labelled
from daft.data.tables import read_lines, read_table

TABLES = (".csv", ".tsv")


def classes(cfg: DatasetConfig) -> list[str]:
    """As configured; raises UserError if there are none."""
    if not cfg.classes:
        raise UserError(
            "dataset.classes: null; name the classes in the order of their values in masks, from 0"
        )
    return cfg.classes


def read_split(cfg: DatasetConfig, split: SplitConfig, name: str, classes: list[str]) -> Labelled:
    """path: the list; raises UserError for one that is empty, names an image twice, or no mask for it."""
    root = Path(cfg.root).expanduser()
    file = root / Path(split.path).expanduser()
    try:
        pairs = [*(_in_table(file) if file.suffix.lower() in TABLES else _in_lines(file, root))]
        if not pairs:
            raise UserError(f"{file} names no image")
        names = [image for image, _ in pairs]
        if len({*names}) < len(names):
            twice = next(image for image in names if names.count(image) > 1)
            raise UserError(f"{file} names {shown(twice)} twice")
    except UserError as error:
        raise UserError(f"dataset.{name}: {error}") from error
    listed = [(ImageFile(image, root / image, ""), root / mask) for image, mask in pairs]
    return Labelled.of_masks(listed, _class_of_value(cfg, len(classes)), split.path)


def _class_of_value(cfg: DatasetConfig, num_classes: int) -> torch.Tensor:
    """int16 [256], for `Masks`: the first values are the classes; 255 and the ignored ones are of none."""
    if wrong := [value for value in cfg.ignored_values if value < num_classes]:
        raise UserError(
            f"dataset.ignored_values: {join_first(wrong)}, but 0 to {num_classes - 1} are classes"
        )
    found = torch.full((256,), INVALID, dtype=torch.int16)
    found[:num_classes] = torch.arange(num_classes, dtype=torch.int16)
    found[[IGNORED, *cfg.ignored_values]] = IGNORED
    return found


def _in_table(file: Path) -> Iterator[tuple[str, str]]:
    """The paths of image and mask in each row."""
    table = read_table(file, ["image", "mask"])
    for line, (image, mask) in zip(table.lines, table.rows, strict=True):
        if not image.strip() or not mask.strip():
            raise UserError(f"{file} line {line} has no {'mask' if image.strip() else 'image'}")
        yield image.strip(), mask.strip()


def _in_lines(file: Path, root: Path) -> Iterator[tuple[str, str]]:
    """The paths of image and mask in each line."""
    lines = [(number, line.split()) for number, line in read_lines(file)]
    named = any(len(words) == 1 for _, words in lines)
    image_of, mask_of = (_finder(root / folder, root) if named else None for folder in ("images", "masks"))
    for number, words in lines:
        if len(words) == 1 and image_of and mask_of:
            try:
                yield image_of(words[0]), mask_of(words[0])
            except UserError as error:
                raise UserError(f"{file} line {number}: {error}") from None
        elif len(words) == 2:
            yield words[0], words[1]
        else:
            raise UserError(
                f"{file} line {number}: {len(words)} words; write one name, or the paths of image and mask; "
                "paths with spaces need a CSV file with the columns image,mask"
            )


def _finder(folder: Path, root: Path) -> Callable[[str], str]:
    """A function from a name to the path below the root of the one file of that name in a folder."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; names are those of files in it")
    files: dict[str, list[str]] = {}
    for file in image_files(folder, LeftOut()):
        files.setdefault(str(file.relative_to(folder).with_suffix("")), []).append(
            str(file.relative_to(root))
        )

    def find(name: str) -> str:
        found = files.get(name, [])
        if len(found) != 1:
            told = f"several files ({join_first(found)})" if found else "no file"
            raise UserError(f"{name!r} is {told} of {folder}")
        return found[0]

    return find
