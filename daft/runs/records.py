"""One run, one directory, one record: found by the run's id, written whole or not at all."""

import fcntl
import json
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from daft.common import progress
from daft.common.errors import BusyError, UserError
from daft.common.files import PARTIAL, write_atomically

if TYPE_CHECKING:
    from daft.config.schema import Config

FORMAT = 1
"""Raised when the layout of a record changes."""

PROTOCOL = 1
"""Raised when the same configuration would give other numbers."""

RECORD = "record.json"
MODEL = "model.safetensors"
"""Weights of the selected epoch, beside the record."""

LOCK = ".lock"
"""Held by the process that is at the run; in the folder of runs, by the one that makes a directory."""

CHECKPOINTS = "checkpoints"
"""Folder of an unfinished run's state, removed once the record is written."""

PROGRESS = "progress.json"
"""In it, for status.py: the last whole epoch, of how many, and its seconds."""

ERROR = "error.txt"
"""In the directory of a run that failed: why; gone when it is tried again."""

REQUIRED_KEYS = {"run": str, "status": str, "best_epoch": int | None, "history": list}
REQUIRED_KEYS |= dict.fromkeys(("config", "metrics", "distortion", "environment", "time"), dict)
"""What tables, figures and reports read of a record."""


def run_directory(config: "Config", run_id: str) -> Path:
    """The run's directory: the one that ends in its id, or a new one that says what it is."""
    runs = Path(config.paths.runs)
    if existing := _called(runs, run_id):
        return existing
    names = (config.dataset.name, config.backbone.name, config.method.name)
    return runs / "-".join([*names, f"s{config.seed}", run_id]).replace("/", "_")


def run_id(directory: Path) -> str | None:
    """The id that a run's directory ends in; None if it is none."""
    found = re.search(r"-([0-9a-f]{12})$", directory.name)
    return found and found[1]


def _called(runs: Path, run_id: str | None) -> Path | None:
    return next(runs.glob(f"*-{run_id}"), None)


@contextmanager
def lock_run(directory: Path) -> Iterator[Path]:
    """The run's directory for this process alone, tidied of what a kill may have left in it.

    It is another one if a process has just made that for the same run by another name. Raises BusyError if
    another process is at it; the claim of a process that dies is gone with it.
    """
    if not directory.exists():
        directory.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(directory.parent / LOCK):
            directory = _called(directory.parent, run_id(directory)) or directory
            directory.mkdir(exist_ok=True)
    try:
        with FileLock(directory / LOCK, timeout=0.5):  # `is_locked` holds it for an instant
            for leftover in directory.rglob(f".*{PARTIAL}"):
                leftover.unlink(missing_ok=True)
            yield directory
    except Timeout:
        raise BusyError(
            f"another process is computing {directory}; wait for it or stop it", directory
        ) from None


def is_locked(directory: Path) -> bool:
    """Whether a process is at this run; also of a folder that cannot be written."""
    try:
        with open(directory / LOCK) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def read(directory: Path) -> dict[str, Any] | None:
    """The record in a run's directory, None if there is none; raises UserError if it is not one."""
    file = directory / RECORD
    if not file.exists():
        return None
    try:
        record = json.loads(file.read_text())
        for key, known in (("format", FORMAT), ("protocol", PROTOCOL)):
            if record[key] != known:
                raise UserError(f"{file}: record of {key} {record[key]}; this version reads {known}")
        for key, kind in REQUIRED_KEYS.items():
            if not isinstance(record[key], kind):
                raise TypeError(f"{key} is {type(record[key]).__name__}")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is not a record ({error!r}); move it away to run again") from error
    return record


def write(directory: Path, record: dict[str, Any]) -> None:
    """Write a record so that a kill leaves none or a whole one; NaN becomes null."""
    content = _without_nan({"format": FORMAT, "protocol": PROTOCOL, **record})
    write_atomically(directory / RECORD, json.dumps(content, indent=1, allow_nan=False) + "\n")


def load(directories: Iterable[Path]) -> list[dict[str, Any]]:
    """The records in run directories, in the order given; one that cannot be used is named on stderr."""
    records = []
    for directory in directories:
        try:
            record = read(directory)
        except (UserError, OSError) as error:
            progress.warn_left_out(error)
            continue
        if record is not None:
            records.append(record)
    return records


def find_runs(folder: Path) -> list[Path]:
    """The directories in a folder of runs that have a record."""
    return sorted(path.parent for path in folder.glob(f"*/{RECORD}"))


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _without_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
