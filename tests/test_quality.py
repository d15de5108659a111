"""Claims about the code itself: lint, format and types are clean; the repository speaks of itself alone."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


CHECKERS = [["ruff", "check"], ["ruff", "format", "--check"], ["pyrefly", "check"]]


@pytest.mark.parametrize("command", CHECKERS, ids=" ".join)
def test_checkers_find_nothing(command):
    command = [str(BIN / command[0]), *command[1:]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_constraints_name_versions_and_no_place_to_fetch_them_from():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert len(lines) > 20
    for line in lines:
        name, _, version = line.partition("==")
        assert name, line
        assert version, line
        assert "/" not in line, line


@pytest.mark.parametrize(
    ("file", "lines"), [("daft/training/loop.py", 300), ("hydra_plugins/staged_sweeper.py", 150)]
)
def test_the_loop_and_the_adapter_to_hydra_are_short(file: str, lines: int):
    assert len((ROOT / file).read_text(encoding="utf-8").splitlines()) <= lines


SAID_ELSEWHERE = [
    (r":\.[1-9]f\} ?%", "numbers.py"),  # of percents by `fixed`, which alone decides the last digit
    (r"console\.print\(f?\"", "progress.py"),  # by `note` and `say`, which break no path across lines
]


@pytest.mark.parametrize(("pattern", "home"), SAID_ELSEWHERE)
def test_what_is_said_is_rounded_and_wrapped_in_one_place(pattern: str, home: str):
    files = [
        file for folder in ("daft", "scripts", "hydra_plugins") for file in (ROOT / folder).rglob("*.py")
    ]
    assert len(files) > 100
    found = [str(file) for file in files if file.name != home and re.search(pattern, file.read_text())]
    assert found == []
