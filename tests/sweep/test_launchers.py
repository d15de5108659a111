"""Claims about the processes that a launcher keeps."""

import os
import time
from pathlib import Path

import pytest

pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
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
