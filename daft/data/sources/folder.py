"""Images in files: folders with one sub-folder per class, or a CSV of path,label."""

from pathlib import Path

import pandas as pd

from daft.common.errors import UserError
from daft.config.schema import DatasetConfig, SplitConfig
from daft.data.labelled import Labelled

EXTENSIONS = frozenset(
    [".jpg", ".jpeg", ".jp2", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"]
)
"""Files that are taken for images; other files in a class folder are not read."""


def classes(cfg: DatasetConfig) -> list[str]:
    """Class names in label order: configured, or those of the training split, sorted."""
    return cfg.classes or sorted(set(_listed(_location(cfg, cfg.train), "train")["label"]))


def read_split(cfg: DatasetConfig, split: SplitConfig, name: str, classes: list[str]) -> Labelled:
    """The files of a split; raises UserError if its classes are not exactly `classes`."""
    location = _location(cfg, split)
    listed = _listed(location, name)
    found = set(listed["label"])
    extra, missing = sorted(found - set(classes)), [c for c in classes if c not in found]
    if extra or missing:
        raise UserError(
            f"dataset.{name}: the classes of {location} are not the dataset's:"
            + (f" missing {', '.join(missing)};" if missing else "")
            + (f" extra {', '.join(extra)};" if extra else "")
            + f" expected {', '.join(classes)}"
        )
    return Labelled.of_files(listed, classes, split.path)


def _location(cfg: DatasetConfig, split: SplitConfig) -> Path:
    return Path(cfg.root).expanduser() / Path(split.path).expanduser()


def _listed(location: Path, name: str) -> pd.DataFrame:
    if location.is_dir():
        rows = [
            (f"{folder.name}/{file.relative_to(folder)}", str(file), folder.name)
            for folder in sorted(p for p in location.iterdir() if p.is_dir() and p.name[0] != ".")
            for file in sorted(folder.rglob("*"))
            if file.suffix.lower() in EXTENSIONS
            and not any(part[0] == "." for part in file.relative_to(folder).parts)
        ]
        listed = pd.DataFrame(rows, columns=["path", "file", "label"])
    elif location.suffix == ".csv" and location.is_file():
        listed = _read_csv(location, name)
    else:
        raise UserError(
            f"dataset.{name}.path: {location} is neither a folder with one sub-folder per class nor "
            "a CSV file; set dataset.root or paths.data"
        )
    if listed.empty:
        raise UserError(f"dataset.{name}: no images below {location}; expected <class>/<image file>")
    return listed


def _read_csv(location: Path, name: str) -> pd.DataFrame:
    try:
        listed = pd.read_csv(location, dtype=str, keep_default_na=False)
    except ValueError as error:  # pandas' errors and Unicode's are among them
        raise UserError(f"dataset.{name}: {location} is no CSV of path,label ({error})") from error
    if not {"path", "label"} <= set(listed.columns):
        raise UserError(
            f"dataset.{name}: {location} has columns {', '.join(listed.columns)}; "
            "the first line must be path,label"
        )
    for row, (path, label) in enumerate(zip(listed["path"], listed["label"], strict=True), start=1):
        if not path or not label:
            raise UserError(f"dataset.{name}: {location} row {row} has no path or no label")
    # Paths in a CSV are relative to the file itself.
    listed["file"] = [str(location.parent / p) for p in listed["path"]]
    return listed.loc[:, ["path", "file", "label"]]
