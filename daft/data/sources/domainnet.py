"""DomainNet as published, by the lists of 40 classes of SENTRY (Prabhu et al. 2021)."""

from pathlib import Path

from daft.common.errors import UserError
from daft.config.schema import DatasetConfig, SplitConfig
from daft.data.labelled import ImageFile, Labelled
from daft.data.tables import read_lines

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
    root, lists = Path(cfg.root).expanduser(), Path(cfg.annotations).expanduser()
    listed = [
        ImageFile(path, root / path, label)
        for domain in dict.fromkeys(domains.split("+"))
        for path, label in _listed(lists / f"{domain}_{part}_mini.txt", classes)
    ]
    return Labelled.of_files(listed, classes, split.path)


def _listed(file: Path, classes: list[str]) -> list[tuple[str, str]]:
    """path and class of every line `<domain>/<class>/<image> <label number>`."""
    rows = []
    for number, line in read_lines(file):
        fields = line.split()
        folders = fields[0].split("/") if fields else []
        if len(fields) != 2 or len(folders) != 3:
            raise UserError(f"{file} line {number}: {line!r} is not <domain>/<class>/<image> <label>")
        path, label = fields
        if folders[1] not in classes or label != str(classes.index(folders[1])):
            right = f"label {classes.index(folders[1])}" if folders[1] in classes else "none"
            raise UserError(f"{file} line {number}: {line!r}, but by dataset.classes {folders[1]} is {right}")
        rows.append((path, folders[1]))
    return rows
