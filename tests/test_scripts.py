"""Claims about the scripts around runs: tables, figures, contact sheet, benchmark."""

import os
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from daft import experiment
from daft.runs import records
from tests.report.test_page import LOADED


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
    rows = ["--only", "conversion", "next-run"]
    done = script("../tests/benchmark.py", "--quick", "--repeats", 1, "--threads", 1, *rows)
    assert done.code == 0, done.errors
    for row in ("a. BN conversion", "b. BN conversion", "p. images for the first run"):
        assert row in done.output


@pytest.fixture(scope="module")
def messy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two records and with what an argument can name by mistake."""
    folder = tmp_path_factory.mktemp("messy")
    for record in LOADED[:2]:
        records.write(folder / "runs" / record["run"], record)
    (folder / "file").write_text("x")
    (folder / "empty").mkdir()
    os.mkfifo(folder / "pipe")
    return folder


MISTAKES = [
    ("tables.py", "table5 --runs /nope --out o", "--runs /nope: no records below this folder"),
    ("tables.py", "table5 --runs file --out o", "--runs file: no records below this folder"),
    ("tables.py", "table5 --runs empty --out o", "--runs empty: no records below this folder"),
    ("tables.py", "runs --out file", "--out file: file is no folder"),
    ("tables.py", "runs --out pipe", "--out pipe: pipe is no folder"),
    ("tables.py", "runs --over nope --out o", "--over nope: the runs in runs have no such setting"),
    ("tables.py", "runs --over= --out o", "--over : the runs in runs have no such setting"),
    ("tables.py", "table5 --overrides --seeds=99999999999999", "'99999999999999' is no seed"),
    ("tables.py", "table5 --overrides --seeds=x", "'x' is no seed"),
    ("tables.py", "table5 --overrides --datasets=", "'' has no name"),
    ("tables.py", "table5 --overrides --datasets 2018", "no dataset '2018'"),
    ("figures.py", "pipe --out o.png", "pipe: no records"),
    ("figures.py", "runs --out o.gif", "--out o.gif: name a file that ends in .png or .pdf or .svg"),
    ("figures.py", "runs --dataset= --out o.png", "must not be empty"),
    ("figures.py", "runs --out o.png --project a/b", "'a/b': a project of W&B has 1 to 128 characters"),
    ("report.py", "--runs runs --out o", "--out o: name a file that ends in .html"),
    ("report.py", "--runs= --out o.html", "a path must not be empty"),
    ("robustness.py", "runs --device cuda:99", "--device=cuda:99: "),
    ("robustness.py", "runs --threads 1000000", "'1000000' is no whole number from 1 to 1024"),
    ("robustness.py", "runs --batch-size 999999999999", "is no whole number from 1 to 1048576"),
    ("robustness.py", "runs --out file", "--out file: file is no folder"),
    ("fewshot.py", "nope", "nope: no run, no folder of runs, no network; those are "),
    ("fewshot.py", "runs --ways 1", "--ways 1: two or more"),
    ("fewshot.py", "runs --episodes 1", "--episodes 1: two or more"),
    ("fewshot.py", "runs --shots 1,0", "'0' is no whole number from 1"),
    ("fewshot.py", "runs --seed 0,1", "'0,1': one seed"),
    ("fewshot.py", "runs backbone=swav", "backbone=swav: has no effect here; give keys of dataset, paths"),
    ("fewshot.py", "shapes_resnet10 method=ft", "method=ft: has no effect here; give keys of dataset, paths"),
    ("fewshot.py", "shapes_resnet10 dataset=nope", "dataset=nope: no such option"),
    ("fewshot.py", "shapes_resnet10 --device cuda:99", "compute.device=cuda:99: "),
    ("fewshot.py", "runs --out file", "--out file: file is no folder"),
    (
        "fewshot.py",
        "shapes_resnet10 --ways 11 dataset.image_size=32 dataset.train.images=10 dataset.id.images=10 "
        "~dataset.ood.photo ~dataset.ood.clipart ~dataset.ood.painting ~dataset.ood.neon",
        "--ways 11: dataset.id has 10 classes",
    ),
    ("status.py", "pipe", "pipe: no runs in this folder"),
    ("wandb_sync.py", "file --dry-run", "file: no records below this folder"),
    ("wandb_sync.py", "runs --entity a/b", "a team or an account of W&B"),
    ("dashboard.py", "--out empty", "--out empty: name a file that ends in .json"),
    ("pretrain.py", "shapes --out o.safetensors --device cuda:99", "CUDA device(s) found"),
    ("pretrain.py", "shapes --out o.safetensors --seed 99999999999999999999", "is no whole number from 1"),
    ("contact_sheet.py", "--corruptions pipe --out o.png", "--corruptions pipe: no such file"),
    ("contact_sheet.py", "--corruptions --out o.png dataset=pacs", "dataset=pacs has no effect"),
    ("contact_sheet.py", "dataset=shapes --per-class 99999 --out o.png", "whole number from 1 to 100"),
    ("prepare.py", "dataset=pacs paths.data=", "paths.data: '' is not allowed: must not be empty"),
    ("prepare.py", "dataset=null", "dataset=null: no such option"),
    ("prepare.py", "dataset=pacs dataset.files=[{path:../x,urls:['file:///x']}]", "outside of the root"),
    ("prepare.py", "dataset=pacs dataset.files=[{path:x,urls:['http://[::1']}]", "write an address as in"),
    ("train.py", "task=fewshot fewshot.train_classes=[ring,star]", "'star' is one of test_classes, too"),
    ("train.py", "--nope", "unrecognized arguments: --nope"),
    ("train.py", "-m seed=0 --cfg job", "-m runs, and --cfg and --info only show something"),
    ("train.py", "-m seed=range(0,3,0)", "seed=range(0,3,0): Hydra does not take this (ValueError"),
    (
        "train.py",
        "-m seed=range(0,1000000000)",
        "range(0,1000000000): 1,000,000,000 values; 100,000 are enough",
    ),
    ("train.py", "-m method=range(0,3) sweep=small", "Hydra does not take this (ValueError: Config group"),
    ("train.py", "-m seed=range(0)", "seed=range(0): no value"),
    (
        "train.py",
        "-m sweep=small method=ft sweep.plan=true compute.device=cuda:99",
        "compute.device=cuda:99: ",
    ),
    ("train.py", "-m sweep=small method=glob(nope*)", "method=glob(nope*): no value"),
    ("train.py", "hydra.verbose=3 seed=0", "hydra.verbose=3: Hydra does not take this"),
    ("train.py", "--config-dir /nope", "'/nope' not found"),
]


@pytest.mark.parametrize(("name", "words", "told"), MISTAKES, ids=[f"{name} {w}" for name, w, _ in MISTAKES])
def test_a_mistake_is_one_line_and_nothing_is_left(
    script, messy: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str, told: str
):
    monkeypatch.chdir(messy)
    before = sorted(messy.rglob("*"))
    done = script(name, *words.split())
    assert done.code == 1
    (line,) = done.errors.splitlines()
    assert told in line
    assert line.startswith(f"{name}: ")
    assert done.output == ""
    left = [path for path in sorted(messy.rglob("*")) if path not in before]
    assert not [path for path in left if path.is_file() and path.name != "multirun.yaml"]  # Hydra's


def test_a_table_for_each_value_of_a_list(script, runs: Path, tmp_path: Path):
    done = script("tables.py", runs, "--over", "dataset.train_transform", "--out", tmp_path / "out")
    assert done.code == 0, done.errors
    assert (
        '## dataset.train_transform = ["flip"]' in done.output
        or "## dataset.train_transform = [{" in done.output
    )
