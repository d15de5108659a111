"""The state of runs, from their directories alone: also of those that compute at the moment."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from daft import records
from daft.errors import UserError

State = Literal["finished", "diverged", "running", "interrupted", "failed"]


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


def look(runs: Path) -> list[RunState]:
    """The state of every run below a folder, by name; raises UserError if there is no run."""
    folders = [path for path in sorted(runs.glob("*")) if re.search(r"-[0-9a-f]{12}$", path.name)]
    if not folders:
        raise UserError(f"{runs}: no runs below this folder")
    return [_look(folder) for folder in folders if folder.is_dir()]


def _look(folder: Path) -> RunState:
    # The claim first: a run that ends between two looks has then left its record.
    claimed = records.is_claimed(folder)
    try:
        record = records.read(folder)
    except UserError as error:
        return RunState(folder.name, "failed", error=str(error))
    if record is not None:
        return RunState(folder.name, record["status"])
    progress = _read(folder / records.CHECKPOINTS / records.PROGRESS)
    epoch, epochs = (int(progress[key]) for key in ("epoch", "epochs")) if progress else (0, None)
    if claimed:
        left = (progress["epochs"] - progress["epoch"]) * progress["seconds"] if progress else None
        return RunState(folder.name, "running", epoch, epochs, left)
    error = folder / records.ERROR
    if error.exists():
        lines = error.read_text().strip().splitlines()
        return RunState(folder.name, "failed", epoch, epochs, error=lines[-1] if lines else "")
    return RunState(folder.name, "interrupted", epoch, epochs)


def _read(file: Path) -> dict[str, float] | None:
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:  # before the first epoch has ended, or just removed with its folder
        return None
