"""Claims about the paper's tables: which cells they have, and our numbers beside the printed ones."""

import csv
import math
import statistics
from pathlib import Path

import pandas as pd
import pytest

from daft.common.errors import UserError
from daft.config.compose import composed
from daft.config.parts import TARGET_BN
from daft.data.corruptions import CORRUPTIONS
from daft.report import layouts, paper
from daft.runs import frames, results
from daft.sweep.protocol import Protocol, Rates

ROOT = Path(__file__).resolve().parents[2]
NONE = pd.DataFrame()


def runs(*rows: tuple) -> pd.DataFrame:
    """Rows of (backbone, method, η_θ, seed, ID, CIFAR-10.1 and STL accuracy[, status]) on CIFAR-10."""
    splits = ["id", "cifar10_1", "stl10"]
    names = [frames.BACKBONE, frames.METHOD, frames.RATES[0], frames.SEED, *(f"{s}/accuracy" for s in splits)]
    frame = pd.DataFrame([(*row, "finished")[:8] for row in rows], columns=[*names, "status"])
    frame["run"] = [f"r{i}" for i in range(len(frame))]
    frame[frames.DATASET] = "cifar10"
    frame[frames.RATES[1]] = math.nan
    frame["config.training.selection"] = "paper"
    return frame


def printed(name: str) -> list[dict[str, str]]:
    with open(ROOT / "results" / "paper" / f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def row(compared: pd.DataFrame, *key: str) -> pd.Series:
    return compared[(compared[paper.KEYS] == list(key)).all(axis=1)].iloc[0]


FEW = runs(
    ("moco_v2", "ft", 0.1, 0, 96.0, 92.0, 80.0),
    ("moco_v2", "ft", 0.1, 1, 97.0, 93.0, 82.0),
    ("moco_v2", "ft", 0.1, 2, 99.0, 94.0, 84.0),
    ("moco_v2", "ft", 0.01, 0, 95.0, 99.0, 99.0),
    ("moco_v2", "daft", 3e-5, 0, 97.334, 95.0, 90.0),
    ("clip_rn50", "ft", 9.0, 0, math.nan, math.nan, math.nan, "diverged"),
    ("swav", "lp_ft", 1e-5, 0, 97.0, 92.0, 91.0),
)


PROTOCOL = paper._protocol


@pytest.fixture(autouse=True)
def nothing_lacks(monkeypatch):
    """One run is a whole cell, as few rows do not make the paper's protocol."""
    monkeypatch.setattr(paper, "_protocol", lambda sweep, cell: Protocol(Rates(), (), (0,)))


@pytest.mark.parametrize("name", ["table2", "table3", "table4", "table5", "table6"])
def test_every_number_of_the_paper_has_one_place_in_its_table(name: str):
    table = paper.load(name)
    shown = paper.compare(table, NONE)["paper"]
    facts = [r for line in printed(name) for key, r in line.items() if key.endswith(paper.MEASURED)]
    assert sorted(shown) == sorted(map(float, facts))


@pytest.mark.parametrize("name", paper.names())
def test_every_cell_names_options_of_the_configuration_and_splits_that_the_dataset_has(name: str):
    table = paper.load(name).source()
    for cell in table.cells():
        plain = cell._replace(method=cell.method.partition("+")[0])
        for group, option in zip(("dataset", "backbone", "method"), plain, strict=True):
            assert (ROOT / "conf" / group / f"{option}.yaml").exists(), cell
    for dataset, columns in table.datasets.items():
        own = table.metric in ("accuracy", "miou")
        measured = {"id", "ood", f"ood{TARGET_BN}", *composed(f"dataset={dataset}").dataset.ood}
        assert set(columns.splits) <= (measured if own else {*CORRUPTIONS, results.MEAN})


def test_moco_tp_stands_in_for_moco_on_fmow_alone():
    backbones = {(cell.dataset, cell.backbone) for cell in paper.load("table2").cells()}
    assert ("fmow", "moco_tp") in backbones
    assert ("fmow", "moco_v2") not in backbones
    assert [b for _, b in backbones].count("moco_tp") == 1
    assert len(paper.load("table2").cells()) == 5 * 3 * 4


@pytest.mark.parametrize("name", paper.names())
def test_the_sweeps_of_a_table_have_its_cells_and_no_others(name: str):
    table = paper.load(name)
    swept = []
    for overrides in table.sweeps():
        axes = dict(override.split("=") for override in overrides)
        parts = "".join(f"+{part}" for part in axes.get("part", "[]")[1:-1].split(",") if part)
        swept += [
            (dataset, backbone, method + parts)
            for dataset in axes["dataset"].split(",")
            for backbone in axes["backbone"].split(",")
            for method in axes["method"].split(",")
        ]
    assert sorted(swept) == sorted(table.cells())


def test_a_narrowed_table_sweeps_what_is_named_and_a_wrong_name_is_refused():
    table = paper.load("table2")
    narrowed = table.narrowed(datasets=["fmow"], backbones=["moco_v2"], methods=[])
    assert [" ".join(o) for o in narrowed.sweeps()] == [
        "sweep=paper dataset=fmow backbone=moco_tp method=lp,ft,lp_ft,daft"
    ]
    assert paper.load("table6").narrowed(methods=["lp"]).sweeps() == table.narrowed(methods=["lp"]).sweeps()
    with pytest.raises(UserError, match=r"'cifar'; choose from cifar10, entity30"):
        table.narrowed(datasets=["cifar"])


def test_table_6_is_the_average_of_table_2_in_the_paper_itself():
    table2 = paper.compare(paper.load("table2"), NONE)
    averaged = paper.averages(table2.assign(mean=table2["paper"]))
    values = {
        key: v for *key, v in averaged[[*paper.KEYS, "mean"]].itertuples(index=False) for key in [(*key,)]
    }
    for line in printed("table6"):
        for split in ("id", "ood"):
            ours = values[line["backbone"], line["method"], "average", split]
            assert ours == pytest.approx(float(line[f"{split}_accuracy"]), abs=0.0100001)
    assert len(values) == 24


def test_the_mean_error_of_table_4_is_the_mean_of_its_columns_in_the_paper_itself():
    table4 = paper.compare(paper.load("table4"), NONE)
    rows = list(table4.groupby(["backbone", "method"]))
    assert len(rows) == 12
    for _, row in rows:
        errors = row.set_index("split")["paper"]
        assert list(errors.index) == [*CORRUPTIONS, "mce"]
        # Each number is rounded by up to 0.05, and so is the mean.
        assert errors["mce"] == pytest.approx(errors.drop("mce").mean(), abs=0.1)


def test_best_is_the_lowest_of_a_column_of_errors():
    table4 = paper.compare(paper.load("table4"), NONE)
    best = table4[table4["paper_best"] & (table4["split"] == "mce")]
    assert list(zip(best["backbone"], best["method"], best["paper"], strict=True)) == [
        ("moco_v2", "daft", 19.4),
        ("clip_rn50", "daft", 25.8),
        ("swav", "daft", 19.0),
    ]
    assert "| MoCo | LP | missing · 47.5 |" in layouts.markdown(paper.load("table4"), table4)


def test_the_spread_of_an_average_is_propagated_and_a_gap_leaves_no_mean():
    rows = [("id", "a", 90.0, 3.0), ("x", "a", 50.0, 1.0), ("y", "a", 60.0, 2.0), ("id", "b", 70.0, 4.0)]
    cells = pd.DataFrame(rows, columns=["split", "dataset", "mean", "std"])
    cells = cells.assign(backbone="net", method="m", n=3, lacking=0, runs=["r1", "r1", "r1", "r2"])
    averaged = paper.averages(cells).set_index("split")
    assert averaged["mean"].to_dict() == {"id": 80.0, "ood": 55.0}
    assert averaged.loc["id", "std"] == pytest.approx(math.sqrt(9 + 16) / 2)
    assert averaged.loc["ood", "std"] == pytest.approx((1 + 2) / 2)  # the same runs: no independence
    assert averaged["runs"].to_dict() == {"id": "r1 r2", "ood": "r1"}
    cells.loc[3, ["mean", "std"]] = math.nan
    assert paper.averages(cells).set_index("split")["mean"].isna().to_dict() == {"id": True, "ood": False}


def test_the_plain_rows_of_table_5_and_its_daft_are_table_2s_cifar_10_cells():
    table2 = paper.compare(paper.load("table2"), NONE).set_index(paper.KEYS)["paper"]
    table5 = paper.compare(paper.load("table5"), NONE).set_index(paper.KEYS)["paper"]
    common = table5[table5.index.get_level_values("method").isin(["ft", "lp_ft", "daft"])]
    assert len(common) == 27
    assert common.to_dict() == table2[common.index].to_dict()


def test_ours_stands_beside_the_papers_with_the_difference_in_points_and_in_stds():
    compared = paper.compare(paper.load("table5"), FEW)
    ft = row(compared, "moco_v2", "ft", "cifar10", "id")
    std = statistics.stdev([96, 97, 99])
    assert ft["mean"] == pytest.approx(292 / 3)
    assert ft["std"] == pytest.approx(std)
    assert ft["difference"] == pytest.approx(292 / 3 - 97.66)
    assert ft["difference_in_std"] == pytest.approx((292 / 3 - 97.66) / std)
    assert (ft["n"], ft["runs"], ft["lr_backbone"], ft["at_edge"]) == (3, "r0 r1 r2", 0.1, True)
    alone = row(compared, "moco_v2", "daft", "cifar10", "stl10")
    assert alone["difference"] == pytest.approx(90 - 92.36)
    assert math.isnan(alone["std"])
    assert math.isnan(alone["difference_in_std"])
    assert (alone["n"], alone["runs"], alone["at_edge"]) == (1, "r4", False)


def test_what_is_absent_stays_missing_and_what_diverged_says_so():
    compared = paper.compare(paper.load("table5"), FEW)
    assert len(compared) == 3 * 6 * 3
    assert compared["missing"].sum() == 3 * (18 - 3)
    diverged = row(compared, "clip_rn50", "ft", "cifar10", "stl10")
    assert (diverged["n"], diverged["diverged"], diverged["missing"]) == (0, 1, True)
    assert row(compared, "clip_rn50", "daft", "cifar10", "id")["diverged"] == 0
    assert not compared.loc[compared["missing"], "best"].any()


def test_best_is_the_highest_of_a_column_within_a_backbone_as_printed():
    compared = paper.compare(paper.load("table5"), FEW)
    best = set(compared[compared["best"]][paper.KEYS].itertuples(index=False, name=None))
    # FT's ID mean is 97.333…, DAFT's 97.334: both print as 97.33. SwAV has one method: nothing to compare.
    assert best == {
        ("moco_v2", "ft", "cifar10", "id"),
        ("moco_v2", "daft", "cifar10", "id"),
        ("moco_v2", "daft", "cifar10", "cifar10_1"),
        ("moco_v2", "daft", "cifar10", "stl10"),
    }
    table2 = paper.compare(paper.load("table2"), NONE)
    moco = table2[(table2["backbone"] == "moco_v2") & table2["paper_best"]]
    assert (moco["method"] == "daft").all()  # "consistently achieves higher ID accuracy", and here OOD too
    assert len(moco) == 11


def test_a_cell_without_all_runs_of_its_protocol_is_marked_and_never_the_best(monkeypatch):
    monkeypatch.setattr(paper, "_protocol", PROTOCOL)
    grid = [0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001]  # FT's of MoCo-v2, from the authors' configs
    whole = [("moco_v2", "ft", rate, 0, 90.0 + rate, 90.0, 80.0) for rate in grid]
    whole += [("moco_v2", "ft", 0.3, seed, 90.0, 90.0, 80.0) for seed in (1, 2)]
    better = [
        ("moco_v2", "lp_ft", 1e-4, seed, 97.0, 97.0, 97.0) for seed in (0, 1)
    ]  # of a grid of 6, 3 seeds
    table = paper.load("table5")
    compared = paper.compare(table, runs(*whole, *better))
    lacks = compared.drop_duplicates("lacking").set_index("method")["lacking"]
    assert lacks.to_dict() == {"ft": 0, "lp_ft": 5 + 1}
    assert compared.loc[compared["best"], "method"].unique().tolist() == []
    text = layouts.markdown(table, compared)
    assert "97.00 ± 0.00†" in text
    assert "- Runs of the protocol that are not there: MoCo LP-FT on CIFAR-10 (6)." in text
    gone = paper.compare(table, runs(*whole[1:], *better))
    assert row(gone, "moco_v2", "ft", "cifar10", "id")["lacking"] == 1 + 2  # with 0.3, which the seeds had


def test_only_runs_with_the_settings_of_the_table_count():
    frame = FEW.assign(**{frames.DATASET: "pacs", frames.BACKBONE: "resnet18_tin64"})[:2]
    frame["config.training.epochs"] = [10, 1]
    frame["config.training.precision"] = "bf16"
    frame["config.compute.threads"] = 8  # not the table's, and no matter
    compared = paper.compare(paper.load("small_resnet18"), frame)
    assert row(compared, "resnet18_tin64", "ft", "pacs", "id")[["mean", "n"]].tolist() == [96.0, 1]


def test_how_a_sweep_is_run_is_no_setting_of_its_runs():
    frame = FEW.assign(**{frames.DATASET: "pacs_128", frames.BACKBONE: "efficientnet_lite0"})[:2]
    frame["config.training.precision"] = ["fp32", "bf16"]
    compared = paper.compare(paper.load("small"), frame)  # whose sweeps are given sweep.extend=true
    assert row(compared, "efficientnet_lite0", "ft", "pacs_128", "id")["n"] == 1


def test_a_cell_of_mixed_settings_is_left_out_by_name_and_the_others_are_shown():
    frame = FEW.assign(**{"config.training.epochs": [20, 1, 20, 20, 20, 20, 20]})
    table = paper.load("table5")
    compared = paper.compare(table, frame)
    assert row(compared, "moco_v2", "ft", "cifar10", "id")["missing"]
    assert row(compared, "moco_v2", "daft", "cifar10", "id")["mean"] == 97.334
    problem = (
        "- Left out: runs of cifar10 moco_v2 ft differ in training.epochs; give a folder with one setting."
    )
    assert problem in layouts.markdown(table, compared)


def test_a_definition_with_a_mistyped_key_is_named(tmp_path: Path, monkeypatch):
    (tmp_path / "mine.yaml").write_text("title: T\nbackbones: {b: {titel: B}}\nmethods: {}\ndatasets: {}\n")
    monkeypatch.setattr(paper, "DEFINITIONS", tmp_path)
    with pytest.raises(UserError, match=r"mine\.yaml: backbones\.b\.tit"):
        paper.load("mine")
    (tmp_path / "mine.yaml").write_text("title: [")
    with pytest.raises(UserError, match=r"mine\.yaml line 2 column 1: "):
        paper.load("mine")
    with pytest.raises(UserError, match="tabel: no such table; choose from mine"):
        paper.load("tabel")


def test_markdown_is_laid_out_as_the_paper_and_says_what_to_know():
    table = paper.load("table5")
    text = layouts.markdown(table, paper.compare(table, FEW))
    assert "| model | method | CIFAR-10 ID | CIFAR-10 CIFAR-10.1 | CIFAR-10 STL |" in text
    ft = "**97.33 ± 1.53\\*** · 97.66 · −0.33 (−0.2 s) | 93.00 ± 1.00\\* · 92.95 · +0.05 (0.0 s)"
    assert f"| MoCo | FT | {ft} |" in text
    daft = "**97.33** · **97.84** · −0.51 | **95.00** · **94.18** · +0.82"
    assert f"|  | + BN conversion | {daft} |" in text
    assert "| CLIP | FT | diverged · 93.88 | diverged · 87.07 | diverged · 69.50 |" in text
    assert "|  | LP-FT | missing · 94.02 |" in text
    assert "- 3 of 18 cells have runs; n = 1." in text
    assert "- Other n: MoCo FT on CIFAR-10 (n = 3)." in text
    assert "- η_θ at the edge of its grid: MoCo FT on CIFAR-10 (0.1)." in text
    assert f"- {layouts.DIVERGED}: CLIP FT on CIFAR-10 (1)." in text


@pytest.mark.parametrize("name", paper.names())
@pytest.mark.parametrize("suffix", layouts.RENDERERS)
def test_every_table_renders_with_nothing_in_it(name: str, suffix: str):
    table = paper.load(name)
    text = layouts.RENDERERS[suffix](table, paper.compare(table, NONE))
    assert "nan" not in text.lower().replace("finan", "")
    cells = sum(
        layouts.is_evaluated(m, split)
        for c in table.datasets.values()
        for split in c.splits
        for m in table.methods
    )
    assert text.count("missing") >= len(table.backbones) * cells
    assert "Each cell: ours" in text
    assert ("then the paper" in text) == name.startswith("table")  # our own have no printed numbers


def test_names_that_mean_something_to_a_format_are_escaped():
    table = paper.load("table5")
    entry = paper.Heading(title="a_b & <c> 50% | d*")
    table = paper.replace(table, methods=table.methods | {"ft": paper.replace(entry, paper=None)})
    compared = paper.compare(table, FEW)
    assert "a_b & \\<c> 50% \\| d\\*" in layouts.markdown(table, compared)
    assert "a_b &amp; &lt;c&gt; 50% | d*" in layouts.html(table, compared)
    assert r"a\_b \& <c> 50\% | d*" in layouts.latex(table, compared)
    assert "<c>" not in layouts.html(table, compared)


def test_html_and_latex_show_the_numbers_of_the_markdown():
    table = paper.load("table5")
    compared = paper.compare(table, FEW)
    html, latex = layouts.html(table, compared), layouts.latex(table, compared)
    assert "<b>97.33 ± 1.53*</b><small>97.66 · −0.33 (−0.2 s)</small>" in html
    assert html.count("<td") == 18 * 3
    assert "://" not in layouts.html_document("t", html)  # asks for nothing
    assert r"\shortstack{\textbf{97.33 $\pm$ 1.53*}\\{\tiny 97.66 $-$0.33 ($-$0.2 s)}}" in latex
    body = latex.partition(r"\midrule")[2].splitlines()
    assert {line.count(" & ") for line in body if line.endswith(r"\\[2pt]")} == {4}
    assert latex.count("{") == latex.count("}")
