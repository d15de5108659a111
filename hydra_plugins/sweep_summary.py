"""What Hydra calls around jobs; imports what is heavy only when called."""

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

POINTER = "run.txt"
"""In a job's folder of a sweep: the directory of its run."""


class SweepSummary(Callback):
    """At the end of a sweep, one table of its runs, wherever the launcher ran them."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Read back the run that each job points at; a staged sweep has shown its own table."""
        if "sweep" in config:
            return
        from daft.report import tables

        jobs = Path(config.hydra.sweep.dir).glob(f"*/{POINTER}")
        ordered = sorted(jobs, key=lambda p: int(p.parent.name) if p.parent.name.isdigit() else 0)
        tables.show([Path(p.read_text()) for p in ordered], "Sweep")
