"""Claims about whole sweeps: real processes on the embedded images and network."""

import importlib.util
import itertools
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from typing import cast

import pandas as pd
import pytest
import torch
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher

from daft.common import cli
from daft.common.errors import UserError
from daft.config.check import to_dict
from daft.config.compose import explain
from daft.report import tables as long_tables
from daft.runs import frames, records, status
from daft.sweep import gpus, plan, selection, timing
from daft.sweep.cells import Cell, SweepRun
from daft.sweep.driver import Driver
from daft.sweep.jobs import JobResult
from daft.sweep.protocol import Protocol, Rates
from daft.training.segmentation import Segmentation
from hydra_plugins.staged_sweeper import HydraLauncher
from scripts import figures, tables
from tests import kill_test
from tests.helpers.forked import TRAIN, Forked, without_notes
from tests.helpers.pausing import pause_in_step
from tests.helpers.waiting import HANG_SECONDS, wait_until
from tests.kill_test import RUNS, SWEEP, Kill, contents, disturbed, kill, places, stamps
from tests.runs.test_records import RECORD, spoiled
from tests.sweep.test_protocol import options
from tests.training.test_segmentation import TINY as TINY_MASKS

CELLS = [
    "method=lp,ft,ft_bnc,lp_ft,daft,alias",
    "+sweep.stages.alias=[lr_backbone,lr_head]",
    "+sweep.grids.alias=[0.1,0.03,0.01]",
]
SMALL = [*SWEEP, *(f"dataset.{split}.images=20" for split in ("train", "id", "ood.photo"))]
WORKERS = ["hydra/launcher=workers", "hydra.launcher.n_jobs=2"]


def start(folder: Path, *arguments: str) -> Forked:
    """A sweep of 20 tiny runs, or what the arguments make of it, that writes below `folder`."""
    return Forked(folder, "-m", *SMALL, *places(folder), *arguments)


@pytest.fixture
def command(monkeypatch, capfd) -> Callable[..., tuple[int, str, str]]:
    """Exit code, output and errors, without its notes, of train.py in this process."""
    spec = importlib.util.spec_from_file_location("train", TRAIN)
    assert spec is not None
    assert spec.loader is not None
    train = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(timing, "SECONDS", 1e-9)  # a plan's estimates are no matter here
    spec.loader.exec_module(train)
    for name in ("HYDRA_FULL_ERROR", "PYTHONPATH"):
        monkeypatch.setenv(name, os.environ.get(name, ""))

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        code, message = 0, ""
        try:
            cli.run(train.main)
        except SystemExit as stop:
            if stop.code:
                code, message = 1, f"{stop.code}\n"
        output, errors = capfd.readouterr()
        return code, output, without_notes(errors) + message

    return run


@pytest.fixture
def here(command) -> Callable[..., tuple[int, str, str]]:
    """Of a sweep that writes below a folder."""
    return lambda folder, *arguments: command("-m", *SMALL, *places(folder), *arguments)


def table(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("|")]


@contextmanager
def claimed_until(directory: Path, condition: Callable[[], bool]) -> Iterator[None]:
    """Let sweeps see another process at this run, until the condition holds."""
    claimed, left = threading.Event(), threading.Event()

    def hold() -> None:
        with records.lock_run(directory):
            claimed.set()
            wait_until(lambda: left.is_set() or condition())

    with ThreadPoolExecutor(1) as thread:  # a lock belongs to a thread
        held = thread.submit(hold)
        wait_until(claimed.is_set)
        try:
            yield
        finally:
            left.set()
        held.result()


def whole_cells(folder: Path) -> list[str]:
    """What the sweep of `whole` was told, but for where it writes."""
    return [f"hydra.searchpath=[file://{folder}/conf]", *CELLS]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, str]:
    """A sweep that went through in one process, and what it printed."""
    folder = tmp_path_factory.mktemp("whole")
    methods = folder / "conf" / "method"
    methods.mkdir(parents=True)
    (methods / "alias.yaml").write_text("defaults: [daft]\nname: alias\n")  # the same runs by another name
    code, output, errors = start(folder, *whole_cells(folder)).end()
    assert code == 0, output + errors
    return folder, output


def test_a_sweep_ends_in_the_table_of_the_chosen_rates(whole):
    folder, output = whole
    assert len(contents(folder)) == RUNS
    rows = [row.split(" | ") for row in table(output)[2:]]
    assert [row[0] for row in rows] == ["| lp", "| ft", "| ft_bnc", "| lp_ft", "| daft", "| alias"]
    assert all(row[3] == "2" for row in rows)
    assert rows[4][1:] == rows[5][1:]  # identical runs ran once and stand in both cells
    best, weights = {}, {}
    for file in folder.glob("runs/*/record.json"):
        record = json.loads(file.read_text())
        chosen = record["config"]["method"]["lr_backbone"], record["config"]["method"]["lr_head"]
        name = record["config"]["method"]["name"]
        weights.setdefault((name, *chosen), []).append((file.parent / records.MODEL).exists())
        if record["config"]["method"]["name"] == "ft" and record["config"]["seed"] == 0:
            best[record["config"]["method"]["lr_backbone"]] = record["metrics"]["id/accuracy"]
    winner = max(best, key=lambda rate: (best[rate], rate))
    assert rows[1][1].rstrip("*") == f"{winner:g}"
    # The weights of the chosen rates stay, of both seeds; those of the rest of the grid are gone.
    assert {key: found for key, found in weights.items() if key[0] == "ft"} == {
        ("ft", winner, None): [True, True],
        **{("ft", rate, None): [False] for rate in best.keys() - {winner}},
    }
    assert weights["lp", None, None] == [True, True]
    assert "edge: shapes shapes_resnet10 " in output


def test_the_total_of_a_sweep_is_known_when_it_starts_and_stays(whole):
    """Also of stages that are decided later; a run that several cells share counts once."""
    _, output = whole
    assert f"{RUNS} run(s) to compute, 0 done" in output.splitlines()
    assert {*re.findall(r"^\[\d+ of (\d+)\]", output, re.MULTILINE)} == {str(RUNS)}


def test_a_total_that_may_grow_says_so_in_the_plan_and_in_every_line_until_it_stays(tmp_path, here):
    options = ["method=ft", "sweep.grids.ft=[0.01,0.001]", "sweep.seeds=[0]", "sweep.extend=true"]
    _, output, _ = here(tmp_path, *options, "sweep.plan=true")
    lines = output.splitlines()
    (place,) = (
        number for number, line in enumerate(lines) if line.startswith("2 runs, 0 done, 2 to compute")
    )
    assert lines[place + 1].startswith(
        "more may come, which are not counted: sweep.extend=true adds up to 4 values to each of 1 grid(s)"
    )
    code, output, _ = here(tmp_path, *options)
    assert code == 0
    assert (
        "2 run(s) to compute, 0 done, more where the best value is at the edge of its grid (sweep.extend)"
        in output.splitlines()
    )
    found = re.findall(r"^\[(\d+) of (\d+)( or more)?\]", output, re.MULTILINE)
    assert len(found) > 2  # of two values the best one is at an edge
    assert [int(ended) for ended, *_ in found] == [*range(1, len(found) + 1)]
    for (_, total, more), (_, later, _) in itertools.pairwise(found):
        assert total == later or more
    assert found[-1] == (str(len(found)), str(len(found)), "")
    _, output, _ = here(tmp_path, *options, "sweep.plan=true")
    assert f"{len(found)} runs, {len(found)} done, 0 to compute" in output
    assert "more may come" not in output


def test_the_same_again_computes_nothing_and_prints_the_same_table(whole, here):
    folder, output = whole
    before = stamps(folder)
    code, again, _ = here(folder, *whole_cells(folder))
    assert code == 0
    assert "to compute" not in again
    assert table(again) == table(output)
    assert stamps(folder) == before


def test_lp_ft_of_a_segmentation_takes_the_decoder_of_lps_best_run(command, tmp_path, monkeypatch):
    sweep = [
        *("-m", "sweep=segmentation", *TINY_MASKS, *places(tmp_path), "sweep.seeds=[0,1]"),
        *("sweep.head_factors=[1,0.01]", "sweep.grids.lp_ft=[0.01,0.001]"),
    ]
    _, plan, _ = command(*sweep, "method=lp_ft", "sweep.plan=true")
    assert [line.split("│")[2:4] for line in plan.splitlines() if "│" in line] == [
        [" lr_probe    ", "    3 "],
        [" lr_backbone ", "    2 "],
        [" seeds       ", "    1 "],
    ]
    code, output, errors = command(*sweep, "method=lp_ft,lp")
    assert code == 0, errors
    assert [row.split()[1] for row in table(output) if row.startswith("| lp")] == ["lp", "lp_ft"]
    found = [json.loads(file.read_text()) for file in tmp_path.glob("runs/*/record.json")]
    lp, lp_ft = ([r for r in found if r["config"]["method"]["name"] == name] for name in ("lp", "lp_ft"))
    best = max(
        (r for r in lp if r["config"]["seed"] == 0),
        key=lambda r: (r["metrics"]["id/miou"], r["config"]["method"]["lr_head"]),
    )
    assert (len(lp), len(lp_ft)) == (3, 3)
    for record in lp_ft:
        assert record["config"]["method"]["lr_probe"] == best["config"]["method"]["lr_head"]
    assert {r["probe"]["run"] for r in lp_ft if r["config"]["seed"] == 0} == {best["run"]}

    code, output, _ = command(*sweep, "method=lp_ft,lp", "sweep.head_factors=[3,0.01]")  # a wider grid of LP
    assert code == 0
    folder = frames.from_directories(path.parent for path in tmp_path.glob("runs/*/record.json"))
    assert long_tables.markdown(long_tables.aggregate(selection.select(folder), folder)) in output

    monkeypatch.setattr(Segmentation, "score", lambda *_: math.nan)  # every run diverges
    code, output, _ = command(*sweep, "method=lp_ft", "sweep.head_factors=[10]", "segmentation.lr_head=1e5")
    assert code == 0
    assert output.splitlines()[-1].startswith("diverged: shapes_masks ")
    own = ("sweep.stages.lp_ft=[lr_backbone]", "method.lr_probe=1e5")
    code, output, _ = command(*sweep, "method=lp_ft", *own)
    assert code == 0
    assert "| lp_ft | - | - | 0 | diverged |" in output

    code, _, errors = command(*sweep, "method=lp_ft", "method.lr_probe=0.1")
    assert code == 1
    assert "method.lr_probe: a staged sweep sets it; to set it yourself, say" in errors
    assert "sweep.stages.lp_ft=[lr_backbone]" in errors


def test_a_plan_counts_what_is_done_and_runs_nothing(whole, here):
    folder, _ = whole
    more = ["method=lp,ft,lp_ft_bnc", "sweep.grids.lp_ft_bnc=[0.1,0.01]", "sweep.plan=true"]
    before = stamps(folder)
    code, output, _ = here(folder, *more)
    assert code == 0
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines() if "│" in line]
    counts = [(line[0].split()[-1], *line[1:4]) for line in lines]
    assert counts == [
        ("lp", "seeds", "2", "2"),
        ("ft", "lr_backbone", "3", "3"),
        ("ft", "seeds", "1", "1"),
        ("lp_ft_bnc", "lr_backbone", "2", "0"),
        ("lp_ft_bnc", "seeds", "1", "0"),
    ]
    past = [records.read(path) for path in records.find_runs(folder / "runs") if "-lp-" not in path.name]
    hours = 3 * mean(sum(record["time"].values()) for record in past if record) / 3600
    assert f"9 runs, 6 done, 3 to compute: {hours:.2f} device-hours" in output
    assert re.search(r"^memory of a run: [0-9.]+ GiB$", output, re.MULTILINE)
    # The network has 1.24 MiB: of three runs two stay; weights, momentum and the best, each old and new.
    assert "disk: 2 MiB of weights stay; a run at work takes up to 7 MiB" in output
    assert stamps(folder) == before


def test_a_plan_scales_past_runs_of_a_network_and_times_steps_where_there_are_none(
    tmp_path, configure, monkeypatch
):
    monkeypatch.setattr(timing, "seconds_per_image", lambda *_: 6.0)  # three passes

    def cell(method: str, *overrides: str) -> Cell:
        small = [
            "dataset.image_size=32",
            "~dataset.ood.neon",
            "~dataset.ood.clipart",
            "~dataset.ood.painting",
        ]
        splits = [f"dataset.{name}.images=40" for name in ("id", "ood.photo")]
        config = configure(f"method={method}", *small, *splits, *overrides, f"paths.runs={tmp_path}")
        return Cell([], "", config, Protocol(Rates(config.method.lr_backbone), (), (0,)))

    past = {"config": to_dict(cell("ft", "dataset.train.images=100", "training.epochs=2").config)}
    past |= {"data": {"images": {"train": 100, "id": 40, "photo": 40}}, "status": "finished"}
    past |= {"time": {"train_s": 700.0, "evaluate_s": 140.0}, "memory": {"host_gib": 1.5, "gpu_gib": 0.5}}
    records.write(tmp_path / "ft-000000000000", RECORD | past)
    # Two epochs over 100 images, forward and backward, and 40 to select; all 80 before and after: 840 passes.
    cells = [
        cell("daft", "dataset.train.images=100", "training.epochs=2"),
        cell("daft", "dataset.train.images=200", "training.epochs=4"),
        cell("lp", "dataset.train.images=200"),
        cell("daft", "dataset.train.images=100", "training.epochs=2", "dataset.image_size=64"),
    ]
    for one in cells:
        one.runs |= {trial: SweepRun("", [], one.config, None) for trial in one.state().trials}
    planned = plan.plan(cells, [one.state() for one in cells])
    scaled = (pytest.approx((4 * (3 * 200 + 40) + 2 * 80) / 3600), "scaled", None, None)
    *known, probe, timed = [stage.estimate for stage in planned]
    assert known == [plan.Estimate(840 / 3600, "measured", 1.5, 0.5), scaled]
    assert probe == "no past run tells the time of a linear probe"
    assert timed == (pytest.approx(840 * 2 / 3600), "timed", None, None)
    assert plan.peak_memory(planned, "host_gib") == (1.5, False)


def test_a_plan_without_images_counts_a_run_that_several_cells_share_once(command, tmp_path):
    voc = ["dataset=voc", f"dataset.root={tmp_path}", "method=lp,lp_ft", "sweep.seeds=[0,1]"]
    _, output, _ = command("-m", "sweep=segmentation", *voc, *places(tmp_path), "sweep.plan=true")
    lines = [[cell.strip() for cell in line.split("│")[2:4]] for line in output.splitlines() if "│" in line]
    # LP-FT starts from LP's runs, on seed 1 too, at a rate that is not known yet.
    assert lines == [
        *(["lr_head", "5"], ["seeds", "1"]),
        *(["lr_probe", "0"], ["lr_backbone", "5"], ["seeds", "1"]),
    ]
    assert "unknown: dataset.train: " in output
    assert "python scripts/prepare.py dataset=voc" in output
    code, _, errors = command("dataset=voc", f"dataset.root={tmp_path}", *places(tmp_path))
    assert code == 1
    assert "python scripts/prepare.py dataset=voc" in errors


def test_work_that_is_told_in_steps_is_counted_in_steps(configure):
    images = {"train": 100, "id": 40, "photo": 40}
    config = to_dict(
        configure("method=ft", "training.epochs=4", "training.steps=32", "training.batch_size=8")
    )
    # 32 batches of 8 forward and backward; 40 to select each epoch; all 80 before and after.
    assert plan.forward_passes(config, images) == 3 * 32 * 8 + 4 * 40 + 2 * 80
    # With target images twice as many in a step; all 80 again at each of three shares, and at test time.
    config["method"]["parts"] = {"dann": {}, "interpolate": [0, 0.5, 1], "test_time": "bn"}
    images["unlabelled"] = 60
    assert plan.forward_passes(config, images) == 3 * 2 * 32 * 8 + 4 * 40 + (2 + 4) * 80


def test_jobs_of_submitit_are_never_more_than_there_are_places_and_give_the_table_of_one_process(
    whole, tmp_path, here
):
    cells = ["method=ft", "sweep.grids.ft=[0.1,0.01]", "sweep.seeds=[0]"]
    jobs = start(tmp_path, *cells, "hydra/launcher=local_jobs", "hydra.launcher.n_jobs=1")
    code, output, errors = jobs.end()
    assert code == 0, output + errors
    submitted, results = (
        sorted(file.stat().st_mtime_ns for file in tmp_path.rglob(f"*_{what}.pkl"))
        for what in ("submitted", "result")
    )
    assert len(submitted) == len(results) == 2
    assert results[0] <= submitted[1]  # the second began when the first had ended
    assert len(contents(tmp_path)) == 2
    assert contents(tmp_path).items() <= contents(whole[0]).items()
    _, alone, _ = here(whole[0], *cells)
    assert table(output) == table(alone)


def test_a_failed_run_stops_no_other_is_tried_twice_and_shown_when_it_fails(tmp_path, here):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not a checkpoint")
    checkpoints = [
        "backbone.checksum=null",
        f"backbone.checkpoint=package:daft/networks/weights/shapes_resnet10.safetensors,{broken}",
    ]
    code, output, errors = here(tmp_path, "method=lp,ft", "sweep.grids.ft=[0.1,0.01]", *checkpoints)
    assert code == 1
    assert errors == "train.py: 4 run(s) are missing, as listed; the same command tries again what failed\n"
    assert len(contents(tmp_path)) == 5  # LP's two and FT's three of the sound checkpoint
    missing = [line for line in output.splitlines() if line.startswith("missing: ")]
    assert len(missing) == 5
    for line in missing[:4]:
        assert str(broken) in line
        assert "no file of weights" in line
    assert missing[4].endswith("its later stages, which need what failed")
    failed = [line for line in output.splitlines() if line.startswith("failed: ")]
    assert sorted(line.endswith("; it is tried again") for line in failed) == [False] * 4 + [True] * 4
    assert output.index("failed: ") < output.index("] ft η_θ=0.1 seed=0: ID")
    assert output.count("| lp |") == 1
    jobs = list(tmp_path.glob("runs/sweeps/*/*/error.txt"))
    assert len(jobs) == 2 * 4
    states = {state.state for state in status.list_runs(tmp_path / "runs")}
    assert states == {"finished", "failed"}


def test_a_damaged_checkpoint_costs_its_own_run_alone_and_is_named_with_what_mends_it(whole, tmp_path, here):
    cells = ["method=lp,ft", "sweep.seeds=[0]"]
    for run in [*whole[0].glob("runs/*-lp-s0-*"), *whole[0].glob("runs/*-ft-s0-*")]:
        shutil.copytree(run, tmp_path / "runs" / run.name)
    victim = next(tmp_path.glob("runs/*-ft-s0-*"))
    shutil.rmtree(victim)
    checkpoints = victim / records.CHECKPOINTS
    checkpoints.mkdir(parents=True)
    (checkpoints / "last.pt").write_bytes(b"PK\x03\x04 half of it")
    code, output, errors = here(tmp_path, *cells)
    assert code == 1
    assert errors.endswith("1 run(s) are missing, as listed; the same command tries again what failed\n")
    assert re.search(rf"missing: .*last\.pt: .* \(.+\); remove the folder {checkpoints} to start", output)
    assert table(output)[-1].startswith("| lp | - | - | 1 |")
    shutil.rmtree(checkpoints)
    code, output, errors = here(tmp_path, *cells)
    assert (code, errors) == (0, "")
    assert contents(tmp_path).items() <= contents(whole[0]).items()


@pytest.mark.parametrize("change", ["cut off", "format", "protocol"])
def test_a_record_that_cannot_be_used_is_named_and_left_alone_and_the_rest_is_shown(
    change, whole, tmp_path, here
):
    for run in whole[0].glob("runs/*-lp-*"):
        shutil.copytree(run, tmp_path / "runs" / run.name)
    (file,) = tmp_path.glob("runs/*-lp-s1-*/record.json")
    file.write_bytes(unusable := spoiled(change, file.read_text()))
    _, plan, _ = here(tmp_path, "method=lp", "sweep.plan=true")
    assert f"no use: shapes shapes_resnet10 lp seed=1: {file}" in plan
    assert "2 runs, 1 done, 1 of no use, 0 to compute" in plan
    code, output, errors = here(tmp_path, "method=lp")
    assert code == 1
    assert f"missing: shapes shapes_resnet10 lp seed=1: {file}" in output
    assert errors.endswith("1 run(s) are missing, as listed\n")  # nor is it tried again
    assert table(output)[-1].startswith("| lp | - | - | 1 |")
    assert file.read_bytes() == unusable


@pytest.mark.parametrize(
    ("victim", "launcher"),
    [("driver", []), ("worker", WORKERS), ("all", ["hydra/launcher=workers", "hydra.launcher.n_jobs=1"])],
)
def test_killed_at_a_random_time_the_same_command_repeats_nothing_and_ends_in_the_bits_of_one_process(
    victim, launcher, whole, tmp_path, monkeypatch, here
):
    folder, cells = whole[0], ["method=lp,ft,daft"]
    chance = random.Random(victim)
    begun: list[Forked] = []
    killed = threading.Event()
    monkeypatch.setattr(kill_test, "kill", lambda *whom: (kill(*whom), killed.set()))
    # The last run of DAFT's first grid is withheld, so that the sweep cannot end before the kill. No cell
    # waits for another: FT goes on to its other seed meanwhile.
    in_order = sorted(stamps(folder).items(), key=lambda run: run[1])
    withheld = [run for run, _ in in_order if "-daft-s0-" in run][2]

    def killed_and_gone_on() -> bool:
        return killed.is_set() and any("-ft-s1-" in run for run in stamps(tmp_path))

    def begin() -> Forked:
        begun.append(start(tmp_path, *cells, *launcher))
        return begun[-1]

    when = Kill(victim, seconds=chance.uniform(0, 0.5), runs=chance.randrange(1, 6))
    with claimed_until(tmp_path / "runs" / withheld, killed_and_gone_on):
        told, again = disturbed(begin, tmp_path, [when])
    assert len(told) == 1
    assert again == 0
    _, resumed, errors = begun[-1].end()
    assert not errors
    _, alone, _ = here(folder, *cells)
    assert table(resumed) == table(alone)
    at, whole_contents = stamps(tmp_path), contents(folder)
    assert len(at) == 2 + (3 + 1) + (
        3 + 2 + 1
    )  # LP; FT's grid and other seed; DAFT's two grids and other seed
    assert contents(tmp_path).items() <= whole_contents.items()
    (other_seed,) = (run for run in at if "-ft-s1-" in run)
    assert at[other_seed] < at[withheld]


def test_ctrl_c_ends_a_sweep_in_one_line_and_the_same_command_goes_on(whole, tmp_path, here):
    paused = tmp_path / "paused"
    process = start(tmp_path, *pause_in_step(2, paused))
    wait_until(paused.exists, process.check_running)
    os.killpg(process.pid, signal.SIGINT)
    code, _, errors = process.end()
    assert (code, errors) == (130, "interrupted; the same command goes on where it was\n")
    before = stamps(tmp_path)
    assert 0 < len(before) < RUNS
    assert here(tmp_path, "method=lp,ft")[0] == 0
    assert before.items() <= stamps(tmp_path).items()
    assert contents(tmp_path).items() <= contents(whole[0]).items()


def test_a_worker_saves_where_it_is_in_an_epoch_before_its_driver_ends(tmp_path):
    five_steps_an_epoch = ["dataset.train.images=100", "training.batch_size=20", "training.epochs=2"]
    one_run = ["method=ft", "sweep.grids.ft=[0.01]", "sweep.seeds=[0]"]
    paused = tmp_path / "paused"
    process = start(tmp_path, *one_run, *five_steps_an_epoch, *WORKERS, *pause_in_step(8, paused))
    wait_until(paused.exists, process.check_running)
    os.kill(process.pid, signal.SIGTERM)  # as by `timeout`; to the driver alone
    assert process.end()[0] == 130
    (saved,) = tmp_path.glob("runs/*/checkpoints/last.pt")
    state = torch.load(saved, weights_only=True)
    assert len(state["fit"]["history"]) == 1
    assert state["epoch_progress"]["steps"] == 3


def test_runs_that_cells_call_by_different_names_are_computed_once(tmp_path, here):
    same = ["method=daft,integrated_lp_ft,daft", "method.bn_conversion=true", "method.bn_mode=train"]
    same += [f"sweep.grids.{method}=[0.03]" for method in ("daft", "integrated_lp_ft")]
    same += ["sweep.head_factors=[3]", "sweep.seeds=[0]"]
    code, output, _ = here(tmp_path, *same)
    assert (code, len(stamps(tmp_path))) == (0, 2)
    assert len(table(output)) == 2 + 2
    assert re.search(r"^2 runs, 2 done, 0 to", here(tmp_path, *same, "sweep.plan=true")[1], re.MULTILINE)


def test_two_sweeps_of_the_same_cells_share_the_work_and_end_alike(whole, tmp_path):
    folder, output = whole
    told = ["-m", *SMALL, *places(tmp_path), "method=ft"]
    both = [Forked(tmp_path / i, *told, f"hydra.sweep.dir={tmp_path / i}") for i in ("0", "1")]
    for process in both:
        code, shared, errors = process.end()
        assert code == 0, shared + errors
        assert table(shared)[-1] in table(output)
    assert contents(tmp_path).items() <= contents(folder).items()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A small disk, mounted with the options that it is called with, again if it was before."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> Path:
        if folder.is_mount():
            options += ",remount"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True)
        if done.returncode:
            pytest.skip(f"only root may mount a disk here: {done.stderr.decode().strip()}")
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_stops_the_sweep_in_one_line_and_with_room_it_goes_on(disk, whole, here):
    folder = disk("size=7m")  # weights of 1.3 MB, up to six times as much while a run trains
    code, _, errors = here(folder, "method=lp,ft")
    assert code == 1
    assert re.fullmatch(rf"train\.py: .*No space left on device: '{folder}/.*'.*\n", errors), errors
    assert errors.count("train.py") == 1
    before = stamps(folder)
    assert 0 < len(before) < 6
    disk("size=64m")
    assert here(folder, "method=lp,ft")[0] == 0
    assert before.items() <= stamps(folder).items()
    assert len(contents(folder)) == 6
    assert contents(folder).items() <= contents(whole[0]).items()


def test_what_is_in_a_read_only_folder_is_shown_and_what_is_not_is_refused_in_one_line(disk, whole, here):
    folder = disk("size=64m")
    for run in whole[0].glob("runs/*-lp-*"):
        shutil.copytree(run, folder / "runs" / run.name)
    shutil.copytree(whole[0] / "cache", folder / "cache")
    disk("ro")
    before = stamps(folder)
    code, output, errors = here(folder, "method=lp")
    assert (code, errors) == (0, "")
    assert table(output)[-1] in table(whole[1])
    assert {state.state for state in status.list_runs(folder / "runs")} == {"finished"}
    code, _, errors = here(folder, "method=lp", "sweep.seeds=[0,1,2]")
    assert code == 1
    assert re.fullmatch(rf"train\.py: .*Read-only file system: '{folder}/.*'.*\n", errors), errors
    assert stamps(folder) == before


def test_a_launch_that_breaks_down_costs_the_run_that_broke_it_alone(tmp_path, configure):
    """The launcher is a stand-in: it breaks down on one run, as joblib does when a worker is killed."""
    config = configure("method=ft")
    runs = [SweepRun(name, [name], config, tmp_path / name) for name in ("a", "killer", "b", "c")]
    launched = []

    class Breaking:
        def launch(self, overrides: list[list[str]], initial_job_idx: int) -> list[JobReturn]:
            launched.append([name for name, _ in overrides])
            for name, _ in overrides:
                if name == "killer":
                    raise RuntimeError("a worker was killed")
                found = {"status": "finished", "metrics": {"id/accuracy": 50.0}}
                records.write(tmp_path / name, RECORD | found)
            returns = [JobReturn(status=JobStatus.COMPLETED) for _ in overrides]
            for returned, (name, _) in zip(returns, overrides, strict=True):
                returned.return_value = JobResult(directory=str(tmp_path / name))
            return returns

    launcher = HydraLauncher(cast(Launcher, Breaking()), str(tmp_path))
    driver = Driver([], options("small"), launcher, tmp_path)
    while ready := [run for run in runs if run.is_ready()][: launcher.slots]:
        for job, run in zip(launcher.submit([run.overrides for run in ready]), ready, strict=True):
            driver.settle(run, job)
    assert launched == [["a", "killer", "b", "c"], ["killer"], ["killer"], ["b"], ["c"]]
    outcomes = [run.outcome and run.outcome.status for run in runs]
    assert outcomes == ["finished", "failed", "finished", "finished"]
    assert runs[1].error == "RuntimeError: a worker was killed"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["seed=0,1"], ["seed", "sweep.seeds"]),
        (["sweep.sedes=[0]"], ["sweep.sedes", "did you mean 'seeds'"]),
        (["method=ft", "method.lr_head=1"], ["method.lr_head", "tied"]),
        (["sweep.seeds=0,1"], ["train.py: sweep.seeds=0,1", "sweep.seeds=[0,1]"]),
        (["method=ft,daft,"], ["method=ft,daft,", "no comma at its end"]),
        (["hydra/launcher=wrkers"], ["hydra/launcher=wrkers", "no such option", "workers"]),
        (["hydra/launcher=workers", "hydra.launcher.n_jobs=0"], ["hydra.launcher.n_jobs: 0", "-1"]),
        (["hydra/launcher=local_jobs", "hydra.launcher.n_jobs=-5"], ["hydra.launcher.n_jobs: -5", "-1"]),
        (["hydra/launcher=workers", "hydra.launcher.n_job=2"], ["hydra.launcher.n_job", "--cfg hydra"]),
        (["method=ft", "paths.runs=/proc/nothing"], ["/proc/nothing"]),
        (["method=ft", "method.lr_backbone=0.1,0.2"], ["method.lr_backbone", "sweep.grids.ft"]),
    ],
)
def test_what_a_sweep_cannot_take_is_one_line_before_any_run(arguments, words, tmp_path, here):
    code, _, errors = here(tmp_path, *arguments)
    assert code == 1
    assert len(errors.splitlines()) == 1, errors
    for word in words:
        assert word in errors
    assert not list(tmp_path.glob("runs/*-*-*"))


def test_a_cluster_that_is_not_there_is_one_line(tmp_path, here, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    for arguments in (["method=ft"], ["method=ft", "~sweep"]):  # our sweeper, and Hydra's own
        code, _, errors = here(tmp_path, *arguments, "hydra/launcher=slurm")
        assert code == 1
        assert re.fullmatch(r"train\.py: hydra/launcher=slurm: .*srun.*\n", errors), errors


def test_a_head_rate_that_fits_the_features_is_swept_in_multiples_of_it(tmp_path, here):
    grids = ["sweep.grids.daft=[0.1]", "sweep.head_factors=[3]", "sweep.seeds=[0]"]
    code, output, errors = here(tmp_path, "method=daft", "backbone.lr_head=auto", *grids)
    assert (code, errors) == (0, "")
    found = [json.loads(file.read_text()) for file in tmp_path.glob("runs/*/record.json")]
    assert sorted(record["config"]["method"]["lr_head"] for record in found) == [1, 3]
    for record in found:
        method = record["config"]["method"]
        assert method["lr_head_unit"] == "auto"
        expected = method["lr_head"] * record["head_rate"]["rate"]
        assert record["history"][0]["lr/head"] == pytest.approx(expected)
    assert any(" auto*" in line for line in table(output))  # of two values each is at an edge
    _, planned, _ = here(tmp_path, "method=daft", *grids, "sweep.plan=true")
    rate = found[0]["head_rate"]["rate"]
    assert f"η_w that fits the features of shapes shapes_resnet10: {rate:g}, by a past run" in planned


TOY = [
    "dataset.image_size=16",
    *(f"~dataset.ood.{style}" for style in ("clipart", "painting")),
    *(f"dataset.{split}.images=20" for split in ("id", "ood.neon")),
    "training.epochs=1",
    "compute.device=cpu",
    "compute.threads=1",
    "wandb.mode=disabled",
]


PHOTOS = ["dataset.ood.photo.images=20"]


@pytest.mark.parametrize(
    ("study", "narrow", "planned"),
    [
        # FT's grid and seeds, DAFT's two grids and seeds
        ("training_size", PHOTOS, 5 * (3 + 2 + 3 + 2 + 2)),
        ("conversion_batches", [*PHOTOS, "dataset.train.images=20"], 6 * 2 * 3),
        ("rate_grid", [*PHOTOS, "dataset.train.images=20"], 6 * 5),
        # families, strengths, methods; each its grid, then seeds
        ("shift_family", ["method=ft,daft"], 2 * 5 * 2 * (3 + 2)),
    ],
)
def test_a_study_is_one_option_that_names_all_its_runs(study, narrow, planned, command, tmp_path):
    told = [f"sweep={study}", *TOY, *places(tmp_path), *narrow, "sweep.plan=true"]
    code, output, errors = command("-m", *told)
    assert code == 0
    assert all(line.startswith("timing ") for line in errors.splitlines()), errors
    assert f"{planned} runs, 0 done" in output


@pytest.mark.parametrize(
    ("study", "fewer", "over"),
    [
        (
            "training_size",
            ["dataset.train.images=10,20", "training.steps=2", "sweep.head_factors=[1]", "sweep.seeds=[0]"],
            "dataset.train.images",
        ),
        (
            "conversion_batches",
            ["dataset.train.images=20", "training.batch_size=5", "method.conversion_batches=1,null"],
            "method.conversion_batches",
        ),
        ("rate_grid", ["dataset.train.images=20", "method.lr_backbone=1,0.1", "method.lr_head=1,0.1"], ""),
        (
            "shift_family",
            ["dataset.train.images=20", "dataset=shapes_between", "dataset.shift_strength=0,0.9"],
            "dataset.shift_strength",
        ),
    ],
)
def test_a_study_is_run_drawn_and_tabled(study, fewer, over, command, tmp_path, monkeypatch):
    swept = {"training_size": ("ft", "daft"), "shift_family": ("ft", "ft_bnc")}.get(study, ())
    grids = [f"sweep.grids.{name}=[0.1]" for name in swept]
    told = [f"sweep={study}", *TOY, *PHOTOS, *places(tmp_path), *fewer, *grids, "sweep.seeds=[0]"]
    methods = ["method=ft,ft_bnc"] if study == "shift_family" else []
    assert command("-m", *told, *methods)[0] == 0
    runs, out = tmp_path / "runs", tmp_path / "out"
    for script, flags in ((figures, ["--kind", study]), (tables, ["--over", over] if over else [])):
        monkeypatch.setattr(sys, "argv", [study, str(runs), *flags, "--out", str(out)])
        script.main()
    assert sorted(file.suffix for file in out.glob(f"*-{study}*")) == [".pdf", ".png"]
    assert len(pd.read_csv(out / "runs.csv")) == 4
    monkeypatch.setattr(sys, "argv", [study, str(runs), "--over", "dataset.imags", "--out", str(out)])
    with pytest.raises(UserError, match=r"--over dataset\.imags: the runs in .* have no such setting"):
        tables.main()
    tabled = pd.read_csv(out / "table.csv", keep_default_na=False, dtype=str)
    if over:
        values = [override.partition("=")[2].split(",") for override in fewer if override.startswith(over)]
        assert sorted(set(tabled[over])) == sorted(values[0])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sweep=shift_family", "dataset.shift_strength=0,1"], ["darken.share", "less than 1"]),
        (["sweep=conversion_batches", "method=ft"], ["conversion_batches", "bn_conversion=false"]),
        (["sweep=rate_grid", "method=ft"], ["method.lr_head", "tied"]),
        (["sweep=training_siz"], ["sweep=training_siz", "training_size"]),
    ],
)
def test_what_a_study_cannot_take_is_one_line_before_any_run(arguments, words, command, tmp_path):
    code, _, errors = command("-m", *arguments, *TOY, *places(tmp_path))
    assert code == 1
    assert len(errors.splitlines()) == 1, errors
    for word in words:
        assert word in errors
    assert not list(tmp_path.glob("runs/*-*-*"))


@pytest.mark.parametrize("arguments", [["sweep=paper"], ["-m", "sweep.plan=true"]])
def test_a_sweep_without_m_or_without_a_protocol_is_refused(arguments):
    command = [sys.executable, str(TRAIN), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS, check=False)
    assert done.returncode == 1
    assert re.fullmatch(r"train\.py: sweep: needs -m and a protocol.*\n", done.stderr)


def test_a_launcher_that_is_not_installed_is_named_with_what_installs_it():
    found = HydraException(
        "In 'hydra/launcher/workers': Could not load 'hydra/launcher/joblib'.\n\nSearched …"
    )
    expected = "hydra/launcher=workers: joblib is not installed; pip install -e '.[sweeps]'"
    assert explain(found) == expected


def test_processes_share_the_gpus_evenly(tmp_path):
    """Locks of one process conflict as those of several do."""
    assert [gpus.claim_gpu(["0", "1", "2"], tmp_path) for _ in range(5)] == ["0", "1", "2", "0", "1"]
