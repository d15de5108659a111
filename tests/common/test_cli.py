"""Claims about the door of the scripts: exit codes and the one line that says why."""

import argparse
import errno
from pathlib import Path

import pytest

from daft.common import cli
from daft.common.errors import ConfigError, UserError

FULL = OSError(errno.ENOSPC, "No space left on device", "runs/x")


def ended(monkeypatch, raises: BaseException | None = None, code: int | None = None) -> object:
    """The exit code, or the line, of a script whose main ends so."""

    def main() -> int | None:
        if raises:
            raise raises
        return code

    monkeypatch.setattr("sys.argv", ["/somewhere/tables.py"])
    with pytest.raises(SystemExit) as caught:
        cli.run(main)
    return caught.value.code


def test_a_script_ends_with_its_code(monkeypatch):
    assert ended(monkeypatch) is None
    assert ended(monkeypatch, code=1) == 1


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (UserError("runs: no records"), "runs: no records"),
        (ConfigError("seed", "'one' is no number"), "seed: 'one' is no number"),
        (FULL, f"[Errno {errno.ENOSPC}] No space left on device: 'runs/x'"),
    ],
)
def test_what_the_user_can_mend_is_one_line_with_the_scripts_name(monkeypatch, error, text):
    assert ended(monkeypatch, error) == f"tables.py: {text}"  # python prints it and exits with 1


def test_ctrl_c_is_one_line_and_130(monkeypatch, capsys):
    assert ended(monkeypatch, KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "interrupted; the same command goes on where it was\n"


def test_a_traceback_is_shown_on_demand_and_for_what_is_no_ones_mistake(monkeypatch):
    def main() -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        cli.run(main)
    monkeypatch.setattr(cli, "FULL_ERROR", True)
    with pytest.raises(UserError, match="mine"):
        ended(monkeypatch, UserError("mine"))


def test_lists_and_counts_are_read(monkeypatch):
    assert cli.names(" lp, daft,,") == ["lp", "daft"]
    assert cli.count("12") == 12
    for wrong in ("0", "-1", "1.5", "x"):
        with pytest.raises(argparse.ArgumentTypeError, match="is no whole number from 1"):
            cli.count(wrong)


def test_the_folder_of_runs_is_that_of_the_environment_unless_it_is_named(monkeypatch):
    for name, given in (("--runs", ["--runs", "mine"]), ("runs", ["mine"])):
        for folder in ("elsewhere", None):
            if folder:
                monkeypatch.setenv("DAFT_RUNS", folder)
            else:
                monkeypatch.delenv("DAFT_RUNS")
            parser = cli.parser("doc")
            cli.add_runs(parser, name)
            assert parser.parse_args([]).runs == Path(folder or "runs")
            assert parser.parse_args(given).runs == Path("mine")
