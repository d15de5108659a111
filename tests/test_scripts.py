"""Claims about the scripts around runs: tables, figures, contact sheet, benchmark."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
from PIL import Image

from daft import experiment
from daft.runs import records
from tests.report.test_page import LOADED

ROOT = Path(__file__).resolve().parents[1]


class Done(NamedTuple):
    """How a script ended."""

    code: int
    output: str
    errors: str


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """A script with these arguments, as Python runs it, but in this process: it has its libraries already."""

    def run(name: str, *arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        code, message = 0, ""
        try:
            runpy.run_path(str(ROOT / "scripts" / name), run_name="__main__")
        except SystemExit as stop:
            if stop.code:
                code, message = 1, f"{stop.code}\n" if isinstance(stop.code, str) else ""
        output, errors = capfd.readouterr()
        return Done(code, output, errors + message)

    return run


def drawn(file: Path) -> bool:
    """Whether a PNG shows more than one colour."""
    with Image.open(file) as image:
        colours = image.convert("RGB").getcolors(maxcolors=2**24)
    return colours is not None and len(colours) > 100


@pytest.fixture
def runs(tiny, tmp_path: Path) -> Path:
    for overrides in (["method=lp"], ["method=daft"], ["method=daft", "seed=1"]):
        experiment.run(tiny(*overrides, "training.epochs=1"))
    return tmp_path / "runs"


def test_records_become_a_table_and_pictures(script, runs: Path, tmp_path: Path):
    done = script("tables.py", runs, "--out", tmp_path / "out")
    assert done.code == 0, done.errors
    every = pd.read_csv(tmp_path / "out" / "runs.csv")
    table = pd.read_csv(tmp_path / "out" / "table.csv").set_index(["method", "metric"])
    daft = every[every["config.method.name"] == "daft"]["id/accuracy"]
    assert table.loc[("daft", "id/accuracy"), "mean"] == pytest.approx(daft.mean())
    assert table.loc[("daft", "id/accuracy"), "std"] == pytest.approx(daft.std(ddof=1))
    assert table.loc[("lp", "id/accuracy"), "n"] == 1
    assert done.output.strip() == (tmp_path / "out" / "table.md").read_text().strip()
    for kind in ("overview", "id_ood"):
        done = script("figures.py", runs, "--kind", kind, "--out", tmp_path / f"{kind}.png")
        assert done.code == 0, done.errors
        assert drawn(tmp_path / f"{kind}.png")


def test_a_table_of_the_paper_is_written_in_four_formats_and_the_report_as_one_file(script, tmp_path: Path):
    runs = tmp_path / "runs"
    for record in LOADED:
        records.write(runs / record["run"], record)
    (runs / LOADED[0]["run"] / records.RECORD).write_text("{")
    done = script("tables.py", "table5", "--runs", runs, "--out", tmp_path / "out")
    assert done.code == 0, done.errors
    assert f"{LOADED[0]['run']}/record.json is not a record" in done.errors
    assert done.output.strip() == (tmp_path / "out" / "table5.md").read_text().strip()
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [".csv", ".html", ".md", ".tex"]
    done = script("report.py", "--runs", runs, "--out", tmp_path / "report.html")
    assert done.code == 0, done.errors
    assert (tmp_path / "report.html").read_text().count("<details>") == len(LOADED) - 1


def test_the_sweeps_of_a_table_are_printed_a_line_each(script):
    done = script("tables.py", "table2", "--overrides", "--datasets", "cifar10,fmow", "--methods", "daft")
    assert done.output.splitlines() == [
        "sweep=paper dataset=cifar10 backbone=moco_v2,clip_rn50,swav method=daft",
        "sweep=paper dataset=fmow backbone=moco_tp,clip_rn50,swav method=daft",
    ]
    done = script("tables.py", "table2", "--overrides", "--methods", "dft")
    assert (done.code, done.output) == (1, "")
    assert "'dft'; choose from lp, ft, lp_ft, daft" in done.errors


@pytest.mark.parametrize("name", ["tables.py", "figures.py"])
def test_a_folder_without_records_is_named_without_a_traceback(script, name: str, tmp_path: Path):
    done = script(name, tmp_path, "--out", tmp_path / "out.png")
    assert done.code == 1
    assert len(done.errors.splitlines()) == 1
    assert str(tmp_path) in done.errors


def test_the_benchmark_runs_through_at_toy_size(script):
    done = script("../tests/benchmark.py", "--quick", "--repeats", 1, "--threads", 1, "--only", "conversion")
    assert done.code == 0, done.errors
    for row in ("a. BN conversion", "b. BN conversion"):
        assert row in done.output
