"""The staged sweep as a sweeper of Hydra, so that each of Hydra's launchers can run it.

The protocol is in daft.sweep; here are cells, jobs and what is shown. Hydra imports this at every start:
what is heavy is imported late.
"""

import itertools
import os
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from daft.cells import GROUPS, Cell, Run, discard_weights, unfinished
from daft.config import Config, SweepConfig, for_schema, validate, validate_section
from daft.errors import BusyError, UserError
from daft.sweep import Standing, Trial, protocol

POLL_SECONDS = 2.0
"""Between looks at runs that other processes compute."""

ERROR = "error.txt"
"""In a job's folder: why it failed."""


@dataclass
class StagedSweeperConf:
    """What `override /hydra/sweeper: staged` stands for."""

    _target_: str = "hydra_plugins.staged_sweeper.StagedSweeper"


ConfigStore.instance().store(group="hydra/sweeper", name="staged", node=StagedSweeperConf, provider="daft")


class Report(NamedTuple):
    """What a job says at its end."""

    directory: str | None = None
    """of its run"""
    error: str | None = None
    """in one line"""
    busy: bool = False
    """another process computes the run"""


class Guarded:
    """A task whose failure stops no other: it is written to the job's folder and reported."""

    def __init__(self, task: TaskFunction) -> None:
        self.task, self.driver = task, os.getpid()

    def __call__(self, cfg: DictConfig) -> Report:
        """Run it, in a process that is not the driver's on a GPU of its own."""
        try:
            if os.getpid() != self.driver and cfg.compute.device in ("auto", "cuda"):
                _pin_gpu()
            return Report(directory=self.task(cfg))
        except (Exception, SystemExit) as error:
            if isinstance(error, SystemExit) and not isinstance(error.code, str):
                raise  # a cluster's job that is to be requeued
            folder = Path(HydraConfig.get().runtime.output_dir)
            (folder / ERROR).write_text(traceback.format_exc())
            # train.py turns what the user can mend into SystemExit, with the line to show.
            busy = isinstance(error, BusyError) or isinstance(error.__context__, BusyError)
            return Report(error=_last_line(error), busy=busy)


def _pin_gpu() -> None:
    """Let this process see one of several GPUs; the first call decides."""
    import torch

    if torch.cuda.is_initialized() or torch.cuda.device_count() < 2:
        return
    from daft import gpus

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus.pin(devices)


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    text = lines[-1] if lines else ""
    return text if isinstance(error, SystemExit) else f"{type(error).__name__}: {text}"


class StagedSweeper(Sweeper):
    """Launches all runs that are ready, of all cells together, wave after wave."""

    def __init__(self) -> None:
        super().__init__()
        self._runs: dict[str, Run] = {}
        self._launched = 0

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra gives, and make the launcher that the user chose."""
        self._context, self._config = hydra_context, config
        self._launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=Guarded(task_function), config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run every cell to its end and show the table; raises UserError if runs are missing."""
        from daft import reports

        options = validate_section(self._config, "sweep", SweepConfig)
        cells = self._cells(arguments, options)
        standings = self._advance(cells)
        if options.plan:
            reports.show_plan(reports.plan(cells, standings))
            return
        while todo := unfinished(cells, standings):
            if ready := wave(todo, options.max_jobs):
                print(f"{len(ready)} run(s) to compute, {self._ended()} done", flush=True)
                self._launch(ready)
            else:
                time.sleep(POLL_SECONDS)
                for run in todo:
                    run.look()
            standings = self._advance(cells)
        if options.checkpoints == "selected":
            discard_weights(cells, standings)
        reports.finish(cells, standings)

    def _cells(self, arguments: list[str], options: SweepConfig) -> list[Cell]:
        """The product of what the command line sweeps."""
        axes: list[list[tuple[str, str]]] = []
        parser = OverridesParser.create(config_loader=self._context.config_loader)
        for override in parser.parse_overrides(arguments):
            name, key = override.key_or_group, override.get_key_element()
            if name in ("seed", "method.lr_backbone"):
                own = "sweep.seeds=[0,1]" if name == "seed" else "sweep.grids.<method>=[0.1,0.01]"
                raise UserError(f"{name}: a staged sweep sets it; say what it takes by {own}")
            if not override.is_sweep_override():
                if name != "sweep" and not name.startswith("sweep."):
                    axes.append([(override.input_line or "", "")])
                continue
            if name == "sweep" or name.startswith("sweep.") or not override.is_discrete_sweep():
                raise UserError(f"{override.input_line}: a staged sweep takes lists like method=ft,daft only")
            values = [f"{key}={value}" for value in override.sweep_string_iterator()]
            axes.append([(value, "" if name in GROUPS else value) for value in values])
        cells = []
        for choice in itertools.product(*axes):
            overrides = [text for text, _ in choice]
            config = self._compose(overrides)
            setting = " ".join(label.lstrip("+") for _, label in choice if label)
            cells.append(Cell(overrides, setting, config, protocol(options, config)))
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

        config = cell.configure(trial)
        rates = [f"method.{name}={rate!r}" for name, rate in trial.rates.given().items()]
        overrides = [*cell.overrides, *for_schema([*rates, f"seed={trial.seed}"])]
        try:
            directory = experiment.identify(config)
        except UserError:  # no GPU or no images here, on a login node, say
            directory = None
        run = self._runs.setdefault(str(directory or overrides), Run(overrides, config, directory))
        run.look()
        return run

    def _ended(self) -> int:
        return sum(run.outcome is not None for run in self._runs.values())

    def _launch(self, runs: list[Run]) -> None:
        """Compute these runs; what became of them is in the runs."""
        first, self._launched = self._launched, self._launched + len(runs)
        try:
            returns = self._launcher.launch([run.overrides for run in runs], initial_job_idx=first)
        except Exception as error:  # a worker that dies takes the whole launch with it
            self._broken(runs, _last_line(error))
            return
        for run, report in zip(runs, map(_report, returns), strict=True):
            if report.directory:
                run.directory = Path(report.directory)
                run.look()
                if run.outcome is None:
                    run.failed(
                        f"its job has left a record in {run.directory}, which cannot be seen from here"
                    )
            elif not report.busy:
                run.failed(report.error or "")

    def _broken(self, runs: list[Run], error: str) -> None:
        """Find the run that broke a launch: of those that had begun, each is tried by itself."""
        for run in runs:
            run.look()
        left = [run for run in runs if run.outcome is None]
        begun = [run for run in left if run.directory is None or run.directory.exists()]
        for run in begun or left:
            if not begun or len(runs) == 1:  # the launcher itself, or this run
                run.failed(error)
            run.alone = bool(begun)


def _report(returned: JobReturn) -> Report:
    """A job's own report, or the error that kept it from making one."""
    if returned.status == JobStatus.COMPLETED:
        return returned.return_value
    return Report(error=_last_line(returned._return_value))


def wave(todo: list[Run], limit: int | None) -> list[Run]:
    """What to launch now: nothing that another process is at; a run to be launched alone comes last."""
    ready = sorted((run for run in todo if not run.busy()), key=lambda run: run.alone)
    if ready and ready[0].alone:
        return ready[:1]
    return [run for run in ready if not run.alone][:limit]
