"""The table at the end of a sweep of Hydra's own; Hydra imports this at every start, so pandas waits."""

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from daft.sweep.jobs import POINTER


class SweepSummary(Callback):
    """At the end of a sweep, print one table of its runs, wherever the launcher ran them."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Read the run that each job's folder points at; a staged sweep prints its own table."""
        if "sweep" in config:
            return
        from daft.report import tables

        jobs = Path(config.hydra.sweep.dir).glob(f"*/{POINTER}")
        ordered = sorted(jobs, key=lambda p: int(p.parent.name) if p.parent.name.isdecimal() else 0)
        tables.show([run for pointer in ordered if (run := _pointed(pointer))], "Sweep")


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
