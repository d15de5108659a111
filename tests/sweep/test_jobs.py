"""Claims about a job and the result that it hands back."""

import errno
from concurrent.futures import BrokenExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from daft.common.errors import BusyError, UserError
from daft.sweep.jobs import ERROR, UNCOMPLETED, IsolatedTask, JobResult, failure

CFG = SimpleNamespace(compute=SimpleNamespace(device="cpu"))


def test_what_a_job_prints_is_in_its_result(tmp_path, capsys):
    def task(_: Any) -> str:
        print("done")
        return "runs/a"

    assert IsolatedTask(task, lambda: tmp_path)(CFG) == JobResult("runs/a", stdout="done\n")
    assert capsys.readouterr().out == ""


def test_an_error_is_a_line_of_the_result_and_a_traceback_in_the_jobs_folder(tmp_path):
    def task(_: Any) -> str:
        raise ValueError("first line\nsecond line")

    result = IsolatedTask(task, lambda: tmp_path)(CFG)
    assert result == JobResult(error="ValueError: second line")
    assert "Traceback" in (tmp_path / ERROR).read_text()


def test_a_cluster_that_requeues_a_job_is_not_kept_from_it(tmp_path):
    def task(_: Any) -> str:
        raise SystemExit(1)

    with pytest.raises(SystemExit):
        IsolatedTask(task, lambda: tmp_path)(CFG)


def test_a_full_disk_a_busy_run_and_a_dead_process_are_told_apart():
    assert failure(OSError(errno.ENOSPC, "No space left on device")).disk_error
    assert not failure(OSError(errno.ENOENT, "No such file")).disk_error
    busy = failure(BusyError("another process", Path("runs/a")))
    assert (busy.busy, busy.directory) == (True, str(Path("runs/a").resolve()))
    assert failure(BrokenExecutor("a process\n{SIGKILL(-9)}")).error == "its process died (SIGKILL(-9))"
    unwritten = type(UNCOMPLETED, (Exception,), {})  # what a local job says whose result found no room
    assert failure(unwritten("Job 1\nno output\n[Errno 28] No space left on device")).disk_error
    assert not failure(unwritten("Job 1\nno output\n[Errno 2] No such file")).disk_error


def test_a_line_that_train_py_has_made_for_the_user_is_taken_without_the_name_that_its_end_says_again():
    line = SystemExit("train.py: seed: wrong")
    line.__context__ = UserError("seed: wrong")
    assert failure(line) == JobResult(error="seed: wrong")


def test_of_a_line_with_a_list_below_it_everything_is_kept():
    line = SystemExit("train.py: 2 images cannot be read:\n  a.jpg: cut off\n  b.jpg: empty")
    assert failure(line).error == "2 images cannot be read: a.jpg: cut off b.jpg: empty"
