"""Claims about the scripts around runs: tables, figures, contact sheet, benchmark."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from daft import experiment
from daft.runs import records
from tests.helpers.waiting import HANG_SECONDS
from tests.report.test_page import LOADED

ROOT = Path(__file__).resolve().parents[1]


def script(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS, check=False)


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


def test_records_become_a_table_and_pictures(runs: Path, tmp_path: Path):
    done = script("tables.py", runs, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    every = pd.read_csv(tmp_path / "out" / "runs.csv")
    table = pd.read_csv(tmp_path / "out" / "table.csv").set_index(["method", "metric"])
    daft = every[every["config.method.name"] == "daft"]["id/accuracy"]
    assert table.loc[("daft", "id/accuracy"), "mean"] == pytest.approx(daft.mean())
    assert table.loc[("daft", "id/accuracy"), "std"] == pytest.approx(daft.std(ddof=1))
    assert table.loc[("lp", "id/accuracy"), "n"] == 1
    assert done.stdout.strip() == (tmp_path / "out" / "table.md").read_text().strip()
    for kind in ("overview", "id_ood"):
        done = script("figures.py", runs, "--kind", kind, "--out", tmp_path / f"{kind}.png")
        assert done.returncode == 0, done.stderr
        assert drawn(tmp_path / f"{kind}.png")


def test_a_table_of_the_paper_is_written_in_four_formats_and_the_report_as_one_file(tmp_path: Path):
    runs = tmp_path / "runs"
    for record in LOADED:
        records.write(runs / record["run"], record)
    (runs / LOADED[0]["run"] / records.RECORD).write_text("{")
    done = script("tables.py", "table5", "--runs", runs, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert f"{LOADED[0]['run']}/record.json is not a record" in done.stderr
    assert done.stdout.strip() == (tmp_path / "out" / "table5.md").read_text().strip()
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [".csv", ".html", ".md", ".tex"]
    done = script("report.py", "--runs", runs, "--out", tmp_path / "report.html")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report.html").read_text().count("<details>") == len(LOADED) - 1


def test_the_sweeps_of_a_table_are_printed_a_line_each():
    done = script("tables.py", "table2", "--overrides", "--datasets", "cifar10,fmow", "--methods", "daft")
    assert done.stdout.splitlines() == [
        "sweep=paper dataset=cifar10 backbone=moco_v2,clip_rn50,swav method=daft",
        "sweep=paper dataset=fmow backbone=moco_tp,clip_rn50,swav method=daft",
    ]
    done = script("tables.py", "table2", "--overrides", "--methods", "dft")
    assert (done.returncode, done.stdout) == (1, "")
    assert "'dft'; choose from lp, ft, lp_ft, daft" in done.stderr


@pytest.mark.parametrize("name", ["tables.py", "figures.py"])
def test_a_folder_without_records_is_named_without_a_traceback(name: str, tmp_path: Path):
    done = script(name, tmp_path, "--out", tmp_path / "out.png")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert str(tmp_path) in done.stderr


def test_the_benchmark_runs_through_at_toy_size():
    done = script("../tests/benchmark.py", "--quick", "--repeats", 1, "--threads", 1, "--only", "conversion")
    assert done.returncode == 0, done.stderr
    for row in ("a. BN conversion", "b. BN conversion"):
        assert row in done.stdout
