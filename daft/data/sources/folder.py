"""Images in files: folders with one sub-folder per class, or a table of path,label."""

import os
import re
from pathlib import Path
from unicodedata import normalize

from daft.common import progress
from daft.common.errors import UserError, join_first, shown
from daft.config.schema import DatasetConfig, SplitConfig
from daft.data.folders import LeftOut, class_folders, image_files
from daft.data.labelled import ImageFile, Labelled
from daft.data.tables import read_table

TABLES = (".csv", ".tsv", ".txt")


def classes(cfg: DatasetConfig) -> list[str]:
    """Class names in label order: configured, or those of the training split, sorted."""
    if cfg.classes:
        return [normalize("NFC", name) for name in cfg.classes]
    return sorted({image.label for image in _listed(_location(cfg, cfg.train), "train")})


def read_split(cfg: DatasetConfig, split: SplitConfig, name: str, classes: list[str]) -> Labelled:
    """The files of a split; raises UserError if its classes are not exactly `classes`."""
    location = _location(cfg, split)
    listed = _listed(location, name)
    found = {image.label for image in listed}
    extra, missing = sorted(found - set(classes)), [c for c in classes if c not in found]
    if extra or missing:
        likely = bool(extra and missing)  # one name in two spellings
        raise UserError(
            f"dataset.{name}: the classes of {location} are not the dataset's:"
            + (f" missing {_names(missing, likely)};" if missing else "")
            + (f" extra {_names(extra, likely)};" if extra else "")
            + f" expected {_names(classes)}"
        )
    return Labelled.of_files(listed, classes, split.path)


def read_unlabelled(cfg: DatasetConfig, split: SplitConfig, name: str) -> Labelled:
    """All images below a folder, in whatever folders they are, or of the column `path` of a table."""
    location = _location(cfg, split)
    if location.is_dir():
        left_out = LeftOut()
        files = image_files(location, left_out)
        left_out.say(f"dataset.{name}", location, len(files))
        listed = [ImageFile(str(file.relative_to(location)), file, "") for file in files]
    else:
        listed = _in_table(location, name, labelled=False) if _is_table(location) else []
    if not listed:
        raise UserError(
            f"dataset.{name}.path: no images below {location}; name a folder, or a CSV with a path"
        )
    return Labelled.of_files(listed, [""], split.path)


def _is_table(location: Path) -> bool:
    return location.suffix.lower() in TABLES and location.is_file()


def _names(classes: list[str], exact: bool = False) -> str:
    """Names for a message, in quotes where they could be misread; exact: also what letters they have."""

    def told(name: str) -> str:
        text = name if re.fullmatch(r"\w+([ .+-]\w+)*", name) else repr(name)
        return f"{text} ({name!a})" if exact and not name.isascii() else text

    return ", ".join(map(told, classes))


def _location(cfg: DatasetConfig, split: SplitConfig) -> Path:
    return Path(cfg.root).expanduser() / Path(split.path).expanduser()


def _listed(location: Path, name: str) -> list[ImageFile]:
    if location.is_dir():
        listed = _in_folders(location, name)
    elif _is_table(location):
        listed = _in_table(location, name)
    else:
        raise UserError(
            f"dataset.{name}.path: {location} is neither a folder with one sub-folder per class nor "
            "a CSV file; set dataset.root or paths.data"
        )
    if not listed:
        raise UserError(f"dataset.{name}: no images below {location}; expected <class>/<image file>")
    return listed


def _in_folders(location: Path, name: str) -> list[ImageFile]:
    listed: list[ImageFile] = []
    left_out, empty = LeftOut(), []
    for folder in class_folders(location, left_out):
        label = class_name(folder.name)
        files = image_files(folder, left_out)
        listed += [ImageFile(f"{folder.name}/{file.relative_to(folder)}", file, label) for file in files]
        if not files:
            empty.append(label)
    if empty:
        left_out[f"class folder(s) without an image ({join_first(empty)})"] = len(empty)
    left_out.say(f"dataset.{name}", location, len(listed))
    return listed


def _in_table(location: Path, name: str, *, labelled: bool = True) -> list[ImageFile]:
    columns = ["path", "label"] if labelled else ["path"]
    try:
        table = read_table(location, columns)
    except UserError as error:
        raise UserError(f"dataset.{name}: {error}") from error
    if table.surplus and labelled:
        progress.say_once(
            f"dataset.{name}: {shown(location)}: only path and label are read; not read: "
            f"{join_first(table.surplus)}"
        )
    listed = []
    for line, row in zip(table.lines, table.rows, strict=True):
        path, label = row if labelled else [*row, "-"]
        if not path.strip() or not label.strip():
            what = "label" if path.strip() else "path"
            raise UserError(f"dataset.{name}: {location} line {line} has no {what}")
        path = as_on_disk(location.parent, path)
        image = ImageFile(path, location.parent / path, class_name(label.strip()) if labelled else "")
        if not path.isprintable() and not image.file.exists():
            raise UserError(
                f"dataset.{name}: {location} line {line}: {shown(path)} does not exist; if this is not how "
                "it is called, save the table as UTF-8"
            )
        listed.append(image)
    return listed


def as_on_disk(folder: Path, path: str) -> str:
    """A path as a table has it, or without what a spreadsheet, Windows or macOS did to it, if that exists."""
    bare = path.strip().replace("\\", "/")
    spellings = [path, path.strip(), bare, normalize("NFC", bare), normalize("NFD", bare)]
    return next((spelling for spelling in spellings if os.path.exists(folder / spelling)), path.strip())


def class_name(text: str) -> str:
    """A class as it is called everywhere, one way of writing accents, and what is no text as an escape."""
    return normalize("NFC", shown(text))
