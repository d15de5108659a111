"""Claims about what a terminal shows: users' names as they are, whatever they look like."""

import io
import multiprocessing
from pathlib import Path

import pytest
from filelock import FileLock
from rich.console import Console
from rich.table import Table

from daft.common import files, progress
from tests.helpers.waiting import wait_until

NAMES = ["[red]", "[/red]", "[bold]x[/]", "[link=file:///x]y", ":smile:", "a[b", r"\[c]", "[0]"]
"""What rich would take for markup, refuse as such, or draw as a picture."""


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a wide terminal is sent, without its control codes for colour."""
    shown = io.StringIO()
    drawn = Console(file=shown, force_terminal=True, no_color=True, width=200, markup=False, emoji=False)
    assert (progress.console._markup, progress.console._emoji) == (drawn._markup, drawn._emoji)
    monkeypatch.setattr(progress, "console", drawn)
    return shown


@pytest.mark.parametrize("name", NAMES)
def test_a_bar_shows_names_as_they_are(name: str, terminal: io.StringIO) -> None:
    assert [*progress.track([1, 2], f"checking {name}", 2)] == [1, 2]
    assert f"checking {name}" in terminal.getvalue()
    with progress.transfer() as bar:
        bar.add_task(f"verifying {name}", total=3)
    assert f"verifying {name}" in terminal.getvalue()


@pytest.mark.parametrize("name", NAMES)
def test_a_line_is_what_was_said_in_one_line(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    long = f"{'folder/' * 50}{name}"
    progress.say(long)
    progress.warn_left_out(long)
    progress.say_once(long)
    assert capfd.readouterr().err == f"{long}\nleft out: {long}\n{long}\n"


def _hold(lock: Path, told: Path) -> None:
    with FileLock(lock):
        told.touch()
        wait_until(lambda: not told.exists())


def test_a_process_that_waits_says_for_what(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    held = tmp_path / "held"
    process = multiprocessing.get_context("fork").Process(target=_hold, args=(tmp_path / "lock", held))
    process.start()
    wait_until(held.exists)
    message, said = f"another process is filling {tmp_path / '[a]'}", progress.say

    def let_go(text: str) -> None:
        said(text)
        held.unlink()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "say", let_go)
        with files.exclusive(tmp_path / "lock", message):
            pass
    process.join()
    assert capfd.readouterr().err == f"{message}\n"


def test_a_table_shows_names_as_they_are(capfd: pytest.CaptureFixture[str]) -> None:
    table = Table(title="runs/[red]")
    table.add_column("[bold]")
    for name in NAMES:
        table.add_row(name)
    progress.terminal(width=100).print(table)
    output = capfd.readouterr().out
    for name in ("runs/[red]", "[bold]", *NAMES):
        assert name in output


@pytest.mark.parametrize("terminal_width", ["40", "200"])
def test_a_table_is_as_wide_as_its_names(terminal_width: str, monkeypatch, capsys) -> None:
    monkeypatch.setenv("COLUMNS", terminal_width)
    table = Table("run", "state")
    table.add_row("shapes-shapes_resnet10-daft-s0-0123456789ab", "finished")
    progress.print_whole(table)
    assert "shapes-shapes_resnet10-daft-s0-0123456789ab │ finished" in capsys.readouterr().out
