"""The state of runs, from their directories and what sweeps leave there: also of those at work."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from filelock import FileLock
from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from daft.common import progress
from daft.common.errors import BusyError, UserError, shown
from daft.common.files import read_json, read_text, write_atomically
from daft.runs import layout, records

State = Literal["finished", "diverged", "running", "waiting", "interrupted", "failed"]

SWEEPS, QUEUE = "sweeps", "queue.json"
"""Folder of sweeps below that of their runs, and in each what its driver has not started yet, or given up."""

NOTHING: dict[str, Any] = {"runs": [], "waiting": [], "failed": {}}
"""That a sweep says which is no staged one."""


class Shown(TypedDict):
    """What is in a QUEUE."""

    runs: list[layout.Text]
    waiting: list[layout.Text]
    failed: dict[layout.Text, layout.Text]


class Progress(TypedDict):
    """What is in `records.PROGRESS`."""

    epoch: Annotated[int, Field(ge=0)]
    epochs: Annotated[int, Field(ge=1)]
    seconds: Annotated[float, Field(ge=0)]


SHOWN, PROGRESS = TypeAdapter(Shown), TypeAdapter(Progress)


@dataclass(frozen=True)
class RunState:
    """One run."""

    name: str
    """of its directory"""
    state: State
    epoch: int = 0
    """the last whole one"""
    epochs: int | None = None
    """None before the first has ended"""
    seconds_left: float | None = None
    """of training, at the pace of the last epoch"""
    error: str = ""
    """in one line, of a failed run"""


class Queue:
    """Which runs a sweep has, which of them wait for a place, and which have failed, in its own folder."""

    def __init__(self, sweep: Path) -> None:
        self._file = sweep / QUEUE
        self._shown: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._claim = FileLock(self._file.parent / records.LOCK)
        self._claim.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self._claim.release()

    def show(self, runs: list[str], waiting: list[str], failed: Mapping[str, str]) -> None:
        """Say what there is, what of it waits, and what has failed how, by the names of directories."""
        shown = {"runs": runs, "waiting": waiting, "failed": dict(failed)}
        if shown != self._shown:
            write_atomically(self._file, json.dumps(shown))
            self._shown = shown


def list_runs(runs: Path) -> list[RunState]:
    """The state of every run below a folder, by name, then what waits; raises UserError if there is none."""
    found = [_look(folder) for folder in sorted(runs.glob("*")) if records.run_id(folder) and folder.is_dir()]
    waiting: dict[str, RunState] = {}
    failed: dict[str, RunState] = {}
    for sweep in sorted(path for path in runs.glob(f"{SWEEPS}/*") if path.is_dir()):  # by their start
        queue = _read(sweep / QUEUE, SHOWN) or NOTHING
        if records.is_locked(sweep):  # by its driver
            waiting |= {name: RunState(name, "waiting") for name in queue["waiting"]}
        for name in queue["runs"]:  # what failed before is tried anew
            failed.pop(name, None)
        failed |= {name: RunState(name, "failed", error=error) for name, error in queue["failed"].items()}
    known = {run.name for run in found}
    found += [run for name, run in failed.items() if name not in known]
    # One that was interrupted, or failed, waits again.
    ended = {run.name for run in found if run.state in ("finished", "diverged", "running")}
    found = [run for run in found if run.name in ended or run.name not in waiting]
    found += [run for name, run in waiting.items() if name not in ended]
    if not found:
        raise UserError(f"{runs}: no runs in this folder; name the one that paths.runs named")
    return found


def failed_runs(runs: Path) -> list[Path]:
    """The directories of runs that failed and hold no record; a damaged record is for a person to see."""
    folders = (runs / run.name for run in list_runs(runs) if run.state == "failed")
    return [folder for folder in folders if folder.is_dir() and not os.path.lexists(folder / records.RECORD)]


def remove(folder: Path) -> bool:
    """Remove the directory of a failed run, unless a process has taken it up again."""
    try:
        with records.lock_run(folder):
            if os.path.lexists(folder / records.RECORD) or not (folder / records.ERROR).exists():
                return False
            shutil.rmtree(folder)
    except BusyError:
        return False
    return True


def forget_failures(runs: Path) -> None:
    """Take what failed before it had a directory from the lists of sweeps that have ended."""
    for sweep in runs.glob(f"{SWEEPS}/*"):
        queue = _read(sweep / QUEUE, SHOWN) if sweep.is_dir() else None
        if queue and queue["failed"] and not records.is_locked(sweep):
            write_atomically(sweep / QUEUE, json.dumps(queue | {"failed": {}}))


def _look(folder: Path) -> RunState:
    # The claim first: a run that ends between two looks has then left its record.
    claimed = records.is_locked(folder)
    try:
        record = records.read(folder)
    except UserError as error:
        return RunState(folder.name, "failed", error=str(error))
    if record is not None:
        return RunState(folder.name, record["status"])
    done = _read(folder / records.CHECKPOINTS / records.PROGRESS, PROGRESS)
    epoch, epochs = (done["epoch"], done["epochs"]) if done else (0, None)
    if claimed:
        left = (done["epochs"] - done["epoch"]) * done["seconds"] if done else None
        return RunState(folder.name, "running", epoch, epochs, left)
    error = folder / records.ERROR
    if error.exists():
        return RunState(folder.name, "failed", epoch, epochs, error=_last_line(error))
    return RunState(folder.name, "interrupted", epoch, epochs)


def _last_line(error: Path) -> str:
    """Of a traceback, the error itself."""
    try:
        lines = read_text(error, errors="replace").strip().splitlines()
    except (ValueError, OSError) as problem:
        return f"{error} cannot be read ({problem})"
    return shown(lines[-1]) if lines else ""


def _read(file: Path, expected: TypeAdapter[Any]) -> Any:
    """What a file of JSON says; None if it is not there yet, or was just removed, or is named as damaged."""
    try:
        found = read_json(file)
        layout.require(expected, found)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, OSError) as error:
        progress.warn_left_out(f"{file}: {error}")
        return None
    return found
