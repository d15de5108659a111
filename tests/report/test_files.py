"""Claims about the tables of a folder whose runs are of several settings."""

import copy
from pathlib import Path
from typing import Any

import pytest

from daft.common.errors import UserError
from daft.report import files, page
from daft.runs import records
from tests.runs.test_records import RECORD


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Runs of two datasets; one method of the first has two numbers of epochs."""
    wanted = [("pets", "ft", 5), ("pets", "ft", 10), ("pets", "daft", 5), ("cars", "ft", 20)]
    for number, (dataset, method, epochs) in enumerate(wanted):
        record: dict[str, Any] = copy.deepcopy(RECORD) | {"run": f"{number:012x}"}
        record["config"]["dataset"]["name"], record["config"]["method"]["name"] = dataset, method
        record["config"]["training"]["epochs"] = epochs
        records.write(tmp_path / "runs" / f"{dataset}-{number:012x}", record)
    return tmp_path / "runs"


def test_a_cell_that_mixes_settings_is_named_and_left_out_and_the_others_are_shown(
    mixed: Path, tmp_path: Path, script
):
    done = script("tables.py", mixed, "--out", tmp_path / "out")
    assert done.code == 0, done.errors
    backbone = RECORD["config"]["backbone"]["name"]
    told = (
        f"runs of pets {backbone} ft differ in training.epochs; give a folder with one setting, or tell them "
        "apart by --over training.epochs or --only training.epochs=VALUE"
    )
    assert done.errors == f"left out: {told}\n"
    assert f"Left out: {told}" in (tmp_path / "out" / "table.md").read_text()
    rows = [line.split(" | ")[0] for line in done.output.splitlines() if line.startswith(("| ft", "| daft"))]
    assert rows == ["| ft", "| daft"]  # of cars, and of pets
    html = page.render_page(records.load(records.find_runs(mixed)), "Runs")
    assert f"runs of pets {backbone} ft differ in training.epochs" in html
    assert html.count("<tbody>") > 2


@pytest.mark.parametrize(
    ("only", "rows"),
    [
        (["dataset=cars"], ["ft"]),
        (["dataset=pets", "training.epochs=5"], ["ft", "daft"]),
        (["method=daft,lp"], ["daft"]),
    ],
)
def test_only_the_runs_that_have_a_setting_are_shown(mixed: Path, tmp_path: Path, only, rows):
    text = files.write_folder(mixed, tmp_path / "out", only=only)
    found = [line.split(" | ")[0][2:] for line in text.splitlines() if line.startswith("| ")]
    assert sorted(name for name in found if name not in ("method", "---")) == sorted(rows)


@pytest.mark.parametrize(
    ("only", "told"),
    [
        ("dataset=dogs", "--only dataset=dogs: no run in .* has it; dataset is cars, pets$"),
        ("training.epoch=5", "--only training.epoch=5: the runs in .* have no setting 'training.epoch'$"),
        ("training.epochs=7", "no run in .* has it; training.epochs is 10, 20, 5$"),
    ],
)
def test_a_setting_that_no_run_has_is_refused(mixed: Path, tmp_path: Path, only: str, told: str):
    with pytest.raises(UserError, match=told):
        files.write_folder(mixed, tmp_path / "out", only=[only])


def test_where_every_cell_mixes_settings_there_is_no_table(mixed: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"differ in training\.epochs; .* or --only training\.epochs=VALUE$"):
        files.write_folder(mixed, tmp_path / "out", only=["dataset=pets", "method=ft"])
