"""ImageNet (ILSVRC 2012) as a person unpacked it, with the superclasses of BREEDS as classes.

Living-17, Entity-30, Entity-13 and Nonliving-26 (Santurkar et al. 2021): the subclasses of each superclass
are divided into a source domain, which is trained on, and a target domain.
"""

import json
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Literal, TypedDict, cast

import scipy.io

from daft.common.errors import UserError, join_first
from daft.config.schema import DatasetConfig, SplitConfig
from daft.data.folders import LeftOut, class_folders, image_files
from daft.data.labelled import ImageFile, Labelled
from daft.data.tables import read_lines, read_table

FOLDERS = (".", "ILSVRC/Data/CLS-LOC")
"""Where train and val lie below the root: put there by hand, or as Kaggle's archive has them."""

LABEL_FOLDERS = (".", "val", "ILSVRC2012_devkit_t12/data")
"""Where the labels of an unsorted val lie below the root."""

WNID = re.compile(r"n\d{8}")

Domain = Literal["source", "target"]


class Superclass(TypedDict):
    """A class and the WordNet ids of its subclasses in either domain."""

    name: str
    wnid: str
    source: list[str]
    target: list[str]


@cache
def hierarchies() -> dict[str, list[Superclass]]:
    """Superclasses in label order, per hierarchy."""
    return json.loads(Path(__file__).with_name("breeds.json").read_text(encoding="utf-8"))["hierarchies"]


def classes(cfg: DatasetConfig) -> list[str]:
    """Names of the superclasses of the training set's hierarchy, in label order; raises UserError if others
    are configured.
    """
    hierarchy = _parsed(cfg, cfg.train, "train")[0]
    names = [row["name"] for row in hierarchies()[hierarchy]]
    if cfg.classes not in (None, names):
        raise UserError(
            f"dataset.classes: {cfg.classes}, but they are the superclasses of {hierarchy}; use null"
        )
    return names


def read_split(cfg: DatasetConfig, split: SplitConfig, name: str, classes: list[str]) -> Labelled:
    """path `<hierarchy>/<source or target>/<train or val>`; raises UserError for another one, and if a
    subclass has no image. Folders are found by WordNet id, and nothing below the root is changed.
    """
    hierarchy, domain, part = _parsed(cfg, split, name)
    root = Path(cfg.root).expanduser()
    folder = next((root / at / part for at in FOLDERS if (root / at / part).is_dir()), None)
    if folder is None:
        raise UserError(f"{root} has no folder {part} or {FOLDERS[1]}/{part}; set dataset.root")
    labels = {wnid: row["name"] for row in hierarchies()[hierarchy] for wnid in row[domain]}
    left_out = LeftOut()
    folders = {path.name for path in class_folders(folder, left_out)}
    if part == "val" and not any(map(WNID.fullmatch, folders)):
        found = [(wnid, folder / image) for image, wnid in _val_labels(cfg, folder) if wnid in labels]
    else:
        found = [
            (wnid, file)
            for wnid in labels
            if wnid in folders
            for file in image_files(folder / wnid, left_out, lambda name: name.lower().endswith(".jpeg"))
        ]
        left_out.say(f"dataset.{name}", folder, len(found))
    if lost := sorted(labels.keys() - {wnid for wnid, _ in found}):
        raise UserError(
            f"{folder} has no image of {len(lost)} of {len(labels)} subclasses: {join_first(lost)}; expected "
            f"{part}/<WordNet id>/*.JPEG" + (", or all of val in one folder" if part == "val" else "")
        )
    least, held = split.least_per_folder or 0, Counter(wnid for wnid, _ in found)
    if few := [f"{wnid} ({held[wnid]})" for wnid in sorted(labels) if held[wnid] < least]:
        raise UserError(
            f"{folder} has fewer than {least} images of {join_first(few)}; unpack them again, or set "
            f"dataset.{name}.least_per_folder=null"
        )
    # One name per image, whether val is sorted into folders or not, so that one set has one identity.
    listed = [ImageFile(f"{wnid}/{file.name}", file, labels[wnid]) for wnid, file in found]
    return Labelled.of_files(listed, classes, split.path)


def _parsed(cfg: DatasetConfig, split: SplitConfig, name: str) -> tuple[str, Domain, str]:
    """(hierarchy, domain, part) of a split's path."""
    found = re.fullmatch(rf"({'|'.join(hierarchies())})/(source|target)/(train|val)", split.path)
    if not found:
        raise UserError(
            f"dataset.{name}.path: {split.path!r} is not <hierarchy>/<source or target>/<train or val>; "
            f"hierarchies are {', '.join(hierarchies())}"
        )
    hierarchy, domain, part = found.groups()
    if not cfg.train.path.startswith(f"{hierarchy}/"):
        raise UserError(f"dataset.{name}.path: {split.path!r}, but training is on {cfg.train.path!r}")
    return hierarchy, cast(Domain, domain), part


def _val_labels(cfg: DatasetConfig, folder: Path) -> list[tuple[str, str]]:
    """File name and WordNet id of every validation image, from the first file of labels there is."""
    given = Path(cfg.annotations or cfg.root).expanduser()
    candidates = [given / at / name for name in LABEL_READERS for at in LABEL_FOLDERS]
    if given.name in LABEL_READERS:
        candidates = [given]
    file = next((candidate for candidate in candidates if candidate.is_file()), None)
    if file is None:
        raise UserError(
            f"{folder} is not sorted into folders, and {given} has no file of its labels: "
            f"{', '.join(LABEL_READERS)}; set dataset.annotations to one"
        )
    labels = LABEL_READERS[file.name](file)
    if wrong := [wnid for _, wnid in labels if not WNID.fullmatch(wnid)]:
        raise UserError(f"{file}: {wrong[0]!r} is no WordNet id; expected one like n01440764 for each image")
    # One line too many or too few would move the labels of all images after it.
    named, held = {image for image, _ in labels}, {p.name for p in folder.glob("ILSVRC2012_val_*.JPEG")}
    if odd := sorted(named ^ held):
        raise UserError(
            f"{file} has {len(labels):,} labels for the {len(held):,} images of {folder}: "
            f"{odd[0]} is " + ("not there" if odd[0] in named else "not named")
        )
    return labels


def _kaggle(file: Path) -> list[tuple[str, str]]:
    """ImageId,PredictionString, the latter a WordNet id and a box, for each object of that class."""
    rows = read_table(file, ["ImageId", "PredictionString"]).rows
    return [(f"{image.strip()}.JPEG", prediction.strip().partition(" ")[0]) for image, prediction in rows]


def _synsets(file: Path) -> list[tuple[str, str]]:
    """One WordNet id a line, in the order of the images."""
    return _numbered([line.strip() for _, line in read_lines(file)])


def _devkit(file: Path) -> list[tuple[str, str]]:
    """One ILSVRC2012_ID a line, in the order of the images; meta.mat says which WordNet id that is."""
    meta = file.with_name("meta.mat")
    if not meta.is_file():
        what = "is no file" if meta.exists() else "does not exist"
        raise UserError(f"{meta} {what}; it says which class a number of {file.name} is")
    try:
        synsets = scipy.io.loadmat(str(meta), squeeze_me=True)["synsets"]
        wnids = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
    except Exception as error:  # SciPy raises many kinds for damaged files
        raise UserError(f"{meta} is not the devkit's, or damaged ({error})") from error
    numbers = [line.strip() for _, line in read_lines(file)]
    if wrong := [n for n in numbers if not n.isdecimal() or int(n) not in wnids]:
        raise UserError(f"{file}: {wrong[0]!r} is no ILSVRC2012_ID of {meta}")
    return _numbered([wnids[int(n)] for n in numbers])


def _numbered(wnids: list[str]) -> list[tuple[str, str]]:
    return [(f"ILSVRC2012_val_{number:08d}.JPEG", wnid) for number, wnid in enumerate(wnids, start=1)]


LABEL_READERS = {
    "LOC_val_solution.csv": _kaggle,
    "imagenet_2012_validation_synset_labels.txt": _synsets,
    "ILSVRC2012_validation_ground_truth.txt": _devkit,
}
"""Files of labels of validation images, and what reads them."""
