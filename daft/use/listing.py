"""Which images are meant, and of which class they are by the names of their folders."""

import glob
from collections import Counter
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from daft.common import progress
from daft.common.errors import UserError, join_first, shown
from daft.data.decoding import PLUGINS
from daft.data.folders import LeftOut, image_files, is_image
from daft.data.sources.folder import TABLES, as_on_disk, class_name
from daft.data.tables import read_table


class Listed(NamedTuple):
    """One image."""

    name: str
    """below what was given, for order"""
    file: Path
    label: str | None
    """one of the classes; None where nothing says it"""


def find(places: Sequence[str], classes: Sequence[str]) -> list[Listed]:
    """The images in folders, in tables of `path` and perhaps `label`, in globs, and single files, each once.

    The label is the folder right below a folder that is given, that folder itself, or the nearest one between
    it and the file, whichever is named as a class first; of a single file its own folder. If every image has
    one, they are in the order of a split: by class and path. Raises UserError for what is not there or has no
    image.
    """
    found: dict[Path, Listed] = {}
    for place in places:
        for image in _found(place, frozenset(classes)):
            found.setdefault(image.file, image)
    images = [*found.values()]
    if all(image.label is not None for image in images):
        numbers = {name: number for number, name in enumerate(classes)}
        images.sort(key=lambda image: (numbers[image.label or ""], image.name))
    elif labelled := sum(image.label is not None for image in images):
        others = Counter(image.file.absolute().parent.name for image in images if image.label is None)
        progress.say(
            f"{len(images) - labelled:,} of {len(images):,} images are in folders that are no class "
            f"({join_first([*others])}); they count in no accuracy"
        )
    return images


def _found(place: str, classes: frozenset[str]) -> list[Listed]:
    path = Path(place).expanduser()
    if path.is_dir():
        return _in_folder(path, classes)
    if path.suffix.lower() in TABLES and path.is_file():
        return _in_table(path, classes)
    if path.is_file():
        return [Listed(place, path, _label([path.absolute().parent], classes))]
    matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
    if not matches:
        raise UserError(f"{shown(place)}: no such file or folder, and no file fits it as a pattern")
    fixed = Path(*takewhile(lambda part: not glob.has_magic(part), path.parts))
    files = [file for file in matches if file.is_file()]
    listed = [Listed(str(file), file, _label(_folders(file, fixed), classes)) for file in files]
    folders = [match for match in matches if match.is_dir()]
    listed += [image for match in folders for image in _in_folder(match, classes, required=False)]
    if not listed:
        raise UserError(f"{shown(place)}: no image fits it as a pattern")
    return listed


def _in_folder(folder: Path, classes: frozenset[str], required: bool = True) -> list[Listed]:
    left_out = LeftOut()
    # What lacks a package to read it is an image too: its row is missing, which is told with the others.
    files = image_files(folder, left_out, lambda name: is_image(name) or Path(name).suffix.lower() in PLUGINS)
    if not files and required:
        reason = f"; left out: {left_out}" if left_out else ""
        raise UserError(f"{shown(folder)}: no images below it{reason}")
    left_out.say("images", folder, len(files))
    listed = []
    for file in files:
        below = file.relative_to(folder)
        first = [folder / below.parts[0]] if len(below.parts) > 1 else []
        folders = [*first, folder.absolute(), *_folders(file, folder)]
        listed.append(Listed(str(below), file, _label(folders, classes)))
    return listed


def _folders(file: Path, top: Path) -> list[Path]:
    """Those between a file and a folder, the nearest first; that folder too."""
    return [folder.absolute() for folder in file.parents if folder.is_relative_to(top)]


def _in_table(file: Path, classes: frozenset[str]) -> list[Listed]:
    table = read_table(file, ["path"])
    named = "label" in (name.lower() for name in table.surplus)
    if named:
        table = read_table(file, ["path", "label"])
    listed = []
    for line, row in zip(table.lines, table.rows, strict=True):
        path = as_on_disk(file.parent, row[0])
        label = class_name(row[1].strip()) if named else None
        if label is not None and label not in classes:
            known = join_first(sorted(classes))
            raise UserError(
                f"{shown(file)} line {line}: label {label!r} is no class of the run; it has {known}"
            )
        listed.append(Listed(path, file.parent / path, label))
    if not listed:
        raise UserError(f"{shown(file)}: has no image")
    return listed


def _label(folders: Sequence[Path], classes: frozenset[str]) -> str | None:
    return next((name for folder in folders if (name := class_name(folder.name)) in classes), None)
