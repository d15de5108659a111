"""Claims about the processes that a launcher keeps."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor, Future
from pathlib import Path
from typing import Any

import pytest
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from daft.sweep.jobs import ERROR
from tests.helpers.waiting import HANG_SECONDS, wait_until

pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
from hydra_plugins import _launchers
from hydra_plugins._launchers import Workers

GROWING = """
grown = 0
class Process:
    def __init__(self, pid): pass
    def memory_info(self):
        global grown
        grown += 2**30
        return type("Memory", (), {"rss": grown})
"""
"""A psutil for which every look finds a gigabyte more."""


def test_a_worker_stays_the_same_process_however_much_more_memory_a_run_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "psutil.py").write_text(GROWING)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    launcher = Workers.__new__(Workers)
    launcher._last = {}
    try:
        served = set()
        for _ in range(3):
            served.add(launcher._start(os.getpid).result(60))
            time.sleep(1.1)  # loky looks once a second
        assert len(served) == 1
    finally:
        launcher.stop()


KILLED = """
import os, signal
from hydra_plugins._launchers import Workers
launcher = Workers.__new__(Workers)
launcher._last = {}
print(launcher._start(os.getpid).result(60), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc")
def test_a_worker_whose_driver_was_killed_ends_too() -> None:
    command = [sys.executable, "-c", KILLED]
    # The worker has the pipe, too: this is over when both have ended.
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=HANG_SECONDS, check=False
    )
    stat = Path("/proc", done.stdout.decode().strip(), "stat")
    wait_until(lambda: not stat.exists() or " Z " in stat.read_text())


class Slots:
    """A launcher of two slots, whose first job dies and whose others end once there are two of them."""

    slots = 2

    def __init__(self, folder: Path) -> None:
        self.config = OmegaConf.create({"hydra": {"sweep": {"dir": str(folder)}}})
        self.running: list[Future[JobReturn]] = []
        self.most, self.stopped = 0, False

    def submit(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[Any]:
        job = Future[JobReturn]()
        self.running = [each for each in self.running if not each.done()] + [job]
        self.most = max(self.most, len(self.running))
        if initial_job_idx == 4:
            job.set_exception(BrokenExecutor("exit codes {SIGKILL(-9)}"))
        if len(self.running) == self.slots or initial_job_idx == 7:
            for each in self.running:
                if not each.done():
                    each.set_result(JobReturn(status=JobStatus.COMPLETED, _return_value=initial_job_idx))
        return [job]

    def stop(self) -> None:
        self.stopped = True


def test_a_job_of_a_plain_sweep_that_dies_fails_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launcher: Any = Slots(tmp_path)
    returned = _launchers._launched(launcher, [["++method=ft", f"seed={i}"] for i in range(4)], 4)
    assert [each.return_value for each in returned] == ["", 6, 6, 7]
    assert (launcher.most, launcher.stopped) == (2, True)
    told = "method=ft seed=0: its process died (SIGKILL(-9))"
    assert (tmp_path / "4" / ERROR).read_text() == told
    assert capsys.readouterr().err == f"train.py: {told}\n"


def test_the_jobs_of_a_plain_sweep_end_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    launcher: Any = Slots(tmp_path)
    monkeypatch.setattr(_launchers.time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _launchers._launched(launcher, [["seed=0"]], 0)
    assert launcher.stopped
