"""Claims about whole sweeps: real processes on the embedded images and network."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher

from daft import gpus, records, status
from daft.cells import Run
from daft.cli import complaint
from hydra_plugins.staged_sweeper import Report, StagedSweeper, wave
from scripts.kill_test import contents, stamps
from tests.conftest import TINY

ROOT = Path(__file__).resolve().parent.parent
TWO_SEEDS = ["training.epochs=1", "compute.threads=1", "sweep.grids.ft=[0.1,0.01]", "sweep.seeds=[0,1]"]
CELLS = [
    "method=lp,ft,daft,alias",
    "+sweep.stages.alias=[lr_backbone,lr_head]",
    "+sweep.grids.alias=[0.1,0.01]",
    "sweep.grids.daft=[0.1,0.01]",
    "sweep.head_factors=[3]",
    *TWO_SEEDS,
]
RUNS = 2 + (2 + 1) + (2 + 1 + 1)  # LP's seeds; FT's grid and a seed; DAFT's two grids and a seed


def start(*arguments: str, **options) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), "-m", "sweep=paper", *TINY, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, env=environment, **pipes, **options)


def sweep(*arguments: str) -> tuple[int, str, str]:
    """Exit code, output and errors of a sweep that is left to end."""
    process = start(*arguments)
    output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors


@pytest.fixture
def here(monkeypatch, capfd) -> Callable[..., tuple[int, str, str]]:
    """As `sweep`, in this process, which has torch already."""
    spec = importlib.util.spec_from_file_location("train", ROOT / "scripts" / "train.py")
    assert spec is not None
    assert spec.loader is not None
    train = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec.loader.exec_module(train)
    for name in ("HYDRA_FULL_ERROR", "PYTHONPATH"):
        monkeypatch.setenv(name, os.environ.get(name, ""))

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["train.py", "-m", "sweep=paper", *TINY, *arguments])
        code, message = 0, ""
        try:
            train.main()
        except SystemExit as stop:
            code, message = 1, f"{stop.code}\n"
        output, errors = capfd.readouterr()
        return code, output, errors + message

    return run


def below(folder: Path) -> list[str]:
    return [f"paths.{name}={folder / name}" for name in ("runs", "cache", "data", "weights")]


def table(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("|")]


def whole_cells(folder: Path) -> list[str]:
    """What the sweep of `whole` was told, but for where it writes."""
    return [f"hydra.searchpath=[file://{folder}/conf]", *CELLS]


def wait_for(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, str]:
    """A sweep that went through in one process, and what it printed."""
    folder = tmp_path_factory.mktemp("whole")
    methods = folder / "conf" / "method"
    methods.mkdir(parents=True)
    (methods / "alias.yaml").write_text("defaults: [daft]\nname: alias\n")  # the same runs by another name
    code, output, errors = sweep(*whole_cells(folder), *below(folder))
    assert code == 0, output + errors
    return folder, output


def test_a_sweep_ends_in_the_table_of_the_chosen_rates(whole):
    folder, output = whole
    assert len(contents(folder)) == RUNS
    rows = [row.split(" | ") for row in table(output)[2:]]
    assert [row[0] for row in rows] == ["| lp", "| ft", "| daft", "| alias"]
    assert all(row[3] == "2" for row in rows)
    assert rows[2][1:] == rows[3][1:]  # identical runs ran once and stand in both cells
    best, weights = {}, {}
    for file in folder.glob("runs/*/record.json"):
        record = json.loads(file.read_text())
        chosen = record["config"]["method"]["lr_backbone"], record["config"]["method"]["lr_head"]
        name = record["config"]["method"]["name"]
        weights.setdefault((name, *chosen), []).append((file.parent / records.MODEL).exists())
        if record["config"]["method"]["name"] == "ft" and record["config"]["seed"] == 0:
            best[record["config"]["method"]["lr_backbone"]] = record["metrics"]["id/accuracy"]
    winner = max(best, key=lambda rate: (best[rate], rate))
    assert rows[1][1] == f"{winner:g}*"
    # The weights of the chosen rates stay, of both seeds; those of the rest of the grid are gone.
    assert {key: found for key, found in weights.items() if key[0] == "ft"} == {
        ("ft", winner, None): [True, True],
        ("ft", min(best.keys() - {winner}), None): [False],
    }
    assert weights["lp", None, None] == [True, True]
    assert "edge: shapes shapes_resnet10 ft: lr_backbone=" in output


def test_the_same_again_computes_nothing_and_prints_the_same_table(whole, here):
    folder, output = whole
    before = stamps(folder)
    code, again, _ = here(*whole_cells(folder), *below(folder))
    assert code == 0
    assert "to compute" not in again
    assert table(again) == table(output)
    assert stamps(folder) == before


def test_a_plan_counts_what_is_done_and_runs_nothing(whole, here):
    folder, _ = whole
    more = [*TWO_SEEDS, "method=lp,ft,ft_bnc", "sweep.grids.ft_bnc=[0.1,0.01]", "sweep.plan=true"]
    before = stamps(folder)
    code, output, _ = here(*more, *below(folder))
    assert code == 0
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines() if "│" in line]
    counts = [(line[0].split()[-1], *line[1:4]) for line in lines]
    assert counts == [
        ("lp", "seeds", "2", "2"),
        ("ft", "lr_backbone", "2", "2"),
        ("ft", "seeds", "1", "1"),
        ("ft_bnc", "lr_backbone", "2", "0"),
        ("ft_bnc", "seeds", "1", "0"),
    ]
    assert "8 runs, 5 done, 3 to compute: 0.00 device-hours" in output  # of seconds each
    assert stamps(folder) == before


def test_workers_give_the_same_records_and_the_same_table(whole, tmp_path):
    folder, output = whole
    code, parallel, errors = sweep("hydra/launcher=workers", *whole_cells(folder), *below(tmp_path))
    assert code == 0, parallel + errors
    assert contents(tmp_path) == contents(folder)
    assert table(parallel) == table(output)


def test_a_failed_run_stops_no_other_is_tried_twice_and_shown(tmp_path, here):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not a checkpoint")
    command = [
        "method=lp,ft",
        "backbone.checksum=null",
        f"backbone.checkpoint=package:shapes_resnet10.safetensors,{broken}",
        *TWO_SEEDS,
        *below(tmp_path),
    ]
    code, output, errors = here(*command)
    assert code == 1
    assert errors == "train.py: 4 run(s) are missing, as listed; the same command tries them again\n"
    assert len(contents(tmp_path)) == 5  # LP's two and FT's three of the sound checkpoint
    missing = [line for line in output.splitlines() if line.startswith("missing: ")]
    assert len(missing) == 5
    for line in missing[:4]:
        assert str(broken) in line
        assert "does not load" in line
    assert missing[4].endswith("its later stages, which need what failed")
    assert output.count("| lp |") == 1
    jobs = list(tmp_path.glob("runs/sweeps/*/*/error.txt"))
    assert len(jobs) == 2 * 4
    states = {state.state for state in status.look(tmp_path / "runs")}
    assert states == {"finished", "failed"}


def test_a_damaged_record_is_named_and_left_alone_and_the_rest_is_shown(whole, tmp_path, here):
    folder, _ = whole
    shutil.copytree(folder / "runs", tmp_path / "runs")
    (file,) = tmp_path.glob("runs/*-lp-s1-*/record.json")
    file.write_text("{")
    code, output, _ = here("method=lp", *TWO_SEEDS, *below(tmp_path))
    assert code == 1
    assert f"missing: shapes shapes_resnet10 lp seed=1: {file} is not a record" in output
    assert table(output)[-1].startswith("| lp | - | - | 1 |")
    assert file.read_text() == "{"


def test_stopped_or_killed_at_any_time_the_same_command_ends_in_the_same_bits(whole, tmp_path):
    folder, output = whole
    command = [*whole_cells(folder), *below(tmp_path)]
    before: dict[str, int] = {}
    for sent, count in ((signal.SIGINT, 2), (signal.SIGKILL, 6)):
        process = start(*command, start_new_session=True)
        wait_for(process, lambda count=count: len(stamps(tmp_path)) >= count)
        os.killpg(process.pid, sent)
        _, errors = process.communicate(timeout=60)
        if sent == signal.SIGINT:
            assert process.returncode == 130
            assert errors == "interrupted; the same command goes on from the last epoch\n"
        assert before.items() <= stamps(tmp_path).items()
        before = stamps(tmp_path)
        assert len(before) < RUNS
    code, resumed, errors = sweep(*command)
    assert code == 0, resumed + errors
    assert before.items() <= stamps(tmp_path).items()  # nothing that had finished was computed again
    assert contents(tmp_path) == contents(folder)
    assert table(resumed) == table(output)


def test_two_sweeps_of_the_same_cells_share_the_work_and_end_alike(whole, tmp_path):
    folder, output = whole
    both = [start(*whole_cells(folder), *below(tmp_path)) for _ in range(2)]
    for process in both:
        shared, errors = process.communicate(timeout=120)
        assert process.returncode == 0, shared + errors
        assert table(shared) == table(output)
    assert contents(tmp_path) == contents(folder)


def test_a_run_that_kills_its_worker_fails_alone(tmp_path, configure):
    """The launcher is a stand-in: it breaks down on one run, as joblib does when a worker is killed."""
    config = configure("method=ft")
    runs = [Run([name], config, tmp_path / name) for name in ("a", "killer", "b", "c")]
    launched = []

    class Breaking:
        def launch(self, overrides: list[list[str]], initial_job_idx: int) -> list[JobReturn]:
            launched.append([name for (name,) in overrides])
            for (name,) in overrides:
                (tmp_path / name).mkdir(exist_ok=True)
                if name == "killer":
                    raise RuntimeError("a worker was killed")
                found = {"status": "finished", "metrics": {"id/accuracy": 50.0}}
                records.write(tmp_path / name, dict.fromkeys(records.SHOWN) | found)
            returns = [JobReturn(status=JobStatus.COMPLETED) for _ in overrides]
            for returned, (name,) in zip(returns, overrides, strict=True):
                returned.return_value = Report(directory=str(tmp_path / name))
            return returns

    sweeper = StagedSweeper()
    sweeper._launcher = cast(Launcher, Breaking())
    while todo := [run for run in runs if run.outcome is None]:
        sweeper._launch(wave(todo, None))
    assert launched == [["a", "killer", "b", "c"], ["b", "c"], ["killer"], ["killer"]]
    assert [run.outcome and run.outcome.status for run in runs] == [
        "finished",
        "failed",
        "finished",
        "finished",
    ]
    assert runs[1].error == "RuntimeError: a worker was killed"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["seed=0,1"], ["seed", "sweep.seeds"]),
        (["sweep.sedes=[0]"], ["sweep.sedes", "did you mean 'seeds'"]),
        (["method=ft", "method.lr_head=1"], ["method.lr_head", "tied"]),
    ],
)
def test_what_a_sweep_cannot_take_is_one_line_before_any_run(arguments, words, tmp_path, here):
    code, _, errors = here(*arguments, *below(tmp_path))
    assert code == 1
    assert len(errors.splitlines()) == 1, errors
    for word in words:
        assert word in errors
    assert not list(tmp_path.glob("runs/*-*-*"))


@pytest.mark.parametrize("arguments", [["sweep=paper"], ["-m", "sweep.plan=true"]])
def test_a_sweep_without_m_or_without_a_protocol_is_refused(arguments):
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert re.fullmatch(r"train\.py: sweep: needs -m and a protocol.*\n", done.stderr)


def test_a_launcher_that_is_not_installed_is_named_with_what_installs_it():
    found = HydraException(
        "In 'hydra/launcher/workers': Could not load 'hydra/launcher/joblib'.\n\nSearched …"
    )
    expected = "train.py: hydra/launcher=workers: joblib is not installed; pip install -e '.[sweeps]'"
    assert complaint("train.py", found) == expected


def test_processes_share_the_gpus_evenly(tmp_path):
    """Locks of one process conflict as those of several do."""
    assert [gpus.pin(["0", "1", "2"], tmp_path) for _ in range(5)] == ["0", "1", "2", "0", "1"]
