"""Claims about whole sweeps: real processes on the embedded images and network."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from daft import gpus, status
from tests.conftest import TINY

ROOT = Path(__file__).resolve().parent.parent
CELLS = [
    "method=lp,ft,daft",
    "training.epochs=1",
    "compute.threads=1",
    "sweep.grids.ft=[0.1,0.01]",
    "sweep.grids.daft=[0.1,0.01]",
    "sweep.head_factors=[3]",
    "sweep.seeds=[0,1]",
]
RUNS = 2 + (2 + 1) + (2 + 1 + 1)  # LP's seeds; FT's grid and seed; DAFT's grid, η_w and seed


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


def below(folder: Path) -> list[str]:
    return [f"paths.{name}={folder / name}" for name in ("runs", "cache", "data", "weights")]


def table(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("|")]


def numbers(folder: Path) -> dict[str, str]:
    """What each record says, without times and code version, by run."""
    found = {}
    for file in folder.glob("runs/*/record.json"):
        record = json.loads(file.read_text())
        for row in record["history"]:
            del row["seconds"], row["images/s"]
        kept = ("status", "best_epoch", "metrics", "history", "distortion", "relative_change", "probe")
        found[record["run"]] = json.dumps([record[key] for key in kept])
    return found


def stamps(folder: Path) -> dict[str, int]:
    return {file.parent.name: file.stat().st_mtime_ns for file in folder.glob("runs/*/record.json")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, str]:
    """A sweep that went through in one process, and what it printed."""
    folder = tmp_path_factory.mktemp("whole")
    code, output, errors = sweep(*CELLS, *below(folder))
    assert code == 0, output + errors
    return folder, output


def test_a_sweep_ends_in_the_table_of_the_chosen_rates(whole):
    folder, output = whole
    assert len(numbers(folder)) == RUNS
    rows = [row.split(" | ") for row in table(output)[2:]]
    assert [row[0] for row in rows] == ["| lp", "| ft", "| daft"]
    assert all(row[3] == "2" for row in rows)
    best = {}
    for file in folder.glob("runs/*/record.json"):
        record = json.loads(file.read_text())
        if record["config"]["method"]["name"] == "ft" and record["config"]["seed"] == 0:
            best[record["config"]["method"]["lr_backbone"]] = record["metrics"]["id/accuracy"]
    assert rows[1][1] == f"{max(best, key=lambda rate: (best[rate], rate)):g}*"
    assert "edge: shapes shapes_resnet10 ft: lr_backbone=" in output


def test_the_same_again_computes_nothing_and_prints_the_same_table(whole):
    folder, output = whole
    before = stamps(folder)
    code, again, _ = sweep(*CELLS, *below(folder))
    assert code == 0
    assert "to compute" not in again
    assert table(again) == table(output)
    assert stamps(folder) == before


def test_a_plan_counts_what_is_done_and_runs_nothing(whole, tmp_path):
    folder, _ = whole
    extended = [*CELLS[1:], "method=lp,ft,ft_bnc", "sweep.grids.ft_bnc=[0.1,0.01]", "sweep.plan=true"]
    before = stamps(folder)
    code, output, _ = sweep(*extended, *below(folder))
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
    code, output, _ = sweep(*extended, *below(tmp_path))
    assert "8 runs, 0 done, 8 to compute: time unknown" in output
    assert not list(tmp_path.glob("runs/*-*-*"))


def test_workers_give_the_same_records_and_the_same_table(whole, tmp_path):
    folder, output = whole
    code, parallel, errors = sweep("hydra/launcher=workers", *CELLS, *below(tmp_path))
    assert code == 0, parallel + errors
    assert numbers(tmp_path) == numbers(folder)
    assert table(parallel) == table(output)


def test_identical_runs_of_different_cells_run_once_and_stand_in_both(tmp_path):
    """Integrated LP-FT with BN conversion is DAFT (Table 5's last row)."""
    (tmp_path / "conf").mkdir()
    for name in ("one", "two"):
        cell = f"defaults: [daft]\nname: {name}\n"
        (tmp_path / "conf" / "method").mkdir(exist_ok=True)
        (tmp_path / "conf" / "method" / f"{name}.yaml").write_text(cell)
    own = [f"hydra.searchpath=[file://{tmp_path}/conf]", "method=one,two", "sweep.seeds=[0,1]"]
    own += [f"+sweep.stages.{name}=[lr_backbone]" for name in ("one", "two")]
    own += [f"+sweep.grids.{name}=[0.1,0.01]" for name in ("one", "two")]
    code, output, errors = sweep(*own, "training.epochs=1", *below(tmp_path))
    assert code == 0, output + errors
    assert len(numbers(tmp_path)) == 3
    one, two = table(output)[2:]
    assert one.replace("one", "two") == two


def test_a_failed_run_stops_no_other_is_tried_twice_and_shown(tmp_path):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not a checkpoint")
    command = [
        "method=lp,ft",
        "backbone.checksum=null",
        f"backbone.checkpoint=package:shapes_resnet10.safetensors,{broken}",
        *CELLS[1:],
        *below(tmp_path),
    ]
    code, output, errors = sweep(*command)
    assert code == 1
    assert errors == "train.py: 4 run(s) are missing, as listed; the same command tries them again\n"
    assert len(numbers(tmp_path)) == 5  # LP's two and FT's three of the sound checkpoint
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


def test_after_kill_9_of_everything_the_same_command_ends_in_the_same_bits(whole, tmp_path):
    folder, output = whole
    before: dict[str, int] = {}
    for count in (2, 6):
        process = start(*CELLS, *below(tmp_path), start_new_session=True)
        deadline = time.monotonic() + 60
        while len(stamps(tmp_path)) < count:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert before.items() <= stamps(tmp_path).items()
        before = stamps(tmp_path)
        assert len(before) < RUNS
    code, resumed, errors = sweep(*CELLS, *below(tmp_path))
    assert code == 0, resumed + errors
    assert before.items() <= stamps(tmp_path).items()  # nothing that had finished was computed again
    assert numbers(tmp_path) == numbers(folder)
    assert table(resumed) == table(output)


@pytest.mark.parametrize("launcher", ["basic", "workers"])
def test_an_interrupt_ends_the_sweep_in_one_line(launcher, tmp_path):
    long = ["method=ft", "sweep.grids.ft=[0.1,0.01]", "training.epochs=500", f"hydra/launcher={launcher}"]
    process = start(*long, *below(tmp_path), start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("runs/*/checkpoints/last.pt")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1].startswith("train.py: interrupted") or "interrupted;" in errors
    states = status.look(tmp_path / "runs")
    assert {state.state for state in states} == {"interrupted"}
    assert max(state.epoch for state in states) >= 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["seed=0,1"], ["seed", "sweep.seeds"]),
        (["method.lr_backbone=0.1"], ["method.lr_backbone", "sweep.grids"]),
        (["sweep.sedes=[0]"], ["sweep.sedes", "seeds"]),
        (["sweep.extend=true,false"], ["sweep.extend", "lists"]),
        (["method=ft", "method.lr_head=1"], ["method.lr_head", "tied"]),
    ],
)
def test_what_a_sweep_cannot_take_is_one_line_before_any_run(arguments, words, tmp_path):
    code, _, errors = sweep(*arguments, *below(tmp_path))
    assert code == 1
    assert len(errors.splitlines()) == 1, errors
    for word in words:
        assert word in errors
    assert not list(tmp_path.glob("runs/*-*-*"))


@pytest.mark.parametrize("arguments", [["sweep=paper"], ["sweep.plan=true"], ["-m", "sweep.plan=true"]])
def test_a_sweep_without_m_or_without_a_protocol_is_refused(arguments, tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *arguments, *below(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert re.fullmatch(r"train\.py: sweep: needs -m and a protocol.*\n", done.stderr)


def test_processes_share_the_gpus_evenly(tmp_path):
    """Locks of one process conflict as those of several do."""
    assert [gpus.pin(["0", "1", "2"], tmp_path) for _ in range(5)] == ["0", "1", "2", "0", "1"]
