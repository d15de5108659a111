"""The driver of a staged sweep: starts runs as they become ready, until every cell has ended.

It knows nothing of Hydra: cells come with their configurations, and a `Launcher` starts their jobs.
"""

import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from daft import experiment
from daft.common.errors import UserError
from daft.common.files import digest
from daft.config.check import to_dict
from daft.config.overrides import rewrite_overrides
from daft.config.schema import SweepConfig
from daft.runs import identity, records, status
from daft.sweep.cells import Cell, SweepRun, delete_unselected_weights, growing, stage_runs, unfinished
from daft.sweep.jobs import JobResult, failure
from daft.sweep.protocol import CellState, Trial

SHORTEST_PAUSE, LONGEST_PAUSE = 0.02, 2.0
"""Seconds between looks at jobs: at first, and after a while in which none ended."""


class Job(Protocol):
    """A run that a launcher has started."""

    def done(self) -> bool: ...
    def result(self) -> JobResult: ...


class Launcher(Protocol):
    """Starts jobs, here or on a cluster."""

    @property
    def slots(self) -> int | None:
        """Jobs at a time; None: any number."""
        ...

    def submit(self, overrides: Sequence[list[str]]) -> Sequence[Job]:
        """Start a job for each list of overrides, at most as many as there are free slots."""
        ...

    def stop(self) -> None:
        """The driver ends: end its jobs too, or leave them to a cluster."""


class Driver:
    """Runs the cells of a sweep together, so that no cell waits for another while a slot is free."""

    def __init__(self, cells: list[Cell], options: SweepConfig, launcher: Launcher, folder: Path) -> None:
        self.cells, self.options, self.launcher, self.folder = cells, options, launcher, folder
        self._runs: dict[str, SweepRun] = {}

    def states(self) -> list[CellState]:
        """The state of each cell; its known trials have runs, and finished ones their recorded outcomes."""
        states = []
        for cell in self.cells:
            state = cell.state()
            while new := [trial for trial in state.trials if trial not in cell.runs]:
                cell.runs |= {trial: self._run(cell, trial) for trial in new}
                state = cell.state()
            states.append(state)
        return states

    def run(self) -> list[CellState]:
        """Run every cell to its end; returns the states of the cells there.

        Raises UserError if runs cannot be written.
        """
        states = self.states()
        if unfinished(self.cells, states):
            left = self._total(states) - self._ended()
            more = ", more where the best value is at the edge of its grid (sweep.extend)"
            more = more if growing(self.cells, states) else ""
            print(f"{left} run(s) to compute, {self._ended()} done{more}", flush=True)
            for folder in {cell.config.paths.runs for cell in self.cells}:
                Path(folder).mkdir(parents=True, exist_ok=True)  # one error instead of one per run
            try:
                with status.Queue(self.folder) as queue:
                    states = self._compute(queue)
            finally:
                self.launcher.stop()
        if self.options.checkpoints == "selected":
            delete_unselected_weights(self.cells, states)
        return states

    def settle(self, run: SweepRun, job: Job) -> None:
        """Take the outcome of a run from its job; raises UserError if the disk takes no more runs."""
        try:
            result = job.result()
        except Exception as error:  # a worker that died, say
            result = failure(error)
        if result.disk_error:
            raise UserError(f"{result.error}; what has finished is kept, and the same command goes on")
        if result.directory:
            run.directory = Path(result.directory)
            run.read_outcome()
            if run.outcome is None and not result.busy:
                result = JobResult(error=f"its record in {run.directory} cannot be seen from here")
        if result.error and not result.busy:
            run.count_failure(result.error)
            again = "" if run.outcome else "; it is tried again"
            print(f"failed: {run.name}: {result.error}{again}", flush=True)
        elif result.stdout:
            states = self.states()
            total = f"{self._total(states)}{' or more' if growing(self.cells, states) else ''}"
            print(f"[{self._ended()} of {total}] {result.stdout}", end="", flush=True)

    def _compute(self, queue: status.Queue) -> list[CellState]:
        jobs: dict[SweepRun, Job] = {}
        pause = SHORTEST_PAUSE
        while to_compute := unfinished(self.cells, states := self.states()):
            limits = [limit - len(jobs) for limit in (self.launcher.slots, self.options.max_jobs) if limit]
            waiting = [run for run in to_compute if run not in jobs]
            ready = list(itertools.islice((r for r in waiting if r.is_ready()), min(limits, default=None)))
            self._show(queue, [run for run in waiting if run not in ready])
            if ready:
                jobs |= zip(ready, self.launcher.submit([run.overrides for run in ready]), strict=True)
            ended = [run for run, job in jobs.items() if job.done()]
            for run in ended:
                self.settle(run, jobs.pop(run))
            if ended and self.options.checkpoints == "selected":
                delete_unselected_weights(self.cells, self.states())
            pause = SHORTEST_PAUSE if ready or ended else min(1.2 * pause, LONGEST_PAUSE)
            if not ended:
                time.sleep(pause)
        self._show(queue, [])
        return states

    def _run(self, cell: Cell, trial: Trial) -> SweepRun:
        """The run of a trial: the same object for all cells that share it."""
        config = cell.configure(trial)
        before, method = asdict(cell.config.method), asdict(config.method)
        keys = [key for key in method if method[key] != before[key]]
        keys += ["lr_head_unit"] if "lr_head" in keys and method["lr_head_unit"] else []  # of `lr_head: auto`
        changed = [f"method.{key}={json.dumps(method[key])}" for key in keys]
        overrides = [*cell.overrides, *rewrite_overrides([*changed, f"seed={trial.seed}"])]
        try:
            directory = experiment.directory_of(config)
            key = f"{directory.parent}/{records.run_id(directory)}"
        except UserError:  # no GPU or no images here, as on a login node: only the settings tell
            directory, settings = None, to_dict(config)
            facts = identity.run_identity(config, config.training.precision, {}, "")
            key = digest([settings["dataset"], settings["backbone"], facts])
        run = self._runs.setdefault(key, SweepRun(f"{cell} {trial}", overrides, config, directory))
        run.read_outcome()
        return run

    def _total(self, states: Sequence[CellState]) -> int:
        """All runs, with those of stages to come: a total that grows only where a grid is `growing`."""
        return sum(stage.size for stage in stage_runs(self.cells, states))

    def _ended(self) -> int:
        return sum(run.outcome is not None for run in self._runs.values())

    def _show(self, queue: status.Queue, waiting: list[SweepRun]) -> None:
        runs = self._runs.values()
        failed = {run.directory_name: run.error for run in runs if run.has_failed}
        queue.show([run.directory_name for run in runs], [run.directory_name for run in waiting], failed)
