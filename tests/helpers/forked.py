"""scripts/train.py in a process of its own that has torch already: seconds less than a new interpreter."""

import atexit
import multiprocessing
import os
import re
import runpy
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from tests.helpers.waiting import HANG_SECONDS

TRAIN = Path(__file__).resolve().parents[2] / "scripts" / "train.py"
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["daft.experiment", "daft.report.terminal", "hydra_plugins.staged_sweeper"])


FOUND = re.compile(r"^\S+: \d+ classes \(.*\n(?:  .* images.*\n)+  on .*\n", re.MULTILINE)
"""What a sweep says of its images and the device."""


def without_notes(errors: str) -> str:
    """What runs say on stderr but for what was found, and the line of each epoch."""
    return re.sub(r"^\S+: epoch \d+ of \d+, .*\n", "", FOUND.sub("", errors), flags=re.MULTILINE)


def _main(arguments: list[str], output: Path, errors: Path) -> None:
    os.setsid()
    for file, stream in ((output, 1), (errors, 2)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.argv = [str(TRAIN), *arguments]
    runpy.run_path(str(TRAIN), run_name="__main__")


class Forked:
    """The command line with these arguments, in a session of its own; `folder` takes what it prints."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._files = folder / "output.txt", folder / "errors.txt"
        self._process = _server.Process(target=_main, args=(list(arguments), *self._files))
        self._process.start()
        atexit.register(self._kill)  # of a test that failed: the interpreter would wait for it

    @property
    def pid(self) -> int:
        """Of the process, and of its session."""
        assert self._process.pid is not None
        return self._process.pid

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, negative after a signal; raises subprocess.TimeoutExpired."""
        timeout = HANG_SECONDS if timeout is None else timeout
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(str(TRAIN), timeout)
        return self._process.exitcode

    def end(self) -> tuple[int, str, str]:
        """Exit code, output and errors without its notes, once it has ended."""
        code = self.wait()
        output, errors = (file.read_text() for file in self._files)
        return code, output, without_notes(errors)

    def check_running(self) -> None:
        """Fail if it has ended."""
        assert self._process.exitcode is None, "".join(file.read_text() for file in self._files)

    def _kill(self) -> None:
        if self._process.exitcode is None:
            for end in (os.killpg, os.kill):  # at first it has no session of its own
                with suppress(ProcessLookupError):
                    end(self.pid, signal.SIGKILL)
