"""Launchers of Hydra that also take jobs one by one as slots become free, by `submit`.

Hydra's own return once the last job of a call has ended, and a worker that dies breaks them.
The staged sweeper imports this where both libraries are installed: pip install -e '.[sweeps]'.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, env_override
from hydra_plugins.hydra_joblib_launcher.joblib_launcher import JoblibLauncher
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf, LocalQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import BaseSubmititLauncher
from omegaconf import OmegaConf

from daft.common.errors import ConfigError, UserError, first_line
from daft.sweep.gpus import VISIBLE
from daft.sweep.jobs import failure, leave_out

Overrides = Sequence[Sequence[str]]

PAUSE_SECONDS = 0.2
"""Between looks at jobs of this machine."""

DRIVER_SECONDS = 2.0
"""Between a worker's looks at its driver."""

SAVING_SECONDS = 20.0
"""For a process to save its run before it is killed."""


@dataclass
class LocalJobsConf(LocalQueueConf):
    """What the preset `local_jobs` starts from."""

    _target_: str = "hydra_plugins._launchers.LocalJobs"
    n_jobs: int = 2
    """at a time; -1: one per core"""


_store = ConfigStore.instance()
_store.store(group="hydra/launcher", name="submitit_local_jobs", node=LocalJobsConf, provider="daft")


def _slots(n_jobs: int) -> int:
    import joblib

    if n_jobs < -1 or n_jobs == 0:
        raise ConfigError("hydra.launcher.n_jobs", f"{n_jobs}; how many runs at a time, or -1: one per core")
    return joblib.effective_n_jobs(n_jobs)


def _shared_cores(slots: int) -> AbstractContextManager[None]:
    """The environment to start one of so many processes in: each uses its share of the cores."""
    import joblib

    given = os.environ.get("OMP_NUM_THREADS")
    return env_override({"OMP_NUM_THREADS": given or str(max(1, joblib.cpu_count() // slots))})


def _terminate(pid: int) -> bool:
    """Ask a process to end; False if it has ended."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        return True
    return False


@contextmanager
def _in_one_line(launcher: str) -> Iterator[None]:
    """Raise what a launcher's library complains of as a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # no srun here, a partition that does not exist, …
        raise UserError(f"hydra/launcher={launcher}: {first_line(error)}") from error


def _end_with(driver: int) -> None:
    while os.getppid() == driver:
        time.sleep(DRIVER_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


def keep_alive() -> None:
    """In a worker: no run makes it start anew for having needed more memory than its first one.

    Where psutil is installed, loky takes 300 MB more for a leak. A worker is warm: libraries, images and
    kernels are there. But it ends if its driver was killed, and saves its run first.
    """
    threading.Thread(target=_end_with, args=[os.getppid()], daemon=True).start()
    from joblib.externals.loky import process_executor

    process_executor._MAX_MEMORY_LEAK_SIZE = sys.maxsize


def _launched(
    launcher: "Workers | LocalJobs", job_overrides: Overrides, initial_job_idx: int
) -> list[JobReturn]:
    """Run the jobs of a plain sweep as slots become free; one whose process dies fails alone."""
    jobs: list[Any] = []
    assert launcher.config is not None
    sweep = Path(launcher.config.hydra.sweep.dir)

    def wait_until(running: int) -> None:
        while sum(not job.done() for job in jobs) > running:
            time.sleep(PAUSE_SECONDS)

    def returned(job: Any, number: int, overrides: Sequence[str]) -> JobReturn:
        try:
            return job.result()
        except Exception as error:
            value = leave_out(sweep / str(number), " ".join(overrides), failure(error).error or "")
            return JobReturn(status=JobStatus.COMPLETED, _return_value=value)

    try:
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            wait_until(launcher.slots - 1)
            jobs += launcher.submit([overrides], number)
        wait_until(0)
        numbers = range(initial_job_idx, initial_job_idx + len(jobs))
        return list(map(returned, jobs, numbers, job_overrides))
    finally:
        launcher.stop()


class Workers(JoblibLauncher):
    """`n_jobs` processes that take job after job; one that dies fails its own job and no other."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.slots = _slots(kwargs["n_jobs"])
        self._last: dict[Any, Future[JobReturn]] = {}
        """by executor, each of one process: its latest job"""

    def submit(self, job_overrides: Overrides, initial_job_idx: int) -> list[Future[JobReturn]]:
        """Start these jobs, at most as many as there are free slots."""
        from hydra_plugins.hydra_joblib_launcher._core import execute_job

        shared = (self.hydra_context, self.config, self.task_function, Singleton.get_state())
        with _shared_cores(self.slots):
            return [
                self._start(execute_job, number, overrides, *shared)
                for number, overrides in enumerate(job_overrides, initial_job_idx)
            ]

    def _start(self, *call: Any) -> Future[JobReturn]:
        """Call this in an idle process, or else in a new one."""
        from joblib.externals.loky import ProcessPoolExecutor

        for executor, last in list(self._last.items()):
            if last.done():
                with suppress(BrokenExecutor):  # it died while idle
                    if last.exception() is None:
                        self._last[executor] = executor.submit(*call)
                        return self._last[executor]
                executor.shutdown(kill_workers=True)
                del self._last[executor]
        executor = ProcessPoolExecutor(max_workers=1, initializer=keep_alive)
        self._last[executor] = executor.submit(*call)
        return self._last[executor]

    def launch(self, job_overrides: Overrides, initial_job_idx: int) -> list[JobReturn]:
        """Run these jobs and wait for the last."""
        return _launched(self, job_overrides, initial_job_idx)

    def stop(self) -> None:
        """End the processes, after time to save their runs."""
        pids = [pid for executor in self._last for pid in executor._processes]
        until = time.monotonic() + SAVING_SECONDS
        try:
            while (pids := [pid for pid in pids if _terminate(pid)]) and time.monotonic() < until:
                time.sleep(PAUSE_SECONDS)
        finally:
            for executor in self._last:
                executor.shutdown(kill_workers=True)


class _Jobs(BaseSubmititLauncher):
    """Jobs of submitit."""

    NAME: str
    """of the preset"""

    def submit(self, job_overrides: Overrides, initial_job_idx: int) -> list[Any]:
        """Start these jobs as the plugin's `launch` does, without waiting for them."""
        import submitit

        assert self.config is not None
        Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        kind, common = self._EXECUTOR, OmegaConf.structured(BaseQueueConf).keys()
        options = {key if key in common else f"{kind}_{key}": value for key, value in self.params.items()}
        at_start = {key: options.pop(key) for key in (f"{kind}_max_num_timeout",) if key in options}
        state = Singleton.get_state()
        calls = [
            (list(overrides), "hydra.sweep.dir", number, f"job_id_for_{number}", state)
            for number, overrides in enumerate(job_overrides, initial_job_idx)
        ]
        with _in_one_line(self.NAME):
            executor = submitit.AutoExecutor(options.pop("submitit_folder"), cluster=kind, **at_start)
            executor.update_parameters(**options)
            return executor.map_array(self, *zip(*calls, strict=True))


class SlurmJobs(_Jobs):
    """Jobs of a cluster, which go on when the driver stops; the same command takes up where they are."""

    NAME = "slurm"
    _EXECUTOR = "slurm"

    def launch(self, job_overrides: Overrides, initial_job_idx: int) -> Sequence[JobReturn]:
        """As the plugin's, with its library's errors in one line."""
        with _in_one_line(self.NAME):
            return super().launch(job_overrides, initial_job_idx)


class LocalJobs(_Jobs):
    """Jobs on this machine, `n_jobs` at a time."""

    NAME = "local_jobs"
    _EXECUTOR = "local"

    def __init__(self, *, n_jobs: int, **params: Any) -> None:
        super().__init__(**params)
        self.slots = _slots(n_jobs)
        self.gpus = os.environ.get(VISIBLE)
        self._started: list[Any] = []

    def __call__(self, *args: Any, **kwargs: Any) -> JobReturn:
        """In the job: show it the driver's GPUs, of which it takes one; submitit hides them."""
        os.environ.pop(VISIBLE, None)
        os.environ |= {} if self.gpus is None else {VISIBLE: self.gpus}
        return super().__call__(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_started": []}

    def submit(self, job_overrides: Overrides, initial_job_idx: int) -> list[Any]:
        """Start these jobs, at most as many as there are free slots."""
        # Ctrl-C is for the driver, which then ends its jobs: by themselves they would print errors.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            with _shared_cores(self.slots):
                started = super().submit(job_overrides, initial_job_idx)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for job in started:
            job._results_timeout_s = 0  # a local job's result is there when it ends, or never
        self._started = [job for job in self._started if not job.done()] + started
        return started

    def launch(self, job_overrides: Overrides, initial_job_idx: int) -> list[JobReturn]:
        """Run these jobs and wait for the last."""
        return _launched(self, job_overrides, initial_job_idx)

    def stop(self) -> None:
        """End the jobs, each a controller and its child."""
        for job in self._started:
            controller = Path("/proc", job.job_id, "task", job.job_id, "children")
            with suppress(OSError):  # it has just ended by itself
                for process in [job.job_id, *controller.read_text(encoding="ascii").split()]:
                    os.kill(int(process), signal.SIGKILL)
