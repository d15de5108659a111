"""Claims about reading records back: what cannot be used is named and left out."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest

from daft.common.errors import BusyError, UserError
from daft.runs import frames, records

RECORD: dict[str, Any] = {
    "run": "0123456789ab",
    "status": "finished",
    "best_epoch": 1,
    "config": {
        "dataset": {"name": "pets"},
        "backbone": {"name": "net"},
        "method": {"name": "ft", "lr_backbone": 0.1, "lr_head": None},
        "training": {"selection": "paper"},
        "seed": 0,
    },
    "metrics": {"id/accuracy": 90.0, "ood/accuracy": 50.0, "id/l2": 1.0},
    "history": [{"epoch": 1, "selection/accuracy": 90.0}],
    "distortion": {},
    "environment": {"code": "abc", "threads": 1},
    "time": {"train_s": 1.0},
}


def spoiled(change: str, text: str) -> bytes:
    """A record that cannot be used, and how it came to be so."""
    content = json.loads(text)
    if change == "cut off":
        return text[: len(text) // 2].encode()
    if change == "binary":
        return b"\xff\x00" + text.encode()
    if change == "a list":
        return b"[]"
    if change == "without metrics":
        del content["metrics"]
    elif change == "config":
        content["config"] = []
    else:
        content[change] += 1
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("cut off", "is not a record"),
        ("binary", "no text in UTF-8"),
        ("a list", "no object of JSON"),
        ("without metrics", "metrics: field required"),
        ("config", "config: input should be a valid dictionary"),
        ("format", f"record of format {records.FORMAT + 1}; this version reads {records.FORMAT}"),
        ("protocol", f"record of protocol {records.PROTOCOL + 1}; this version reads {records.PROTOCOL}"),
    ],
)
def test_a_record_that_cannot_be_used_is_named_left_out_and_not_touched(
    change: str, words: str, tmp_path: Path, capsys
):
    for name in ("a", "b"):
        records.write(tmp_path / name, RECORD)
    file = tmp_path / "a" / records.RECORD
    content = spoiled(change, file.read_text())
    file.write_bytes(content)
    with pytest.raises(UserError, match=words):
        records.read(tmp_path / "a")
    frame = frames.from_directories(records.find_runs(tmp_path))
    assert frame["run"].tolist() == ["0123456789ab"]
    assert str(file) in (complaint := capsys.readouterr().err)
    assert words in complaint
    assert len(complaint.splitlines()) == 1
    assert file.read_bytes() == content


def test_the_records_of_the_first_version_are_still_read(tmp_path: Path):
    """Whose configuration lacks what came later, and which have what nothing reads any more."""
    old = copy.deepcopy(RECORD) | {"stage": "lr_backbone", "probe": {"C": 1.0, "accuracy": 90.0, "path": []}}
    old["config"] |= {"wandb": {"mode": "disabled", "project": "daft", "entity": None, "group": "pets-net"}}
    records.write(tmp_path / "a", old)
    assert records.read(tmp_path / "a") == old | {"format": records.FORMAT, "protocol": records.PROTOCOL}


def test_numbers_that_are_not_known_are_null(tmp_path: Path):
    diverged = RECORD | {"status": "diverged", "metrics": {"id/accuracy": math.nan}, "best_epoch": None}
    diverged["history"] = [{"epoch": 1, "train/loss": math.inf, "selection/accuracy": math.nan}]
    records.write(tmp_path / "a", diverged)
    (record,) = records.load([tmp_path / "a"])
    assert record["metrics"] == {"id/accuracy": None}
    assert record["history"] == [{"epoch": 1, "train/loss": None, "selection/accuracy": None}]


def test_a_directory_without_a_record_is_none_and_no_complaint(tmp_path: Path, capsys):
    (tmp_path / "running").mkdir()
    assert frames.from_directories([tmp_path / "running"]).empty
    assert records.find_runs(tmp_path) == []
    assert capsys.readouterr().err == ""


def test_a_run_that_two_processes_begin_by_different_names_has_one_directory(tmp_path: Path):
    with records.lock_run(tmp_path / "x-daft-0123456789ab") as first:
        assert first == tmp_path / "x-daft-0123456789ab"
        with pytest.raises(BusyError) as busy, records.lock_run(tmp_path / "x-other-0123456789ab"):
            pass
    assert busy.value.directory == first
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == [first]
