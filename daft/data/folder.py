"""Images in files: folders with one sub-folder per class, or a CSV of path,label."""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from daft.config import DatasetConfig, SplitConfig
from daft.data.images import Labelled
from daft.errors import UserError

EXTENSIONS = frozenset(
    [".jpg", ".jpeg", ".jp2", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"]
)
"""Files that are taken for images; other files in a class folder are not read."""

FINGERPRINTED = 500
"""Files whose contents go into a split's fingerprint, at least, if there are as many."""


def read_classes(cfg: DatasetConfig) -> list[str]:
    """Class names in label order: configured, or those of the training split, sorted."""
    names = cfg.classes or sorted(set(_listed(cfg, cfg.train, "train")["label"]))
    if len(names) < 2 or len(set(names)) != len(names):
        raise UserError(f"dataset.classes: need two or more distinct names, not {names}")
    return list(names)


def read_split(cfg: DatasetConfig, split: SplitConfig, name: str, classes: list[str]) -> Labelled:
    """One split by class and path; raises UserError if its classes are not exactly `classes`."""
    listed = _listed(cfg, split, name)
    found = set(listed["label"])
    extra, missing = sorted(found - set(classes)), [c for c in classes if c not in found]
    if extra or missing:
        raise UserError(
            f"dataset.{name}: the classes of {_location(cfg, split)} are not the dataset's:"
            + (f" missing {', '.join(missing)};" if missing else "")
            + (f" extra {', '.join(extra)};" if extra else "")
            + f" expected {', '.join(classes)}"
        )
    listed["label"] = [classes.index(label) for label in listed["label"]]
    listed = listed.sort_values(["label", "path"], kind="stable")
    files = [Path(file) for file in listed["file"]]
    digest = hashlib.sha256()
    for file, path, label in zip(files, listed["path"], listed["label"], strict=True):
        name = file.name if Path(path).is_absolute() else path  # where a disk is mounted is no fact
        digest.update(f"{name}\t{file.stat().st_size}\t{label}\n".encode())
    # Uncompressed images are all of one size: some contents, evenly spaced, tell two sets of them apart.
    for file in files[:: max(1, len(files) // FINGERPRINTED)]:
        digest.update(file.read_bytes())
    labels = torch.tensor(listed["label"].to_numpy(np.int64))
    return Labelled(files, labels, digest.hexdigest())


def _location(cfg: DatasetConfig, split: SplitConfig) -> Path:
    return Path(cfg.root).expanduser() / Path(split.path).expanduser()


def _listed(cfg: DatasetConfig, split: SplitConfig, name: str) -> pd.DataFrame:
    """Columns path (relative, for order and identity), file (to open), label (class name)."""
    location = _location(cfg, split)
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
    absent = [file for file in listed["file"] if not Path(file).is_file()]
    if absent:
        raise UserError(
            f"dataset.{name}: {location} names {len(absent)} file(s) that do not exist: "
            + ", ".join(absent[:5])
            + (", …" if len(absent) > 5 else "")
        )
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
