"""The tests: those that need a GPU, which other machines skip, and beside them all others."""

import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from daft.common.threads import available_cpus
from daft.config.options import ROOT
from tests.gpu_check.lines import Found, Line

OF_GPU = 4
"""Processes of the tests that need a GPU, which share it."""

MOST = 8
"""Processes of the others."""


def tests(seconds: float, *paths: str) -> Iterator[Found]:
    """What pytest says of both; of what ended in time if not all did. paths: of tests; default: all."""
    others = max(1, min(MOST, available_cpus() - 1))
    selections = {
        "the tests that need a GPU": ["-m", "gpu", "-n", str(OF_GPU)],
        "the other tests": [
            "-m",
            "not gpu",
            "-n",
            str(others),
            "--dist",
            "loadfile",
            "--no-loadscope-reorder",
        ],
    }
    until = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        logs = {what: Path(folder, f"{number}.log") for number, what in enumerate(selections)}
        started = {what: _start([*chosen, *paths], logs[what]) for what, chosen in selections.items()}
        for what, process in started.items():
            try:
                process.wait(max(0.0, until - time.monotonic()))
                late = None
            except subprocess.TimeoutExpired:
                process.terminate()
                process.wait()
                late = seconds
            output = logs[what].read_text(encoding="utf-8", errors="replace")
            yield verdict(what, output, process.returncode, late)


def _start(arguments: list[str], log: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "pytest", "-vv", "--tb=line", "--color=no", *arguments]
    with log.open("wb") as output:
        return subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)


def verdict(what: str, output: str, code: int, late: float | None) -> Line:
    """The line of a run of pytest; late: the seconds that it was ended after."""
    ended = re.findall(r"^\[gw\d+\] .*?\b(PASSED|FAILED|ERROR|SKIPPED) (\S+)", output, re.MULTILINE)
    found = Counter(state for state, _ in ended)
    broken = [name for state, name in ended if state in ("FAILED", "ERROR")]
    told = ", ".join(f"{n} {state.lower()}" for state, n in found.items())
    if broken:
        told += f": {', '.join(broken[:5])}{' …' * (len(broken) > 5)}"
    if late is not None:
        told += f"; ended after {late:.0f} s, as the time of this check was over: make test runs all"
        return Line(what, "all pass", told, "FAILED" if not broken else "MISSED")
    if not found:
        return Line(what, "all pass", (output.strip().splitlines() or ["no output"])[-1], "FAILED")
    return Line(what, "all pass", told, "met" if code == 0 else "MISSED")
