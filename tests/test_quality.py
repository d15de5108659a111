"""Claims about the code itself: lint, format and types are clean; the repository speaks of itself alone."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


CHECKERS = [["ruff", "check"], ["ruff", "format", "--check"], ["basedpyright", "--level", "error"]]


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


def test_the_loop_is_short():
    """The house rule: the file of the training loop has at most 300 lines."""
    assert len((ROOT / "daft" / "training" / "loop.py").read_text().splitlines()) <= 300
