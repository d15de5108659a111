"""Claims about damaged files in a folder of runs: every reader names them, leaves them out, and goes on."""

import copy
import json
import os
import re
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from daft import experiment
from daft.common import files
from daft.common.errors import UserError
from daft.data.corruptions import CORRUPTIONS, SEVERITIES
from daft.report.figures import gallery
from daft.runs import frames, records, results, status
from daft.sweep import cells, plan, timing
from daft.sweep.jobs import POINTER
from daft.sweep.protocol import Protocol, Rates
from hydra_plugins.sweep_summary import SweepSummary
from tests.conftest import ROOT
from tests.helpers.fake_wandb import Service
from tests.runs.test_records import RECORD

FULL: dict[str, Any] = copy.deepcopy(RECORD)
FULL |= {
    "identity": {
        "dataset": {"images": {"train": "a", "id": "b"}, "eval_transform": []},
        "backbone": {"weights": "c"},
        "training": {"precision": "fp32"},
    },
    "data": {"images": {"train": 100, "id": 40}, "classes": ["a", "b"]},
    "distortion": {"id": {"cosine": {"mean": 0.5, "edges": [-1.0, 0.0, 1.0], "counts": [1, 3]}}},
    "relative_change": [
        {"name": f"backbone.network.layer{stage}.conv1.weight", "kind": "weight", "value": 0.1 * stage}
        for stage in (1, 2)
    ],
    "bn_shift": [{"name": "bn1", "batches": 2, "mean_shift": 0.1, "log2_std_ratio": 0.2}],
    "probe": None,
    "memory": {"host_gib": 1.0},
}
FULL["distortion"]["id"]["l2"] = {"mean": 1.0, "edges": [0.0, 1.0, 2.0], "counts": [1, 3]}
FULL["config"]["wandb"] = {"mode": "disabled", "project": "daft", "entity": None, "group": None}

WRONG: list[tuple[str, Any]] = [
    ("run", 7),
    ("run", "../../elsewhere"),
    ("status", "done"),
    ("status", ["finished"]),
    ("best_epoch", "one"),
    ("metrics", {"id/accuracy": 1e308}),
    ("metrics", {"id/accuracy": -1}),
    ("config", {}),
    ("config", None),
    ("config.seed", "zero"),
    ("config.seed", [0]),
    ("config.dataset", "pets"),
    ("config.dataset.name", None),
    ("config.dataset.name", ["pets"]),
    ("config.dataset.name", ""),
    ("config.dataset.cache_side", "large"),
    ("config.dataset.shift_strength", {"a": 1}),
    ("config.backbone.name", 18),
    ("config.backbone.lr_head", "much"),
    ("config.method", None),
    ("config.method.name", {"name": "ft"}),
    ("config.method.lr_backbone", "0.1"),
    ("config.method.lr_backbone", [0.1]),
    ("config.method.lr_head", -1.0),
    ("config.method.lr_head_unit", "furlong"),
    ("config.method.conversion_batches", "all"),
    ("head_rate", 0.1),
    ("head_rate", {"rate": -1.0}),
    ("above_zero_head", [None]),
    ("config.training", []),
    ("config.training.selection", None),
    ("config.segmentation", "deeplab"),
    ("config.wandb.project", None),
    ("config.method.lr_backbone.x", None),
    ("metrics", []),
    ("metrics", {}),
    ("metrics.id/accuracy", "high"),
    ("metrics.id/accuracy", None),
    ("metrics.config\x00method", 1.0),
    ("history", {}),
    ("history", [1]),
    ("history", [{"epoch": "one"}]),
    ("history", [{"selection/accuracy": 1.0}]),
    ("distortion", []),
    ("distortion.id", None),
    ("distortion.id.cosine.counts", "many"),
    ("distortion.id.cosine.counts", [0, 0]),
    ("distortion.id.cosine.edges", [-1.0, 1.0]),
    ("distortion.id.cosine.mean", None),
    ("environment", "here"),
    ("environment.threads", "two"),
    ("time.train_s", "long"),
    ("time.train_s", None),
    ("identity.dataset", None),
    ("identity.training.precision", 32),
    ("data.images", []),
    ("data.images.train", "all"),
    ("data.classes", "a, b"),
    ("relative_change", [{"name": 1}]),
    ("relative_change", {"conv1": 0.1}),
    ("bn_shift", [None]),
    ("bn_shift", [{"batches": "all"}]),
    ("probe", {"metrics": {"id/miou": "high"}}),
    ("memory.host_gib", "much"),
]


def changed(key: str, value: Any) -> bytes:
    """A record with another value at a dotted key."""
    record = copy.deepcopy(FULL) | {"format": records.FORMAT, "protocol": records.PROTOCOL}
    *path, last = key.split(".") if key.count("/") == 0 else [*key.split(".", 1)]
    section: Any = record
    for name in path:
        if not isinstance(section.get(name), dict):
            section[name] = {}
        section = section[name]
    section[last] = value
    return json.dumps(record).encode()


TEXT = json.dumps(FULL | {"format": records.FORMAT, "protocol": records.PROTOCOL})

CONTENTS: dict[str, bytes] = {
    **{f"{number}: {key} = {value!r}": changed(key, value) for number, (key, value) in enumerate(WRONG)},
    "empty": b"",
    "zeros": bytes(100),
    "cut": TEXT[: len(TEXT) // 2].encode(),
    "text": b'"a record"',
    "null": b"null",
    "not UTF-8": TEXT.replace("pets", "caf\xe9").encode("latin1"),
    "UTF-16": TEXT.encode("utf-16"),
    "deep lists": TEXT.replace('"net"', "[" * 100_000 + "]" * 100_000).encode(),
    "deep": TEXT.replace('"code"', '"x": ' + '{"a":' * 200 + "1" + "}" * 200 + ', "code"').encode(),
    "NaN": TEXT.replace("90.0", "NaN").encode(),
    "beyond floats": TEXT.replace("90.0", "1e999").encode(),
    "a huge whole number": TEXT.replace('"seed": 0', f'"seed": 1{"0" * 400}').encode(),
    "a key twice": TEXT.replace('"seed": 0', '"seed": 0, "seed": 1').encode(),
    "a key with a dot": TEXT.replace('"seed": 0', '"seed": 0, "method.lr_backbone": [1]').encode(),
    "half a character": TEXT.replace("pets", "\\ud800").encode(),
}


def pipe(file: Path) -> None:
    os.mkfifo(file)


PLACES: dict[str, Callable[[Path], object]] = {
    "a folder": Path.mkdir,
    "a pipe": pipe,
    "a device": lambda file: file.symlink_to("/dev/zero"),
    "a link to itself": lambda file: file.symlink_to(file.name),
    "a link to nothing": lambda file: file.symlink_to("nothing"),
}


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A folder of two good records, of FT at two rates, and of one for each kind of damage."""
    for number, rate in enumerate((0.1, 0.01)):
        good = copy.deepcopy(FULL)
        good["run"] = f"00000000000{number}"
        good["config"]["method"]["lr_backbone"] = rate
        good["metrics"]["id/accuracy"] = 90.0 - number
        records.write(tmp_path / "runs" / f"pets-net-ft-s0-00000000000{number}", good)
    for number, content in enumerate(CONTENTS.values()):
        folder = tmp_path / "runs" / f"pets-net-bad-s0-{0xBAD00 + number:012x}"
        folder.mkdir()
        (folder / records.RECORD).write_bytes(content)
    for number, make in enumerate(PLACES.values(), start=len(CONTENTS)):
        folder = tmp_path / "runs" / f"pets-net-bad-s0-{0xBAD00 + number:012x}"
        folder.mkdir()
        make(folder / records.RECORD)
    return tmp_path / "runs"


def bad(runs: Path) -> list[Path]:
    """The records that every reader must name."""
    return [folder / records.RECORD for folder in runs.glob("*-bad-*")]


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[str, list[str]]]:
    """What a script prints, and the lines on stderr; it must end well."""

    def called(name: str, *arguments: object) -> tuple[str, list[str]]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(ROOT / "scripts" / name), run_name="__main__")
        output, errors = capfd.readouterr()
        assert not stop.value.code, f"{stop.value.code}\n{errors}"
        return output, errors.splitlines()

    return called


def assert_named(errors: list[str], runs: Path) -> None:
    """Each damaged record in one line, and no other."""
    told = [line.removeprefix("left out: ") for line in errors if line.startswith("left out: ")]
    named = [re.split(" is not a record | cannot be read ", line)[0] for line in told]
    assert sorted(named) == sorted(str(file) for file in bad(runs))


@pytest.mark.parametrize("kind", CONTENTS)
def test_a_damaged_record_is_refused_in_one_line(kind: str, tmp_path: Path):
    (tmp_path / records.RECORD).write_bytes(CONTENTS[kind])
    with pytest.raises(UserError, match=r"record\.json is not a record \(.+\); move it away") as caught:
        records.read(tmp_path)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("kind", PLACES)
def test_what_is_no_regular_file_is_not_opened(kind: str, tmp_path: Path):
    PLACES[kind](tmp_path / records.RECORD)
    with pytest.raises(UserError, match=r"record\.json (is not a record|cannot be read) \("):
        records.read(tmp_path)


def test_a_record_has_a_largest_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(files, "LARGEST", 2**20)
    (tmp_path / records.RECORD).write_text(TEXT + " " * 2**20)
    with pytest.raises(UserError, match="larger than 1 MiB"):
        records.read(tmp_path)


def test_tables_leave_damaged_records_out(damaged: Path, call, tmp_path: Path):
    output, errors = call("tables.py", damaged, "--out", tmp_path / "out")
    assert_named(errors, damaged)
    assert "| ft | 0.1* | = η_θ | 1 | 90.00 |" in output
    _, errors = call("tables.py", "table5", "--runs", damaged, "--out", tmp_path / "out")
    assert_named(errors, damaged)


def test_the_report_leaves_damaged_records_out(damaged: Path, call, tmp_path: Path):
    _, errors = call("report.py", "--runs", damaged, "--out", tmp_path / "report.html")
    assert_named(errors, damaged)
    assert (tmp_path / "report.html").read_text().count("<details>") == 2


def test_figures_leave_damaged_records_out(damaged: Path, call, tmp_path: Path):
    _, errors = call("figures.py", damaged, "--kind", "overview", "--out", tmp_path / "overview.png")
    assert_named(errors, damaged)
    loaded = records.load(records.find_runs(damaged))
    assert len(gallery.of_runs(loaded)) > 3
    for picture in gallery.of_runs(loaded):
        picture.draw()


def test_status_shows_damaged_records_as_failed(damaged: Path):
    states = status.list_runs(damaged)
    assert sorted({state.state for state in states}) == ["failed", "finished"]
    failed = {state.name for state in states if state.state == "failed"}
    assert failed == {file.parent.name for file in bad(damaged)}


def test_the_mirror_leaves_damaged_records_out(damaged: Path, online: Service, call):
    output, errors = call("wandb_sync.py", damaged, "--dry-run")
    assert_named(errors, damaged)
    assert output.splitlines()[-1] == "0 of 2 were there; 2 to do"
    file = next(damaged.glob("*-000000000001")) / records.RECORD
    record = json.loads(file.read_text())
    del record["config"]["wandb"]
    file.write_text(json.dumps(record))
    output, errors = call("wandb_sync.py", damaged, "--dry-run")
    assert f"left out: {file}: its configuration has no section wandb" in errors
    assert output.splitlines()[-1] == "0 of 1 were there; 1 to do"


def test_a_plan_is_made_without_them(damaged: Path, tiny, monkeypatch, capfd):
    """The good ones say too little of their runs for an estimate."""
    monkeypatch.setattr(timing, "seconds_per_image", lambda *_: 6.0)
    config = tiny("method=ft")
    cell = cells.Cell([], "", config, Protocol(Rates(0.1), (), (0,)))
    cell.runs |= {trial: cells.SweepRun("", [], config, None) for trial in cell.state().trials}
    (planned,) = plan.plan([cell], [cell.state()])
    assert isinstance(planned.estimate, plan.Estimate)
    assert planned.estimate.source == "timed"
    assert_named(capfd.readouterr().err.splitlines(), damaged)


@pytest.mark.parametrize("kind", ["empty", "a pipe", "0: run = 7"])
def test_a_run_and_a_sweep_stop_at_a_damaged_record_before_any_work(tiny, kind: str):
    config = tiny("method=ft")
    directory = experiment.directory_of(config)
    directory.mkdir(parents=True)
    file = directory / records.RECORD
    PLACES[kind](file) if kind in PLACES else file.write_bytes(CONTENTS[kind])
    with pytest.raises(UserError, match=r"record\.json is not a record"):
        experiment.run(config)
    run = cells.SweepRun("ft", [], config, directory)
    assert not run.is_ready()
    assert run.has_failed
    assert "is not a record" in run.error


MEASURED = {
    "format": results.FORMAT,
    "kind": "generated",
    "identity": [1],
    "precision": "fp32",
    "images": 40,
    "whole": 40,
    "errors": {name: {str(severity): 50.0 for severity in SEVERITIES} for name in CORRUPTIONS},
    "seconds": 1.0,
}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"\xff",
        *(
            json.dumps(MEASURED | change).encode()
            for change in (
                {"kind": "other"},
                {"identity": []},
                {"identity": None},
                {"images": "all"},
                {"images": 0},
                {"precision": None},
                {"errors": {}},
                {"errors": MEASURED["errors"] | {"fog": {"1": "high"}}},
                {"errors": MEASURED["errors"] | {"fog": [1.0]}},
                {"seconds": "long"},
                {"format": 2},
            )
        ),
    ],
)
def test_a_damaged_measurement_is_named_and_its_run_stays(content: bytes, tmp_path: Path, capsys):
    records.write(tmp_path, FULL)
    (tmp_path / results.FILE.format("good")).write_text(json.dumps(MEASURED))
    for name, make in PLACES.items():
        make(tmp_path / results.FILE.format(name.replace(" ", "_")))
    file = tmp_path / results.FILE.format("bad")
    file.write_bytes(content)
    (record,) = results.load([tmp_path])
    assert record["metrics"]["mce/generated_error"] == 50.0
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 + len(PLACES)
    assert sum(line.startswith(f"left out: {file}") for line in told) == 1


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("name", ["progress", "error", "queue", "lock"])
def test_status_is_told_in_spite_of_what_stands_for_its_files(name: str, kind: str, tmp_path: Path):
    run = tmp_path / "pets-net-ft-s0-000000000000"
    checkpoints, sweep = run / records.CHECKPOINTS, tmp_path / status.SWEEPS / "1"
    checkpoints.mkdir(parents=True)
    sweep.mkdir(parents=True)
    file = {
        "progress": checkpoints / records.PROGRESS,
        "error": run / records.ERROR,
        "queue": sweep / status.QUEUE,
        "lock": run / records.LOCK,
    }[name]
    PLACES[kind](file)
    (state,) = status.list_runs(tmp_path)
    there = name == "error" and not kind.startswith("a link")
    assert state.state == ("failed" if there else "interrupted")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("progress.json", b"[]"),
        ("progress.json", b'{"epoch": "one", "epochs": 2, "seconds": 1}'),
        ("progress.json", b'{"epoch": 1, "epochs": 0, "seconds": 1}'),
        ("progress.json", b'{"epoch": 1}'),
        ("progress.json", b"\xff"),
        ("queue.json", b"{}"),
        ("queue.json", b'{"runs": 1, "waiting": [], "failed": {}}'),
        ("queue.json", b'{"runs": [], "waiting": [1], "failed": {}}'),
        ("queue.json", b'{"runs": [], "waiting": [], "failed": ["a"]}'),
        ("queue.json", b""),
    ],
)
def test_damaged_notes_of_a_run_or_a_sweep_are_named_and_not_used(
    name: str, content: bytes, tmp_path: Path, capsys
):
    run = tmp_path / "pets-net-ft-s0-000000000000"
    file = {
        "progress.json": run / records.CHECKPOINTS / records.PROGRESS,
        "queue.json": tmp_path / status.SWEEPS / "1" / status.QUEUE,
    }[name]
    run.mkdir()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    (state,) = status.list_runs(tmp_path)
    assert (state.state, state.epochs) == ("interrupted", None)
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(f"left out: {file}: ")


def test_an_error_in_any_bytes_is_shown_as_far_as_it_is_text(tmp_path: Path):
    run = tmp_path / "pets-net-ft-s0-000000000000"
    run.mkdir()
    (run / records.ERROR).write_bytes(b"Traceback\nValueError: caf\xe9 [/red] is damaged\x1b[31m\n")
    (state,) = status.list_runs(tmp_path)
    assert state.error == r"ValueError: caf� [/red] is damaged\x1b[31m"


def test_the_table_of_a_sweep_is_of_the_runs_that_its_jobs_point_at(damaged: Path, capsys):
    good, bad_one = next(damaged.glob("*-ft-*0")), bad(damaged)[0].parent
    pointers = {
        "0": str(good).encode(),
        "1": b"",
        "2": b"\xff",
        "3": b"a\x00b",
        "4": b"runs/relative",
        "5": str(damaged / "nowhere").encode(),
        "6": str(bad_one).encode(),
        "7": b"x" * 10_000,
    }
    for job, content in pointers.items():
        (damaged / "sweep" / job).mkdir(parents=True)
        (damaged / "sweep" / job / POINTER).write_bytes(content)
    for job, make in zip(("10", "11", "12", "13", "\xb2"), PLACES.values(), strict=True):
        (damaged / "sweep" / job).mkdir()
        make(damaged / "sweep" / job / POINTER)
    SweepSummary().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(damaged / "sweep")}}}))
    output, errors = capsys.readouterr()
    assert output.count("90.00") == 1
    told = [line.removeprefix("left out: ") for line in errors.splitlines()]
    named = {line.split(f"/{POINTER}: ")[0].removeprefix(f"{damaged}/sweep/") for line in told}
    assert named - {told[-1]} == {"1", "2", "3", "4", "5", "7", "10", "11", "12"}
    assert told[-1].startswith(f"{bad_one / records.RECORD} is not a record")


@pytest.mark.parametrize("content", [b"", b"half"])
def test_a_run_with_a_damaged_checkpoint_says_what_to_remove_and_then_starts_anew(tiny, content: bytes):
    config = tiny("method=ft", "training.epochs=1")
    directory = experiment.directory_of(config)
    file = directory / records.CHECKPOINTS / "last.pt"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    with pytest.raises(UserError, match=rf"last\.pt: .*; remove the folder {re.escape(str(file.parent))} to"):
        experiment.run(config)
    (state,) = status.list_runs(directory.parent)
    assert (state.state, f"remove the folder {file.parent}" in state.error) == ("failed", True)
    shutil.rmtree(file.parent)
    assert experiment.run(config).record["status"] == "finished"


def test_frames_of_nothing_usable_are_empty(damaged: Path, capsys):
    assert frames.from_directories(file.parent for file in bad(damaged)).empty
    assert_named(capsys.readouterr().err.splitlines(), damaged)
