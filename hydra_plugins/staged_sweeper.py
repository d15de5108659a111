"""The staged sweep as a sweeper of Hydra, so that each of Hydra's launchers can run it.

The protocol is in daft.sweep; here are cells, jobs and what is shown. Hydra imports this at every start:
what is heavy is imported late.
"""

import errno
import io
import itertools
import json
import os
import re
import time
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import BrokenExecutor, Future
from contextlib import redirect_stdout, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast, runtime_checkable

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from daft.common.errors import BusyError, UserError
from daft.config.check import for_schema, plain, validate, validate_section
from daft.config.schema import Config, SweepConfig
from daft.sweep.cells import GROUPS, Cell, Run, discard_weights, unfinished
from daft.sweep.protocol import Standing, Trial, protocol

if TYPE_CHECKING:
    from daft.runs.status import Queue

with suppress(ImportError):  # without their libraries Hydra does not find them here, and says so when asked
    from hydra_plugins._launchers import LocalJobs, SlurmJobs, Workers  # noqa: F401

SHORTEST_PAUSE, LONGEST_PAUSE = 0.02, 2.0
"""Seconds between looks at runs: at first, and after a while without news."""

ERROR = "error.txt"
"""In a job's folder: why it failed."""

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Errors of the disk, which every other run would meet too."""


@dataclass
class StagedSweeperConf:
    """What `override /hydra/sweeper: staged` stands for."""

    _target_: str = "hydra_plugins.staged_sweeper.StagedSweeper"
    params: dict[str, Any] = field(default_factory=dict)
    """what runs are told ahead of the command line, lists with commas included: as of Hydra's own sweeper"""


ConfigStore.instance().store(group="hydra/sweeper", name="staged", node=StagedSweeperConf, provider="daft")


class Report(NamedTuple):
    """What a job says at its end."""

    directory: str | None = None
    """of its run, or of what another process computes"""
    error: str | None = None
    """in one line"""
    busy: bool = False
    """another process computes the run"""
    unwritable: bool = False
    """the error is the disk's, not the run's"""
    said: str = ""
    """what it printed"""


class Guarded:
    """A task whose failure stops no other: it is written to the job's folder and reported."""

    def __init__(self, task: TaskFunction) -> None:
        self.task, self.driver = task, os.getpid()

    def __call__(self, cfg: DictConfig) -> Report:
        """Run it, in a process that is not the driver's on a GPU of its own."""
        try:
            if os.getpid() != self.driver and cfg.compute.device in ("auto", "cuda"):
                _pin_gpu()
            with redirect_stdout(io.StringIO()) as said:
                directory = self.task(cfg)
            return Report(directory=directory, said=said.getvalue())
        except (Exception, SystemExit) as error:
            if isinstance(error, SystemExit) and not isinstance(error.code, str):
                raise  # a cluster's job that is to be requeued
            with suppress(OSError):
                (Path(HydraConfig.get().runtime.output_dir) / ERROR).write_text(traceback.format_exc())
            return _failure(error)


def _failure(error: BaseException) -> Report:
    # train.py turns what the user can mend into SystemExit, with the line to show.
    chain = (error, error.__context__)
    busy = next((link for link in chain if isinstance(link, BusyError)), None)
    directory = str(busy.directory.resolve()) if busy and busy.directory else None
    unwritable = any(isinstance(link, OSError) and link.errno in UNWRITABLE for link in chain)
    return Report(directory, _in_one_line(error), busy is not None, unwritable)


def _pin_gpu() -> None:
    """Let this process see one of several GPUs; the first call decides."""
    import torch

    if torch.cuda.is_initialized() or torch.cuda.device_count() < 2:
        return
    from daft.sweep import gpus

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus.pin(devices)


def _in_one_line(error: BaseException) -> str:
    text = str(error).strip()
    if isinstance(error, BrokenExecutor):
        how = re.search(r"\{(.+)\}", text)
        return f"its process died ({how[1] if how else text.splitlines()[0]})"
    lines = text.splitlines() or [""]
    if type(error).__name__ == "UncompletedJobError":  # submitit's: which job, its state, and its log
        return f"{lines[0]} {lines[1]}: {lines[-1]}"
    return lines[-1] if isinstance(error, SystemExit) else f"{type(error).__name__}: {lines[-1]}"


class Job(Protocol):
    """A run that was handed to a launcher."""

    def done(self) -> bool: ...
    def result(self) -> JobReturn: ...


@runtime_checkable
class Streaming(Protocol):
    """A launcher that takes runs as places become free."""

    places: int | None
    """runs at a time; None: all"""

    def submit(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[Job]:
        """Start these runs, at most as many as there are places free."""
        ...

    def stop(self) -> None:
        """What becomes of its runs when the driver ends."""


class Blocking:
    """Any other launcher of Hydra: runs are handed to it in waves, and it returns when the last has ended."""

    def __init__(self, launcher: Launcher) -> None:
        self.launcher = launcher
        self.places = 1 if isinstance(launcher, BasicLauncher) else None  # one by one anyway

    def submit(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[Future[JobReturn]]:
        """Runs that have ended."""
        jobs = [Future[JobReturn]() for _ in job_overrides]
        try:
            returns = self.launcher.launch(job_overrides, initial_job_idx=initial_job_idx)
            for job, returned in zip(jobs, returns, strict=True):
                job.set_result(returned)
        except Exception as error:  # of one run, as when a worker dies: from now on it is known of which
            several, self.places = len(jobs) > 1, 1
            for job in jobs:
                if several:
                    job.set_result(JobReturn(status=JobStatus.COMPLETED, _return_value=Report(busy=True)))
                else:
                    job.set_exception(error)
        return jobs

    def stop(self) -> None:
        """Nothing is left behind."""


class StagedSweeper(Sweeper):
    """Launches what is ready, of all cells together, as soon as there is a place for it."""

    def __init__(self, params: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self._params = for_schema([f"{key}={value}" for key, value in (params or {}).items()])
        self._runs: dict[str, Run] = {}
        self._launched = 0

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra gives, and make the launcher that the user chose."""
        self._context, self._config = hydra_context, config
        # Of all jobs: in another process it would be named after another time.
        self._folder = str(config.hydra.sweep.dir)
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=Guarded(task_function), config=config
        )
        self._launcher: Streaming = launcher if isinstance(launcher, Streaming) else Blocking(launcher)

    def sweep(self, arguments: list[str]) -> None:
        """Run every cell to its end and show the table; raises UserError if runs are missing."""
        from daft.report import terminal
        from daft.runs import status
        from daft.sweep import plan

        options = validate_section(self._config, "sweep", SweepConfig)
        cells = self._cells([*self._params, *arguments], options)
        standings = self._advance(cells)
        if options.plan:
            terminal.show_plan(plan.plan(cells, standings), keep_all=options.checkpoints == "all")
            return
        if todo := unfinished(cells, standings):
            print(f"{len(todo)} run(s) to compute, {self._ended()} done", flush=True)
            for folder in {cell.config.paths.runs for cell in cells}:
                Path(folder).mkdir(parents=True, exist_ok=True)  # else each run would say that it cannot be
            try:
                with status.Queue(Path(self._folder)) as queue:
                    standings = self._compute(cells, options, queue)
            finally:
                self._launcher.stop()
        if options.checkpoints == "selected":
            discard_weights(cells, standings)
        terminal.finish(cells, standings)

    def _cells(self, arguments: list[str], options: SweepConfig) -> list[Cell]:
        """The product of what the sweep's own parameters and the command line name."""
        axes: dict[str, list[tuple[str, str]]] = {}  # what is said twice counts as said last
        parser = OverridesParser.create(config_loader=self._context.config_loader)
        for override in parser.parse_overrides(arguments):
            name, key = override.key_or_group, override.get_key_element()
            if name == "seed":
                raise UserError("seed: a staged sweep sets it; say what it takes by sweep.seeds=[0,1]")
            if not override.is_sweep_override():
                if name != "sweep" and not name.startswith("sweep."):
                    axes[key] = [(override.input_line or "", "")]
                continue
            if name == "sweep" or name.startswith("sweep.") or not override.is_discrete_sweep():
                line = (override.input_line or key).lstrip("+")
                right = f"{name}=[0,1]" if name.startswith("sweep.") else "lists as in method=ft,daft"
                raise UserError(f"{line}: a staged sweep takes {right}")
            values = list(dict.fromkeys(f"{key}={value}" for value in override.sweep_string_iterator()))
            axes[key] = [(value, "" if name in GROUPS else value) for value in values]
        cells = []
        for choice in itertools.product(*axes.values()):
            overrides = [text for text, _ in choice]
            config = self._compose(overrides)
            setting = " ".join(label.lstrip("+") for _, label in choice if label)
            cell = Cell(overrides, setting, config, protocol(options, config))
            name = config.method.name
            stages = options.stages[name]
            instead = {
                "lr_backbone": f"say what it takes by sweep.grids.{name}=[0.1,0.01]",
                "lr_probe": f"to set it yourself, say sweep.stages.{name}=[{','.join(stages[1:])}]",
            }
            for rate in instead.keys() & stages:
                if any(f"method.{rate}=" in text for text in overrides):
                    raise UserError(f"method.{rate}: a staged sweep sets it; {instead[rate]}")
            cells.append(cell)
        return cells

    def _compose(self, overrides: list[str]) -> Config:
        cfg = self._context.config_loader.load_sweep_config(self._config, overrides)
        with open_dict(cfg):
            del cfg["hydra"]
        return validate(cfg)

    def _advance(self, cells: list[Cell]) -> list[Standing]:
        """Each cell's standing, with all known trials as runs, finished ones taken from their records."""
        standings = []
        for cell in cells:
            standing = cell.standing()
            while new := [trial for trial in standing.trials if trial not in cell.runs]:
                cell.runs |= {trial: self._run(cell, trial) for trial in new}
                standing = cell.standing()
            standings.append(standing)
        return standings

    def _run(self, cell: Cell, trial: Trial) -> Run:
        """The trial's run: the same object for cells that share it."""
        from daft import experiment
        from daft.common.files import digest
        from daft.runs import identity, records

        config = cell.configure(trial)
        before, method = asdict(cell.config.method), asdict(config.method)
        changed = [f"method.{key}={json.dumps(method[key])}" for key in method if method[key] != before[key]]
        overrides = [*cell.overrides, *for_schema([*changed, f"seed={trial.seed}"])]
        try:
            directory = experiment.identify(config)
        except UserError:  # no GPU or no images here, on a login node, say
            directory = None
        run = Run(f"{cell} {trial}", overrides, config, directory)
        # Cells that call it by other names share it: its id says which run it is, or else its settings.
        settings = plain(config)
        facts = identity.run_identity(config, config.training.precision, {}, "")
        key = digest([settings["dataset"], settings["backbone"], facts])
        if directory:
            key = f"{directory.parent}/{records.run_id(directory)}"
        run = self._runs.setdefault(key, run)
        run.look()
        return run

    def _ended(self) -> int:
        return sum(run.outcome is not None for run in self._runs.values())

    def _compute(self, cells: list[Cell], options: SweepConfig, queue: "Queue") -> list[Standing]:
        """Compute runs as they become ready, until every cell is at its end; the cells' standings there."""
        at_work: list[tuple[Job, Run]] = []
        folder = "hydra.sweep.dir='{}'".format(self._folder.replace("'", r"\'"))
        pause = SHORTEST_PAUSE
        while todo := unfinished(cells, standings := self._advance(cells)):
            taken = [run for _, run in at_work]
            limits = [limit - len(taken) for limit in (self._launcher.places, options.max_jobs) if limit]
            waiting = (run for run in todo if not any(run is other for other in taken) and run.is_ready())
            ready = list(itertools.islice(waiting, min(limits, default=None)))
            taken += ready
            self._show(queue, [run for run in todo if not any(run is other for other in taken)])
            if ready:
                jobs = self._launcher.submit([[*run.overrides, folder] for run in ready], self._launched)
                self._launched += len(ready)
                at_work += zip(jobs, ready, strict=True)
            ended = [(job, run) for job, run in at_work if job.done()]
            for job, run in ended:
                at_work.remove((job, run))
                self._settle(job, run)
            if ended and options.checkpoints == "selected":
                discard_weights(cells, self._advance(cells))
            pause = SHORTEST_PAUSE if ready or ended else min(1.2 * pause, LONGEST_PAUSE)
            if not ended:
                time.sleep(pause)
        self._show(queue, [])
        return standings

    def _show(self, queue: "Queue", waiting: list[Run]) -> None:
        failed = {run.place: run.error for run in self._runs.values() if run.is_missing}
        queue.show([run.place for run in self._runs.values()], [run.place for run in waiting], failed)

    def _settle(self, job: Job, run: Run) -> None:
        """Take what became of a run; raises UserError if no other could be written either."""
        try:
            report = _report(job.result())
        except Exception as error:  # a worker that died, say
            report = _failure(error)
        if report.unwritable:
            raise UserError(f"{report.error}; what has finished is kept, and the same command goes on")
        if report.directory:
            run.directory = Path(report.directory)
            run.look()
            if run.outcome is None and not report.busy:
                report = Report(error=f"its record in {run.directory} cannot be seen from here")
        if report.error and not report.busy:
            run.failed(report.error)
            again = "" if run.outcome else "; it is tried again"
            print(f"failed: {run.name}: {report.error}{again}", flush=True)
        elif report.said:
            print(f"[{self._ended()} of {len(self._runs)}] {report.said}", end="", flush=True)


def _report(returned: JobReturn) -> Report:
    """A job's own report, or the error that kept it from making one."""
    if returned.status == JobStatus.COMPLETED:
        return cast(Report, returned.return_value)
    return _failure(returned._return_value)
