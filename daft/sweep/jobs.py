"""A sweep's jobs and what they hand back; imports little, since Hydra and scripts read it at their start."""

import io
import os
import re
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from contextlib import redirect_stdout, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

from daft.common.errors import DISK_ERRORS, BusyError
from daft.sweep import gpus

POINTER = "run.txt"
"""File that names the directory of a job's run, in the folder of the job's number."""

ERROR = "error.txt"
"""File in a job's folder that says why it failed."""

UNCOMPLETED = "UncompletedJobError"
"""Of submitit: a job that has left no result."""

isolated: ContextVar[bool] = ContextVar("isolated", default=False)
"""Whether this is a job of a staged sweep, which is told of every error."""


class JobResult(NamedTuple):
    """How a job ended."""

    directory: str | None = None
    """of its run, or of the run that another process computes"""
    error: str | None = None
    """in one line"""
    busy: bool = False
    """another process computes the run"""
    disk_error: bool = False
    """the disk is full or read-only: no other run could be written either"""
    stdout: str = ""


class IsolatedTask:
    """A task whose errors end no other job: they are written to the job's folder and returned.

    job_folder: asked in the job. In another process than the one that made it, the task keeps to one GPU.
    """

    def __init__(self, task: Callable[[Any], Any], job_folder: Callable[[], Path]) -> None:
        self.task, self.job_folder, self.driver = task, job_folder, os.getpid()

    def __call__(self, cfg: Any) -> JobResult:
        """Run the task with a configuration."""
        token = isolated.set(True)
        try:
            if os.getpid() != self.driver and cfg.compute.device in ("auto", "cuda"):
                gpus.pin_process()
            with redirect_stdout(io.StringIO()) as stdout:
                directory = self.task(cfg)
            return JobResult(directory, stdout=stdout.getvalue())
        except (Exception, SystemExit) as error:
            if isinstance(error, SystemExit) and not isinstance(error.code, str):
                raise  # a cluster's job that is to be requeued
            with suppress(OSError):
                (self.job_folder() / ERROR).write_text(traceback.format_exc(), encoding="utf-8")
            return failure(error)
        finally:
            isolated.reset(token)


def leave_out(folder: Path, overrides: str, line: str) -> str:
    """Say why one of several runs failed, and note it for the end of them; the others go on."""
    told = f"{overrides.replace('++', '')}: {line}"
    print(f"train.py: {told}", file=sys.stderr, flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ERROR).write_text(told, encoding="utf-8")
    return ""


def failure(error: BaseException) -> JobResult:
    """The result of a job that ended in this error."""
    # train.py turns errors of the user into SystemExit, with the line to show.
    chain = (error, error.__context__)
    busy = next((link for link in chain if isinstance(link, BusyError)), None)
    directory = str(busy.directory.resolve()) if busy and busy.directory else None
    disk_error = any(isinstance(link, OSError) and link.errno in DISK_ERRORS for link in chain)
    if type(error).__name__ == UNCOMPLETED:  # what it could not write is in its log
        disk_error = any(f"[Errno {number}]" in str(error) for number in DISK_ERRORS)
    return JobResult(directory, _one_line(error), busy is not None, disk_error)


def _one_line(error: BaseException) -> str:
    text = str(error).strip()
    lines = text.splitlines() or [""]
    if isinstance(error, BrokenExecutor):
        cause = re.search(r"\{(.+)\}", text)
        return f"its process died ({cause[1] if cause else lines[0]})"
    if type(error).__name__ == UNCOMPLETED:  # which job, its state, and its log
        return f"{lines[0]} {lines[1]}: {lines[-1]}"
    if isinstance(error, SystemExit):
        return " ".join(map(str.strip, lines)).removeprefix("train.py: ")  # which the sweep says again
    return f"{type(error).__name__}: {lines[-1]}"
