"""The staged sweep as a sweeper of Hydra, so that each of Hydra's launchers can run it.

What it does is in daft.sweep. Hydra imports this at every start, so whatever imports torch is imported late.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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

from daft.config.check import validate, validate_section
from daft.config.compose import hydra_errors
from daft.config.overrides import rewrite_overrides
from daft.config.schema import Config, SweepConfig
from daft.sweep.axes import sweep_axes
from daft.sweep.jobs import IsolatedTask, JobResult

with suppress(ImportError):  # without their libraries Hydra does not find them here, and says so when asked
    from hydra_plugins._launchers import LocalJobs, SlurmJobs, Workers  # noqa: F401


@dataclass
class StagedSweeperConf:
    """What `override /hydra/sweeper: staged` stands for."""

    _target_: str = "hydra_plugins.staged_sweeper.StagedSweeper"
    params: dict[str, Any] = field(default_factory=dict)
    """overrides ahead of the command line's, lists with commas included, as of Hydra's own sweeper"""


ConfigStore.instance().store(group="hydra/sweeper", name="staged", node=StagedSweeperConf, provider="daft")


class HydraJob:
    """A job of one of Hydra's launchers."""

    def __init__(self, job: Any) -> None:
        self._job, self.done = job, job.done

    def result(self) -> JobResult:
        """What the task returned; raises the error that kept it from returning."""
        returned = self._job.result()
        if returned.status == JobStatus.COMPLETED:
            return returned.return_value
        raise returned._return_value  # its property would print, too


class HydraLauncher:
    """One of Hydra's launchers; one that has no `submit` gets runs in waves and returns after the last."""

    def __init__(self, launcher: Launcher, sweep_dir: str) -> None:
        self._launcher, self._submitted = launcher, 0
        # Of all jobs: in another process it would be named after another time.
        self._sweep_dir = "hydra.sweep.dir='{}'".format(sweep_dir.replace("'", r"\'"))
        self.slots = getattr(launcher, "slots", 1 if isinstance(launcher, BasicLauncher) else None)
        self.stop = getattr(launcher, "stop", lambda: None)

    def submit(self, overrides: Sequence[list[str]]) -> list[HydraJob]:
        """Start a job for each list of overrides, at most as many as there are free slots."""
        first, self._submitted = self._submitted, self._submitted + len(overrides)
        submit = getattr(self._launcher, "submit", self._launch)
        return [HydraJob(job) for job in submit([[*each, self._sweep_dir] for each in overrides], first)]

    def _launch(self, overrides: Sequence[Sequence[str]], first: int) -> list[Future[JobReturn]]:
        jobs = [Future[JobReturn]() for _ in overrides]
        try:
            for job, returned in zip(jobs, self._launcher.launch(overrides, first), strict=True):
                job.set_result(returned)
        except Exception as error:  # of one run, as when a worker dies: one by one it is known of which
            several, self.slots = len(jobs) > 1, 1
            for job in jobs:
                if several:
                    job.set_result(JobReturn(status=JobStatus.COMPLETED, _return_value=JobResult(busy=True)))
                else:
                    job.set_exception(error)
        return jobs


def job_folder() -> Path:
    """The folder of the job that this process is at."""
    return Path(HydraConfig.get().runtime.output_dir)


class StagedSweeper(Sweeper):
    """Runs the protocol of `sweep` for every dataset, backbone and method on the command line."""

    def __init__(self, params: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self._params = rewrite_overrides([f"{key}={value}" for key, value in (params or {}).items()])

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra gives, and make the launcher that the user chose."""
        self._loader, self._config = hydra_context.config_loader, config
        self._sweep_dir = str(config.hydra.sweep.dir)
        task = IsolatedTask(task_function, job_folder)
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task, config=config
        )
        self._launcher = HydraLauncher(launcher, self._sweep_dir)

    def sweep(self, arguments: list[str]) -> None:
        """Show the plan, or run every cell and show the tables; raises UserError if runs are missing."""
        options = validate_section(self._config, "sweep", SweepConfig)
        given = OverridesParser.create(self._loader).parse_overrides([*self._params, *arguments])
        axes = sweep_axes(given)  # mistakes are told before torch is imported
        from daft.common import devices
        from daft.report import terminal
        from daft.sweep import cells, driver, plan

        found = cells.product(axes, options, self._compose)
        if self._launcher.slots is not None:  # on this machine; a cluster's jobs are elsewhere
            for cell in found:
                devices.find(cell.config.compute.device, "compute.device")
        sweep = driver.Driver(found, options, self._launcher, Path(self._sweep_dir))
        if options.plan:
            states, keep_all = sweep.states(), options.checkpoints == "all"
            growing = cells.growing(found, states)
            terminal.show_plan(plan.plan(found, states), keep_all=keep_all, growing=growing)
        else:
            terminal.show_results(found, sweep.run())

    def _compose(self, overrides: list[str]) -> Config:
        with hydra_errors(overrides):
            cfg = self._loader.load_sweep_config(self._config, overrides)
        with open_dict(cfg):
            del cfg["hydra"]
        return validate(cfg)
