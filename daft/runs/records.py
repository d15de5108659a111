"""One run, one directory, one record: found by the run's id, written whole or not at all."""

import errno
import fcntl
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from daft.common import progress
from daft.common.errors import BusyError, UserError
from daft.common.files import PARTIAL, read_json, write_atomically
from daft.runs import layout

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


def run_directory(config: "Config", run_id: str) -> Path:
    """The run's directory: the one that ends in its id, or a new one that says what it is."""
    runs = Path(config.paths.runs)
    if existing := _called(runs, run_id):
        return existing
    names = (config.dataset.name, config.backbone.name, config.method.short_name)
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
        # Non-blocking: what stands there may be a pipe.
        with open(
            directory / LOCK, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)
        ) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EISDIR, errno.ELOOP):
            raise
    return False


def read(directory: Path) -> dict[str, Any] | None:
    """The record in a run's directory, None if there is none; raises UserError if it is not one."""
    file = directory / RECORD
    try:
        record = read_json(file)
        if not isinstance(record, dict):
            raise ValueError("no object of JSON")
        for key, known in (("format", FORMAT), ("protocol", PROTOCOL)):
            if (found := record.get(key)) != known:
                raise UserError(f"{file}: record of {key} {found!r}; this version reads {known}")
        layout.require(layout.RECORD, record)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise UserError(f"{file} is not a record ({error}); move it away to run again") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror})") from error
    return record


def write(directory: Path, record: dict[str, Any]) -> None:
    """Write a record so that a kill leaves none or a whole one; NaN becomes null."""
    content = without_nan({"format": FORMAT, "protocol": PROTOCOL, **record})
    write_atomically(directory / RECORD, json.dumps(content, indent=1, allow_nan=False) + "\n")


def load(directories: Iterable[Path]) -> list[dict[str, Any]]:
    """The records in run directories, in the order given; one that cannot be used is named on stderr.

    Without those that another one has taken over.
    """
    records = []
    for directory in directories:
        try:
            record = read(directory)
        except UserError as error:
            progress.warn_left_out(error)
            continue
        if record is not None:
            records.append(record)
    return without_superseded(records)


def without_superseded(loaded: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the records of runs that another one has taken over, with all their splits and more."""
    loaded = list(loaded)
    later = {record["weights_from"]["run"]: record for record in loaded if record.get("weights_from")}

    def is_superseded(record: dict[str, Any]) -> bool:
        other = later.get(record["run"])
        return other is not None and _splits(record) <= _splits(other)

    return [record for record in loaded if not is_superseded(record)]


def _splits(record: Mapping[str, Any]) -> set[tuple[str, str]]:
    return {*record.get("identity", {}).get("dataset", {}).get("images", {}).items()}


def find_runs(folder: Path) -> list[Path]:
    """The directories in a folder of runs that have a record."""
    return sorted(path for path in folder.glob("*") if os.path.lexists(path / RECORD))


def without_nan(value: Any) -> Any:
    """Plain data with None in place of what is not finite."""
    if isinstance(value, dict):
        return {str(k): without_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
