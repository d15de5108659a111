"""DomainNet as published, by the lists of 40 classes of SENTRY (Prabhu et al. 2021)."""

from pathlib import Path

import pandas as pd

from daft.common.errors import UserError
from daft.config.schema import DatasetConfig, SplitConfig
from daft.data.labelled import Labelled

DOMAINS = ("clipart", "painting", "real", "sketch")


def classes(cfg: DatasetConfig) -> list[str]:
    """As configured; raises UserError if they are not: the lists have numbers of no natural order."""
    if cfg.classes is None:
        raise UserError("dataset.classes: null; the lists number the classes, so name them in that order")
    return cfg.classes


def read_split(cfg: DatasetConfig, split: SplitConfig, name: str, classes: list[str]) -> Labelled:
    """path `<domain>/<train or test>`, several domains joined by +; raises UserError for another, and if a
    list's label numbers do not agree with its folders.
    """
    domains, _, part = split.path.partition("/")
    if part not in ("train", "test") or not set(domains.split("+")) <= set(DOMAINS):
        raise UserError(
            f"dataset.{name}.path: {split.path!r} is not <domains>/<train or test>; "
            f"domains are {', '.join(DOMAINS)}, several joined by +"
        )
    if cfg.annotations is None:
        raise UserError("dataset.annotations: null; name the folder of SENTRY's lists")
    lists = Path(cfg.annotations).expanduser()
    found = [_listed(lists / f"{d}_{part}_mini.txt", classes) for d in dict.fromkeys(domains.split("+"))]
    listed = pd.concat(found, ignore_index=True)
    root = Path(cfg.root).expanduser()
    listed = listed.assign(file=[str(root / path) for path in listed["path"]])
    return Labelled.of_files(listed, classes, split.path)


def _listed(file: Path, classes: list[str]) -> pd.DataFrame:
    """path and label of every line `<domain>/<class>/<image> <label number>`."""
    if not file.is_file():
        raise UserError(f"{file} does not exist")
    rows = []
    for number, line in enumerate(file.read_text(errors="replace").splitlines(), start=1):
        fields = line.split()
        folders = fields[0].split("/") if fields else []
        if len(fields) != 2 or len(folders) != 3:
            raise UserError(f"{file} line {number}: {line!r} is not <domain>/<class>/<image> <label>")
        path, label = fields
        if folders[1] not in classes or label != str(classes.index(folders[1])):
            right = f"label {classes.index(folders[1])}" if folders[1] in classes else "none"
            raise UserError(f"{file} line {number}: {line!r}, but by dataset.classes {folders[1]} is {right}")
        rows.append((path, folders[1]))
    return pd.DataFrame(rows, columns=["path", "label"])
