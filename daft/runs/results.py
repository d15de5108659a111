"""All that is known of runs: their records, and what was measured later, in files beside these."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from daft.common import progress
from daft.common.errors import UserError
from daft.data import corruptions
from daft.data.corruptions import CORRUPTIONS, SEVERITIES
from daft.runs import records

FORMAT = 1
"""Raised when the layout of a result changes."""

FILE = "robustness-{}.json"
"""Beside the record, for each set of corrupted images and precision."""

MEAN = "mce"
"""The plain mean over the corruptions, which the paper calls so; not normalised by another network."""

Kind = Literal["cifar10_c", "generated"]
"""Corrupted images as published, or generated from a run's ID images."""

KINDS: tuple[Kind, ...] = get_args(Kind)


def read(file: Path) -> dict[str, Any] | None:
    """A result, whole or begun; raises UserError if the file is none of this version."""
    if not file.exists():
        return None
    try:
        result = json.loads(file.read_text())
        if result["format"] != FORMAT:
            raise UserError(f"{file}: result of format {result['format']}; this version reads {FORMAT}")
        for name in CORRUPTIONS:
            dict(result["errors"][name])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is no result ({error!r}); move it away to evaluate again") from error
    return result


def metrics(result: dict[str, Any]) -> dict[str, float]:
    """`corruption/kind_error`, its mean over severities, and the mean of all; none of a result just begun."""
    errors = {name: [found.get(str(s)) for s in SEVERITIES] for name, found in result["errors"].items()}
    if any(error is None for found in errors.values() for error in found):
        return {}
    means = {name: float(np.mean(found)) for name, found in errors.items()}
    means[MEAN] = float(np.mean([*means.values()]))
    return {f"{name}/{result['kind']}_error": error for name, error in means.items()}


def load(directories: Iterable[Path], images: int | None = None) -> list[dict[str, Any]]:
    """`records.load` with the errors of each run among its metrics: of whole sets, or of so many images.

    Only those in the run's own precision, of corruptions as they are generated now; of several the newest.
    The record's `corrupted` says, by kind, of how many `images` in each block, of a `whole` of how many.
    """
    loaded = []
    for directory in directories:
        for record in records.load([directory]):
            for file in sorted(directory.glob(FILE.format("*")), key=lambda file: file.stat().st_mtime_ns):
                try:
                    result = read(file)
                except UserError as error:
                    progress.warn_left_out(error)
                    continue
                if result and _is_current(result, record, images):
                    record["metrics"] |= metrics(result)
                    of_kind = {key: result[key] for key in ("images", "whole")}
                    record["corrupted"] = record.get("corrupted", {}) | {result["kind"]: of_kind}
            loaded.append(record)
    return loaded


def _is_current(result: dict[str, Any], record: dict[str, Any], images: int | None) -> bool:
    return (
        result["images"] == (images or result["whole"])
        and result["precision"] == record["identity"]["training"]["precision"]
        and (result["kind"] != "generated" or result["identity"][0] == corruptions.VERSION)
    )
