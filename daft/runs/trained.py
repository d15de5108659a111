"""Runs that are trained already: what moves no weight is no part of what must be trained again."""

import os
import shutil
from collections.abc import Iterable, Mapping
from glob import escape
from pathlib import Path
from typing import Any

from daft.common.errors import UserError
from daft.common.files import write_atomically
from daft.config.schema import Config
from daft.runs import mistakes, records
from daft.runs.measured import Measured


def training_identity(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What of a run's identity moves its weights: all but its OOD sets, which are only evaluated."""
    dataset = dict(identity["dataset"])
    ood = dataset.pop("ood")
    dataset.pop("ood_mean", None)
    dataset["images"] = {name: of for name, of in dataset["images"].items() if name not in ood}
    return {**identity, "dataset": dataset}


def find(config: Config, identity: Mapping[str, Any]) -> tuple[Path, dict[str, Any]] | None:
    """A run that ends in the same weights, and its record: of several the one with most OOD sets in common.

    It is looked for among the runs of this network, method and seed by name, for every record is read. One
    that diverged is as good; of others the weights must have been kept.
    """
    wanted, splits = training_identity(identity), same_images(identity)
    names = escape(f"{config.backbone.name}-{config.method.short_name}-s{config.seed}".replace("/", "_"))
    found: list[tuple[int, Path, dict[str, Any]]] = []
    for directory in sorted(Path(config.paths.runs).glob(f"*-{names}-*")):
        try:
            record = records.read(directory)
        except UserError:  # whoever reads it otherwise names it
            continue
        if record is None or not _is_told(record):
            continue
        kept = record["status"] == "diverged" or (directory / records.MODEL).exists()
        if kept and training_identity(record["identity"]) == wanted:
            found.append((len(splits.items() & same_images(record["identity"]).items()), directory, record))
    best = max(found, key=lambda one: one[0], default=None)
    return best and best[1:]


def _is_told(record: Mapping[str, Any]) -> bool:
    return "ood" in record.get("identity", {}).get("dataset", {})


def same_images(identity: Mapping[str, Any]) -> dict[str, str]:
    """By evaluation split what tells its pixels from those of any other: fingerprint, shift, transform."""
    dataset = identity["dataset"]
    keys = ("eval_transform", "cache_side", "exif_orientation", "scaled_decoding")
    around = repr([dataset.get(key) for key in keys])
    return {
        name: f"{fingerprint} {dataset['ood'].get(name, [])!r} {around} {dataset.get('transparency')}"
        for name, fingerprint in dataset["images"].items()
        if name != "train"
    }


def reusable(record: Mapping[str, Any], identity: Mapping[str, Any], measure: str) -> list[str]:
    """The splits that a run of this identity shares with a recorded one, and that this one has measured."""
    now, then = same_images(identity), same_images(record["identity"])
    return [name for name in now if now[name] == then.get(name) and f"{name}/{measure}" in record["metrics"]]


def measured_in(directory: Path, record: Mapping[str, Any], splits: Iterable[str]) -> Measured:
    """What a finished run has measured on these splits."""
    found, kept = Measured(), mistakes.read(directory)
    for name in splits:
        found.metrics |= {key: of for key, of in record["metrics"].items() if key.startswith(f"{name}/")}
        for mine, theirs in (
            (found.distortion, record["distortion"]),
            (found.per_class, record.get("per_class", {})),
            (found.predictions, kept),
        ):
            if name in theirs:
                mine[name] = theirs[name]
    return found


def take_over(file: Path, to: Path) -> None:
    """The same file by another name, or a copy where the disk has no links."""
    to.unlink(missing_ok=True)
    try:
        os.link(file, to)
    except OSError:
        write_atomically(to, lambda path: shutil.copyfile(file, path))
