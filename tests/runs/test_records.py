"""Claims about reading records back: what cannot be used is named and left out."""

import json
from pathlib import Path

import pytest

from daft.common.errors import BusyError, UserError
from daft.runs import frames, records

RECORD = {
    "run": "0123456789ab",
    "status": "finished",
    "best_epoch": 1,
    "config": {"seed": 0},
    "metrics": {"id/accuracy": 90.0},
    "history": [],
    "distortion": {},
    "environment": {},
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
        ("binary", "is not a record"),
        ("a list", "is not a record"),
        ("without metrics", "'metrics'"),
        ("config", "config is list"),
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
