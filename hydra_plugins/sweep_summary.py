"""The table at the end of a sweep of Hydra's own; Hydra imports this at every start, so pandas waits."""

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from daft.sweep.jobs import ERROR, POINTER


class SweepSummary(Callback):
    """At the end of a sweep, print one table of its runs, wherever the launcher ran them."""

    def __init__(self) -> None:
        self._before: dict[Path, int] = {}

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Note what an earlier sweep has left in the folder."""
        with suppress(OmegaConfBaseException):  # a folder that cannot be composed: Hydra says so next
            self._before = _left_by_jobs(config)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Read the run that each job points at, exit with 1 if one failed; a staged sweep has its own."""
        if "sweep" in config:
            return
        from daft.report import tables

        left = [path for path, time in _left_by_jobs(config).items() if self._before.get(path) != time]
        if not left:
            empty = ", ".join(word for word in config.hydra.overrides.task if "(" in word)
            sys.exit(f"train.py: {empty or 'the sweep'}: no value, so there is no run")
        ordered = sorted(left, key=lambda p: int(p.parent.name) if p.parent.name.isdecimal() else 0)
        pointers = [path for path in ordered if path.name == POINTER]
        if pointers:
            tables.show([run for pointer in pointers if (run := _pointed(pointer))], "Sweep")
        if failed := len(left) - len(pointers):
            if str(config.hydra.launcher._target_).endswith("Jobs"):  # which said them elsewhere
                for path in ordered:
                    if path.name == ERROR:
                        print(f"train.py: {path.read_text(encoding='utf-8')}", file=sys.stderr)
            sys.exit(f"train.py: {failed} of {len(left)} runs failed, for the reasons above")


def _left_by_jobs(config: DictConfig) -> dict[Path, int]:
    """What jobs have left in the folder of a sweep, a pointer or an error each, and when in ns."""
    jobs = Path(config.hydra.sweep.dir)
    found = [path for name in (POINTER, ERROR) for path in jobs.glob(f"*/{name}")]
    return {path: path.lstat().st_mtime_ns for path in found}


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
