"""The table at the end of a sweep of Hydra's own; Hydra imports this at every start, so pandas waits."""

import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from daft.sweep.jobs import POINTER


class SweepSummary(Callback):
    """At the end of a sweep, print one table of its runs, wherever the launcher ran them."""

    def __init__(self) -> None:
        self._before: dict[Path, int] = {}

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Note what an earlier sweep has left in the folder."""
        self._before = _pointers(config)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Read the run that each job points at; a staged sweep prints its own table."""
        if "sweep" in config:
            return
        from daft.report import tables

        jobs = [path for path, time in _pointers(config).items() if self._before.get(path) != time]
        if not jobs:
            empty = ", ".join(word for word in config.hydra.overrides.task if "(" in word)
            sys.exit(f"train.py: {empty or 'the sweep'}: no value, so there is no run")
        ordered = sorted(jobs, key=lambda p: int(p.parent.name) if p.parent.name.isdecimal() else 0)
        tables.show([run for pointer in ordered if (run := _pointed(pointer))], "Sweep")


def _pointers(config: DictConfig) -> dict[Path, int]:
    """The pointers in the folder of a sweep, and when each was written, in ns."""
    return {path: path.lstat().st_mtime_ns for path in Path(config.hydra.sweep.dir).glob(f"*/{POINTER}")}


def _pointed(pointer: Path) -> Path | None:
    """The run's directory that a job's folder points at; None for what points at none, which is named."""
    from daft.common import progress
    from daft.common.files import read_text
    from daft.runs.records import RECORD

    try:
        directory = Path(read_text(pointer, errors="surrogateescape"))
        if not directory.is_absolute() or not (directory / RECORD).exists():
            raise ValueError("it names no run")
    except (ValueError, OSError) as error:
        progress.warn_left_out(f"{pointer}: {error}")
        return None
    return directory
