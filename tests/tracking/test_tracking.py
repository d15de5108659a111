"""Claims about W&B, tried with its real client against a local fake of the service."""

import copy
import json
import math
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import wandb
from PIL import Image

from daft import experiment
from daft.config.check import to_dict
from daft.data.corruptions import CORRUPTIONS, SEVERITIES
from daft.runs import frames, records, results
from daft.tracking import mirror, sync
from tests.helpers.fake_wandb import ENTITY, Service
from tests.report.test_page import run as fabricated

ROOT = Path(__file__).resolve().parents[2]
HISTORY = [{"epoch": e, "train/loss": 1 / e, "selection/accuracy": 90.0 + e} for e in (1, 2, 3)]
HISTOGRAM = {"mean": 1.5, "counts": [1, 3], "edges": [0.0, 1.0, 2.0]}


def record(name: str, method: str = "ft", rate: float | None = 0.1, **changes: Any) -> dict[str, Any]:
    """A finished run of CIFAR-10 and SwAV."""
    made: dict[str, Any] = fabricated(name, method, rate, **changes)
    made |= {"history": copy.deepcopy(HISTORY), "distortion": {"id": {"l2": HISTOGRAM}}}
    made["config"]["wandb"] = {"mode": "disabled", "project": "daft", "entity": None, "group": None}
    made["config"]["backbone"]["lr_head"] = 1.0
    made["config"]["paths"] = {"runs": "/somewhere"}
    return made


def written(folder: Path, *made: dict[str, Any]) -> list[Path]:
    for one in made:
        records.write(folder / one["run"], one)
    return records.find_runs(folder)


def synced(directories: list[Path]) -> list[str]:
    """Mirror them; what each needed."""
    service = sync.Service()
    todo = sync.needs(service, sync.entries(directories, service.account))
    assert not sync.send(service, todo)
    return [need for need, _, _ in todo]


def test_records_arrive_whole_under_their_ids_and_are_sent_once(online: Service, tmp_path: Path):
    ft, lp = record("b0"), record("a0", "lp", None)
    lp["history"] = []
    directories = written(tmp_path / "runs", ft, lp)
    assert synced(directories) == ["send", "send"]
    run = online.run("b0")
    assert (run.state, run.group, run.job_type) == ("finished", "cifar10-swav-ft", "selected")
    assert {"table2", "table5", "table5_onefactor", "table6"} <= set(run.tags)
    assert not {"table3", "small"} & set(run.tags)
    assert run.title == "ft η_θ=0.1 seed=0"
    assert run.config == {k: v for k, v in ft["config"].items() if k not in ("wandb", "paths")}
    histogram = {"_type": "histogram", "values": [1, 3], "bins": [0, 1, 2]}
    assert run.history == [*HISTORY, {"id/l2_histogram": histogram}]
    outcome = {"status": "finished", "best_epoch": 1, "time/train_s": 1.5, "id/l2_histogram": histogram}
    assert run.results == HISTORY[-1] | ft["metrics"] | outcome
    assert online.run("a0").results["id/accuracy"] == lp["metrics"]["id/accuracy"]
    assert online.files == {"config.yaml", "wandb-summary.json"}  # nothing of the machine that mirrors
    before = list(online.changes)
    assert synced(directories) == []
    assert online.changes == before


def test_a_run_that_broke_off_online_is_completed_without_a_line_twice(online: Service, tmp_path: Path):
    broken, whole = record("b1"), record("b2", seed=1)
    described = mirror.description("b1", broken["config"])
    with mirror.Mirror(described, tmp_path, "online") as broken_off:
        for row in HISTORY[:2]:
            broken_off.log_epoch(row)
    assert (online.run("b1").state, online.run("b1").history) == ("failed", HISTORY[:2])
    directories = written(tmp_path / "runs", broken, whole)
    assert synced(directories) == ["complete", "send"]
    for name in ("b1", "b2"):
        assert (online.run(name).state, online.run(name).history[:3]) == ("finished", HISTORY)
        assert len(online.run(name).history) == 4
    assert online.run("b1").results == online.run("b2").results
    online.run("b2").state = "crashed"  # after its last line, before its end was known
    assert synced(directories) == ["complete"]
    assert (online.run("b2").state, len(online.run("b2").history)) == ("finished", 4)
    assert synced(directories) == []


def test_an_epoch_lost_to_a_kill_is_mended_at_the_end(online: Service, tmp_path: Path):
    made = record("b3")
    described = mirror.description("b3", made["config"])
    with mirror.Mirror(described, tmp_path, "online") as run:
        run.log_epoch(HISTORY[0])  # killed after the second epoch's checkpoint, before its line was sent
    with mirror.Mirror(described, tmp_path, "online") as run:
        run.log_epoch(HISTORY[2])
        run.finish(made)
    assert online.run("b3").history[:3] == HISTORY
    assert synced(written(tmp_path / "runs", made)) == ["update"]  # its stage is known now


def test_training_and_mirroring_its_record_make_the_same_run(online: Service, tiny, tmp_path: Path):
    trained = experiment.run(tiny("method=ft", "wandb.mode=online", "wandb.project=live"), mirror.Tracker)
    name = trained.record["run"]
    service = sync.Service()
    todo = sync.needs(service, sync.entries([trained.directory], service.account, project="mirrored"))
    sync.send(service, todo)
    live, mirrored = online.run(name, "live"), online.run(name, "mirrored")
    for aspect in ("title", "group", "tags", "config", "history", "results", "state"):
        assert getattr(live, aspect) == getattr(mirrored, aspect), aspect
    assert live.results.items() >= trained.record["metrics"].items()
    assert live.history[:2] == trained.record["history"]


def test_a_run_that_fails_is_failed_online_too(online: Service, tiny, monkeypatch):
    def failing(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(experiment.loop, "fit", failing)
    with pytest.raises(RuntimeError, match="luck"):
        experiment.run(tiny("method=ft", "wandb.mode=online"), mirror.Tracker)
    (run,) = online.runs.values()
    assert run.state == "failed"


def test_a_run_that_is_no_longer_the_best_changes_its_stage_and_nothing_else(online: Service, tmp_path: Path):
    folder = tmp_path / "runs"
    assert synced(written(folder, record("b4", rate=0.1, accuracy=90.0))) == ["send"]
    run = online.run("b4")
    run.tags = [*run.tags, "mine"]
    before = copy.deepcopy(run)
    assert run.job_type == "selected"
    assert synced(written(folder, record("b5", rate=0.01, accuracy=91.0))) == ["update", "send"]
    assert online.run("b5").job_type == "selected"
    assert run.job_type == "lr_backbone"
    for aspect in ("history", "config", "summary", "group", "title", "state"):
        assert getattr(run, aspect) == getattr(before, aspect), aspect
    assert set(run.tags) == set(before.tags)


def test_what_is_measured_after_the_run_is_added_to_it(online: Service, tmp_path: Path):
    inputs = {"dataset": {"images": {}}, "backbone": {"weights": ""}}
    made = record("b4") | {"identity": {"training": {"precision": "fp32"}, **inputs}}
    directories = written(tmp_path / "runs", made)
    assert synced(directories) == ["send"]
    before = copy.deepcopy(online.run("b4"))
    facts = {"format": results.FORMAT, "kind": "cifar10_c", "images": 9, "whole": 9, "precision": "fp32"}
    facts |= {"identity": [[], [], 9], "seconds": 1.0}
    errors = {name: {str(s): 10.0 * s for s in SEVERITIES} for name in CORRUPTIONS}
    (directories[0] / results.FILE.format("x")).write_text(json.dumps(facts | {"errors": errors}))
    assert synced(directories) == ["update"]
    added = {f"{name}/cifar10_c_error": 30.0 for name in (*CORRUPTIONS, results.MEAN)}
    assert online.run("b4").summary == before.summary | added
    assert (online.run("b4").lines, online.run("b4").config) == (before.lines, before.config)
    assert synced(directories) == []


def test_a_stage_that_is_not_known_any_more_stays_as_it_is(online: Service, tmp_path: Path):
    folder = tmp_path / "runs"
    assert synced(written(folder, record("b4"))) == ["send"]
    other = record("b5", rate=0.01)
    other["config"]["training"]["epochs"] = 7  # runs of mixed settings: nothing is selected
    assert synced(written(folder, other)) == ["send"]
    assert (online.run("b4").job_type, online.run("b5").job_type) == ("selected", None)


def test_stages_are_told_from_the_records_alone():
    daft = [
        record("d0", "daft", 0.1, accuracy=90.0),
        record("d1", "daft", 0.01, accuracy=92.0),
        record("d2", "daft", 0.01, accuracy=91.0),
        record("d3", "daft", 0.01, accuracy=70.0, seed=1),
        record("e0", "ft", 0.1) | {"status": "diverged", "metrics": {}},
    ]
    for made, head in zip(daft, (1.0, 1.0, 3.0, 1.0), strict=False):
        made["config"]["method"]["lr_head"] = head
    stages = sync.stages(frames.from_records(daft), [["table2"]] * 5)
    assert stages == ["lr_backbone", "selected", "lr_head", "selected", "lr_backbone"]
    daft[0]["config"]["training"]["epochs"] = 7
    assert sync.stages(frames.from_records(daft), [["table2"]] * 5)[:4] == [None] * 4
    assert sync.stages(frames.from_records(daft), [[], *[["table2"]] * 4])[:2] == ["selected", "selected"]


def test_the_anchor_of_a_segmentation_is_its_own():
    runs = [record("d0", "daft", 0.1), record("d1", "daft", 0.1)]
    for made, head, miou in zip(runs, (0.01, 0.1), (40.0, 50.0), strict=True):
        made["config"]["method"]["lr_head"] = head
        made["config"]["segmentation"] = {"lr_head": 0.01}
        made["metrics"] = {"id/miou": miou}
    assert sync.stages(frames.from_records(runs), [[], []]) == ["lr_backbone", "selected"]
    runs[0]["metrics"] = {"id/miou": 60.0}
    assert sync.stages(frames.from_records(runs), [[], []]) == ["selected", "lr_head"]


def test_groups_are_cells_unless_named_and_settings_of_a_table_make_its_tag(configure):
    def described(*overrides: str) -> dict[str, Any]:
        config = configure("dataset=pacs", "backbone=resnet18_tin64", *overrides)
        return mirror.description("x", to_dict(config))

    table = ["training.epochs=10", "training.precision=bf16"]
    assert described(*table)["tags"] == ["small_resnet18"]
    assert described()["tags"] == []
    assert described()["group"] == "pacs-resnet18_tin64-daft"
    assert described("wandb.group=mine")["group"] == "mine"


def test_the_default_group_of_earlier_records_is_the_cell_too():
    made = record("x")
    made["config"]["wandb"]["group"] = "cifar10-swav"
    assert mirror.description("x", made["config"])["group"] == "cifar10-swav-ft"


def test_what_is_not_a_number_is_left_out_live_as_from_the_record():
    assert mirror.results(record("x") | {"history": [{"epoch": 1, "train/loss": math.nan}]})["epoch"] == 1
    assert "train/loss" not in mirror.results(record("x") | {"history": [{"train/loss": math.nan}]})


def test_what_does_not_arrive_is_said(online: Service, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(sync, "WAIT_SECONDS", 0.0)
    online.refused = {"/file_stream"}
    directories = written(tmp_path / "runs", record("b6"))
    with pytest.raises(sync.UserError, match="1 of 1 have not arrived whole: b6; the same command goes on"):
        synced(directories)
    online.refused = set()
    assert synced(directories) == ["complete"]
    assert online.run("b6").history[:3] == HISTORY


def test_a_record_that_a_process_is_at_is_left_for_later(online: Service, tmp_path: Path):
    (directory,) = written(tmp_path / "runs", record("b7"))
    service = sync.Service()
    todo = sync.needs(service, sync.entries([directory], service.account))
    with records.lock_run(directory):
        assert [entry.directory for entry in sync.send(service, todo)] == [directory]
    assert not online.runs


def test_the_place_is_the_records_own_or_the_accounts_unless_it_is_given(tmp_path: Path):
    made = record("b8")
    directories = written(tmp_path, made)
    assert sync.entries(directories, ENTITY)[0].place == f"{ENTITY}/daft"
    assert sync.entries(directories, ENTITY, "other", "team")[0].place == "team/other"
    made["config"]["wandb"] |= {"entity": "lab"}
    assert sync.entries(written(tmp_path, made), ENTITY)[0].place == "lab/daft"


@pytest.fixture
def script(monkeypatch, capsys) -> Callable[..., list[str]]:
    """Run one of the scripts here, where torch is imported already; the lines that it prints."""

    def run(name: str, *arguments: object) -> list[str]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "scripts" / name), run_name="__main__")
        if ended.value.code:
            raise ended.value
        return capsys.readouterr().out.splitlines()

    return run


def test_the_scripts_say_what_they_do(online: Service, tmp_path: Path, script):
    runs = tmp_path / "runs"
    written(runs, record("b8"), record("b9", seed=1))
    to_do = [f"send {ENTITY}/daft {name}" for name in ("b8", "b9")]
    assert script("wandb_sync.py", runs, "--dry-run") == [*to_do, "0 of 2 were there; 2 to do"]
    assert not online.runs
    assert script("wandb_sync.py", runs) == [*to_do, "0 of 2 were there, 2 sent"]
    assert script("wandb_sync.py", runs) == ["2 of 2 were there"]
    (saved,) = script("dashboard.py", "small", "--save")
    assert saved.startswith(f"saved {online.url}/{ENTITY}/daft/reports/DAFT--")


def test_figures_are_logged_as_images_of_one_run_however_often(online: Service, tmp_path: Path):
    figure = Image.new("RGB", (30, 20))
    for _ in range(2):
        sync.send_pictures({"pacs-change": (figure, "Relative change")}, "runs/small", "daft", None)
    ((_, run),) = online.runs.items()
    assert (run.state, run.job_type, run.title) == ("finished", "figures", "figures of runs/small")
    assert len(run.history) == 2
    for row in run.history:
        shown = row["pacs-change"]
        assert (shown["_type"], shown["caption"]) == ("image-file", "Relative change")
        assert (shown["width"], shown["height"]) == (30, 20)
        assert shown["path"] in online.files


def test_without_an_account_one_line_says_so(online: Service, tmp_path: Path, monkeypatch, script):
    runs = tmp_path / "runs"
    written(runs, record("b8"))
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv(
        "WANDB_BASE_URL", online.url.replace("127.0.0.1", "localhost")
    )  # of which nothing is known
    wandb.teardown()
    for name, *arguments in (["wandb_sync.py", runs], ["dashboard.py", "small", "--save"]):
        with pytest.raises(SystemExit) as caught:
            script(name, *arguments)
        told = f"{name}: W&B: no account on this machine; `wandb login`, or set WANDB_API_KEY"
        assert caught.value.code == told
    assert script("wandb_sync.py", runs, "--dry-run") == [
        "send your-account/daft b8",
        "what is online is not known without an account; 1 to do at most",
    ]
    wandb.teardown()
    assert not online.changes


def test_a_service_that_refuses_the_account_is_named_in_one_line(online: Service, tmp_path: Path, script):
    written(tmp_path / "runs", record("b8"))
    online.refused = {"/graphql"}
    with pytest.raises(SystemExit) as caught:
        script("wandb_sync.py", tmp_path / "runs")
    told = str(caught.value.code)
    assert told.startswith(f"wandb_sync.py: W&B: Failed to verify credentials with {online.url}")
    assert "\n" not in told
