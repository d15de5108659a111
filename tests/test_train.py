"""Claims about scripts/train.py: whatever Hydra's own folders are, runs are where `paths.runs` says."""

import runpy
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from hydra_plugins.sweep_summary import SweepSummary
from tests.conftest import ROOT, TINY

TINIEST = [*TINY, "method=ft", "training.epochs=1", "dataset.train.images=20", "dataset.id.images=10"]
MOVED = ["hydra.job.chdir=true", "hydra.run.dir=a/${now:%H}", "hydra.sweep.dir=b", "hydra.sweep.subdir=c"]
MOVED += ["hydra.output_subdir=d", "hydra.job.name=e"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_runs_are_where_they_are_without_hydras_options_and_are_not_made_again(script, here: Path):
    done = script("train.py", *TINIEST)
    assert done.code == 0, done.errors
    (run,) = here.glob("runs/shapes-*")
    done = script("train.py", *TINIEST, *MOVED)
    assert done.code == 0, done.errors
    assert "(taken from its record)" in " ".join(done.output.split())
    done = script("train.py", "-m", "wandb.group=a,b", *TINIEST, *MOVED)  # both jobs have one folder
    assert done.code == 0, done.errors
    assert sum("│ ft" in line for line in done.output.splitlines()) == 2
    sweep = ["sweep=small", "sweep.seeds=[0]", "sweep.grids.ft=[0.01]"]
    for moved in (MOVED, []):
        done = script("train.py", "-m", *sweep, *TINIEST, *moved)
        assert done.code == 0, done.errors
        assert "to compute" not in done.output
    assert [path.parent for path in here.rglob("record.json")] == [run]
    assert {"a", "b", "runs", "cache"} <= {path.name for path in here.iterdir()}


def test_the_table_of_a_sweep_leaves_out_what_an_earlier_one_left_in_its_folder(
    here: Path, capsys, monkeypatch
):
    shown = []
    monkeypatch.setattr("daft.report.tables.show", lambda runs, title: shown.append(runs))
    config = OmegaConf.create({"hydra": {"sweep": {"dir": "out"}, "overrides": {"task": ["seed=range(0)"]}}})
    summary = SweepSummary()
    for name, times in (("first", 2), ("second", 1)):
        (here / name).mkdir()
        (here / name / "record.json").write_text("{}")
        summary.on_multirun_start(config)
        for job in range(times):
            (here / "out" / str(job)).mkdir(parents=True, exist_ok=True)
            (here / "out" / str(job) / "run.txt").write_text(str(here / name))
        summary.on_multirun_end(config)
    assert shown == [[here / "first"] * 2, [here / "second"]]
    summary.on_multirun_start(config)
    with pytest.raises(SystemExit, match=r"train\.py: seed=range\(0\): no value, so there is no run"):
        summary.on_multirun_end(config)


def test_what_jobs_in_processes_of_their_own_said_is_said_again_at_the_end(here: Path, capsys):
    jobs = {"_target_": "hydra_plugins._launchers.LocalJobs"}
    config = OmegaConf.create({"hydra": {"sweep": {"dir": "out"}, "launcher": jobs}})
    (here / "out" / "0").mkdir(parents=True)
    (here / "out" / "0" / "error.txt").write_text("seed=one: seed: 'one' is no number")
    with pytest.raises(SystemExit, match=r"1 of 1 runs failed, for the reasons above"):
        SweepSummary().on_multirun_end(config)
    assert capsys.readouterr().err == "train.py: seed=one: seed: 'one' is no number\n"


def test_of_several_runs_one_that_fails_is_told_and_the_others_go_on(script, here: Path):
    done = script("train.py", "-m", *TINIEST, "training.batch_size=1,20")
    assert done.code == 1
    told = [line for line in done.errors.splitlines() if line.startswith("train.py: ")]
    assert "training.batch_size=1: training.batch_size: 1 is not allowed" in told[0]
    assert told[1] == "train.py: 1 of 2 runs failed, for the reasons above"
    assert len([*here.glob("runs/*/record.json")]) == 1


@pytest.mark.parametrize("place", ["file", "file/below", "x" * 300, "/proc/x"])
@pytest.mark.parametrize("key", ["runs", "cache"])
def test_a_place_that_can_be_no_folder_is_named_with_its_key(script, here: Path, key: str, place: str):
    (here / "file").touch()
    done = script("train.py", *TINIEST, f"paths.{key}={place}")
    assert done.code == 1
    assert done.errors.startswith(f"train.py: paths.{key}: {place[:50]}"), done.errors
    assert len(done.errors.splitlines()) == 1


def test_a_run_that_diverges_says_so_and_ends_with_code_3_but_a_sweep_with_0(here: Path, capfd, monkeypatch):
    def code(*arguments: str) -> int | str | None:
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(ROOT / "scripts" / "train.py"), run_name="__main__")
        return caught.value.code

    fast = [*TINIEST, "method.lr_backbone=1e6"]
    assert code(*fast) == 3
    output, errors = capfd.readouterr()
    assert "shapes: 10 classes" in errors
    told = "in epoch 1 loss or logits were not finite at η_θ=1e+06; try a smaller rate, such as"
    assert f"{told} method.lr_backbone=100000" in errors.splitlines()
    assert "│ diverged │" in output
    assert code(*fast) == 3  # taken from its record
    capfd.readouterr()
    assert not code("-m", *fast)
    output, errors = capfd.readouterr()
    assert "shapes: 10 classes" not in errors
    assert f"ft η_θ=1e+06 seed=0: diverged (taken from its record); {told}" in output
