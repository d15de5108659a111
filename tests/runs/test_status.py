"""Claims about the state of runs, read from directories alone."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from daft.common.errors import UserError
from daft.runs import records, status
from daft.runs.status import Queue, RunState
from tests.helpers.waiting import HANG_SECONDS
from tests.runs.test_records import RECORD

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A run of each state; `b` is only running while its claim is held."""
    folders = {name: tmp_path / f"{name}-{i:012x}" for i, name in enumerate("abcdef")}
    for folder in folders.values():
        with records.lock_run(folder):
            pass
    for name, epoch in (("b", 3), ("c", 7)):
        progress = {"epoch": epoch, "epochs": 20, "seconds": 60.0}
        (folders[name] / records.CHECKPOINTS).mkdir()
        (folders[name] / records.CHECKPOINTS / records.PROGRESS).write_text(json.dumps(progress))
    records.write(folders["a"], RECORD | {"status": "finished"})
    records.write(folders["d"], RECORD | {"status": "diverged"})
    (folders["e"] / records.ERROR).write_text("Traceback\n  File …\nValueError: what was wrong\n")
    (folders["f"] / records.RECORD).write_text("{")
    (tmp_path / "sweeps").mkdir()
    return tmp_path


def test_each_state_is_told_from_the_directory(runs: Path):
    with records.lock_run(runs / "b-000000000001"):
        states = {state.name[0]: state for state in status.list_runs(runs)}
    assert states["b"] == RunState("b-000000000001", "running", 3, 20, 17 * 60.0)
    assert states["c"] == RunState("c-000000000002", "interrupted", 7, 20)
    assert [states[name].state for name in "ade"] == ["finished", "diverged", "failed"]
    assert states["e"].error == "ValueError: what was wrong"
    assert (states["f"].state, "is not a record" in states["f"].error) == ("failed", True)
    assert {state.name[0]: state.state for state in status.list_runs(runs)}["b"] == "interrupted"


def test_what_a_sweep_has_not_started_waits_for_as_long_as_the_sweep_goes_on(runs: Path):
    listed = ["a-000000000000", "b-000000000001", "c-000000000002", "g-000000000006"]
    with records.lock_run(runs / "b-000000000001"), Queue(runs / "sweeps" / "1") as queue:
        queue.show(listed, listed, {})
        states = {state.name[0]: state.state for state in status.list_runs(runs)}
        # What another process computes runs; what was interrupted, or is not there yet, waits.
        assert [states[name] for name in "abcg"] == ["finished", "running", "waiting", "waiting"]
        assert len(states) == 7
        queue.show(listed, listed[:3], {})
        assert len(status.list_runs(runs)) == 6
    assert [state.state for state in status.list_runs(runs)][2] == "interrupted"
    left = json.dumps(status.NOTHING | {"waiting": listed})  # by a driver that was killed
    (runs / "sweeps" / "1" / status.QUEUE).write_text(left)
    assert "waiting" not in {state.state for state in status.list_runs(runs)}


def test_a_run_that_failed_before_it_had_a_directory_is_told_until_a_sweep_tries_it_anew(runs: Path):
    """Its images are absent, say."""
    failed = {"pacs net ft seed=0": "dataset.root: not there", "e-000000000004": "the same error again"}
    with Queue(runs / "sweeps" / "1") as queue:
        queue.show([*failed], [], failed)
    (runs / "sweeps" / "zz.txt").write_text("no sweep")
    states = {state.name: state for state in status.list_runs(runs)}
    assert states["pacs net ft seed=0"] == RunState(
        "pacs net ft seed=0", "failed", error="dataset.root: not there"
    )
    assert states["e-000000000004"].error == "ValueError: what was wrong"  # its own
    with Queue(runs / "sweeps" / "2") as queue:
        queue.show(["another"], [], {})
    assert "pacs net ft seed=0" in {state.name for state in status.list_runs(runs)}
    with Queue(runs / "sweeps" / "3") as queue:
        queue.show([*failed], [], {})
    assert "pacs net ft seed=0" not in {state.name for state in status.list_runs(runs)}


def test_looking_takes_no_claim_away(runs: Path):
    status.list_runs(runs)
    with records.lock_run(runs / "b-000000000001"):
        assert records.is_locked(runs / "b-000000000001")
    assert not records.is_locked(runs / "b-000000000001")


def test_the_script_counts_states_and_lists_what_is_not_finished(runs: Path):
    command = [sys.executable, str(ROOT / "scripts" / "status.py"), str(runs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "1 finished, 2 interrupted, 1 diverged, 2 failed"
    for part in ("7 of 20", "ValueError: what was wrong", "c-000000000002"):
        assert part in done.stdout
    assert "a-000000000000" not in done.stdout


def test_the_script_shows_names_and_errors_as_they_are(tmp_path: Path, monkeypatch, capsys):
    name = "[red]pets[0]-:smile:-000000000000"
    (tmp_path / name).mkdir()
    (tmp_path / name / records.ERROR).write_text("KeyError: '[/red]' of {a[b]}\n")
    monkeypatch.setattr("sys.argv", ["status.py", str(tmp_path)])
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / "scripts" / "status.py"), run_name="__main__")
    output = capsys.readouterr().out
    assert name in output
    assert "KeyError: '[/red]' of {a[b]}" in output
    assert output.endswith("1 failed\n")


def test_a_folder_without_runs_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=str(tmp_path)):
        status.list_runs(tmp_path)


@pytest.mark.parametrize("answer", ["", "n", "y"])
def test_failed_runs_are_removed_after_asking_and_nothing_else_is(runs: Path, script, monkeypatch, answer):
    failed = runs / "e-000000000004"
    with Queue(runs / "sweeps" / "1") as queue:
        queue.show(["never"], [], {"never": "dataset.root: not there"})
    before = {path.name for path in runs.iterdir()}
    monkeypatch.setattr("builtins.input", lambda question: answer)
    done = script("status.py", runs, "--clean")
    assert done.code == 0, done.errors
    assert f"  {failed}\n" in done.output
    assert "f-000000000005" not in done.output.split("to remove:")[1]  # its record may be mended
    gone = before - {path.name for path in runs.iterdir()}
    assert gone == ({failed.name} if answer == "y" else set())
    assert done.output.endswith("1 failed run(s) removed\n" if answer == "y" else "nothing is removed\n")
    names = {state.name for state in status.list_runs(runs)}
    assert ("never" in names) == (answer != "y")


def test_without_asking_a_run_that_has_been_taken_up_again_stays(runs: Path, script):
    failed = runs / "e-000000000004"
    assert status.failed_runs(runs) == [failed]
    with records.lock_run(failed):
        assert not status.remove(failed)
    assert script("status.py", runs, "--clean", "--yes").output.endswith("1 failed run(s) removed\n")
    assert not failed.exists()
    assert script("status.py", runs, "--clean", "--yes").output.endswith("0 failed run(s) removed\n")
