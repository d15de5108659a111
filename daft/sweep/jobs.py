"""What a sweep's jobs hand back; imports nothing heavy, since Hydra and scripts read it at their start."""

import errno
import re
from concurrent.futures import BrokenExecutor
from typing import NamedTuple

from daft.common.errors import BusyError

POINTER = "run.txt"
"""File in a job's folder that names the directory of its run."""

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""No other run could be written either."""


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


def failure(error: BaseException) -> JobResult:
    """The result of a job that ended in this error."""
    # train.py turns errors of the user into SystemExit, with the line to show.
    chain = (error, error.__context__)
    busy = next((link for link in chain if isinstance(link, BusyError)), None)
    directory = str(busy.directory.resolve()) if busy and busy.directory else None
    disk_error = any(isinstance(link, OSError) and link.errno in DISK_ERRORS for link in chain)
    return JobResult(directory, _one_line(error), busy is not None, disk_error)


def _one_line(error: BaseException) -> str:
    text = str(error).strip()
    lines = text.splitlines() or [""]
    if isinstance(error, BrokenExecutor):
        cause = re.search(r"\{(.+)\}", text)
        return f"its process died ({cause[1] if cause else lines[0]})"
    if type(error).__name__ == "UncompletedJobError":  # submitit's: which job, its state, and its log
        return f"{lines[0]} {lines[1]}: {lines[-1]}"
    return lines[-1] if isinstance(error, SystemExit) else f"{type(error).__name__}: {lines[-1]}"
