"""All that is known of runs: their records, and what was measured later, in files beside these."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
from pydantic import AfterValidator, Field, TypeAdapter
from typing_extensions import TypedDict

from daft.common import progress
from daft.common.errors import UserError
from daft.common.files import read_json
from daft.data import corruptions
from daft.data.corruptions import CORRUPTIONS, SEVERITIES
from daft.runs import layout, records

FORMAT = 1
"""Raised when the layout of a result changes."""

FILE = "robustness-{}.json"
"""Beside the record, for each set of corrupted images and precision."""

EVALUATION = "evaluation-{}.json"
"""Beside the record, for each further OOD set and precision."""

MEAN = "mce"
"""The plain mean over the corruptions, which the paper calls so; not normalised by another network."""

Kind = Literal["cifar10_c", "generated"]
"""Corrupted images as published, or generated from a run's ID images."""

KINDS: tuple[Kind, ...] = get_args(Kind)

Count = Annotated[int, Field(gt=0)]


class Result(TypedDict):
    """What is read of a result."""

    kind: Kind
    identity: Annotated[list[Any], Field(min_length=1)]
    precision: str
    images: Count
    whole: Count
    errors: dict[str, dict[str, Annotated[float, Field(ge=0, le=100)] | None]]
    """in percent, by corruption and severity; None: not finite"""
    seconds: float


class Evaluation(TypedDict):
    """What is read of the result on a further OOD set."""

    split: layout.Name
    precision: str
    images: Count
    metrics: layout.Metrics
    per_class: layout.ByClass | None
    distortion: layout.Distortion | None


EVALUATED = TypeAdapter(Evaluation)


def _of_every_corruption(result: Result) -> Result:
    if lacking := [name for name in CORRUPTIONS if name not in result["errors"]]:
        raise ValueError(f"errors of {lacking[0]} are missing")
    return result


RESULT = TypeAdapter(Annotated[Result, AfterValidator(_of_every_corruption)])


def read(file: Path) -> dict[str, Any] | None:
    """A result, whole or begun; raises UserError if the file is none of this version."""
    return read_as(file, RESULT, FORMAT)


def read_evaluation(file: Path) -> dict[str, Any] | None:
    """The result on a further OOD set; raises as `read`."""
    return read_as(file, EVALUATED, FORMAT)


def read_as(file: Path, kind: TypeAdapter[Any], number: int) -> dict[str, Any] | None:
    """What is measured of a run, in a file laid out as `kind` of this format; else as `read`."""
    try:
        result = read_json(file)
        found = result.get("format") if isinstance(result, dict) else None
        if found != number:
            raise UserError(f"{file}: result of format {found!r}; this version reads {number}")
        layout.require(kind, result)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{file} is no result ({error}); move it away to evaluate again") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror})") from error
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
            for result in _beside(directory, FILE, read):
                if _is_current(result, record, images):
                    record["metrics"] |= metrics(result)
                    of_kind = {key: result[key] for key in ("images", "whole")}
                    record["corrupted"] = record.get("corrupted", {}) | {result["kind"]: of_kind}
            for result in _beside(directory, EVALUATION, read_evaluation):
                _add_set(result, record)
            loaded.append(record)
    return records.without_superseded(loaded)


def _beside(
    directory: Path, name: str, reader: Callable[[Path], dict[str, Any] | None]
) -> Iterator[dict[str, Any]]:
    """The results beside a record, the newest last; what is none is named on stderr."""
    for file in sorted(directory.glob(name.format("*")), key=lambda file: file.lstat().st_mtime_ns):
        try:
            result = reader(file)
        except UserError as error:
            progress.warn_left_out(error)
            continue
        if result:
            yield result


def _add_set(result: dict[str, Any], record: dict[str, Any]) -> None:
    """Show an OOD set as one of the run's own, which it is not: the OOD mean stays what it is."""
    split = result["split"]
    identity = record.get("identity")
    if identity is None or result["precision"] != identity["training"]["precision"]:
        return
    if split in identity["dataset"]["images"]:  # another of the same name
        return
    record["metrics"] |= result["metrics"]
    for key in ("per_class", "distortion"):
        if result[key]:
            record[key] = record.get(key, {}) | {split: result[key]}


def _is_current(result: dict[str, Any], record: dict[str, Any], images: int | None) -> bool:
    return (
        result["images"] == (images or result["whole"])
        and "identity" in record
        and result["precision"] == record["identity"]["training"]["precision"]
        and (result["kind"] != "generated" or result["identity"][0] == corruptions.VERSION)
    )
