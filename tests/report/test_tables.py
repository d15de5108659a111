"""Claims about selection and aggregation, on numbers small enough to check by hand."""

import copy
import math
import re
from typing import Any

import pandas as pd
import pytest

from daft.common.errors import UserError
from daft.report import tables
from daft.runs import frames, records
from daft.sweep import selection
from tests.runs.test_records import RECORD


def runs(*rows: tuple) -> pd.DataFrame:
    """Rows of (method, lr_backbone, seed, ID accuracy, OOD accuracy, status)."""
    names = [frames.METHOD, frames.RATES[0], frames.SEED, "id/accuracy", "ood/accuracy", "status"]
    frame = pd.DataFrame([(*row, "finished")[: len(names)] for row in rows], columns=names)
    frame["run"] = [f"r{i}" for i in range(len(frame))]
    frame[frames.DATASET], frame[frames.BACKBONE] = "d", "b"
    frame[frames.RATES[1]] = math.nan
    frame["config.training.selection"] = "paper"
    return frame


def markdown(frame: pd.DataFrame) -> str:
    """The table of these runs, without the spaces that align its columns."""
    return re.sub(" +", " ", tables.markdown(tables.aggregate(selection.select(frame), frame)))


def test_the_learning_rate_is_chosen_by_id_accuracy_and_never_by_ood():
    frame = runs(("ft", 0.1, 0, 90.0, 10.0), ("ft", 0.01, 0, 80.0, 99.0), ("ft", 0.1, 1, 70.0, 20.0))
    assert selection.select(frame)["run"].tolist() == ["r0", "r2"]


def test_the_choice_is_made_on_the_lowest_seed_alone():
    frame = runs(("ft", 0.1, 0, 90.0, 1.0), ("ft", 0.01, 0, 80.0, 1.0), ("ft", 0.01, 1, 99.0, 1.0))
    assert selection.select(frame)["run"].tolist() == ["r0"]


def test_of_runs_that_start_from_several_lp_runs_those_of_the_best_of_these_are_the_cell():
    """As when LP's grid was widened afterwards: LP's score decides, not that of what starts from it."""
    frame = runs(
        *(("lp_ft", 0.1, 0, 95.0, 1.0), ("lp_ft", 0.01, 0, 99.0, 1.0), ("lp_ft", 0.01, 1, 99.0, 1.0)),
        *(("lp_ft", 0.1, 0, 80.0, 1.0), ("lp_ft", 0.01, 0, 70.0, 1.0), ("lp_ft", 0.1, 1, 85.0, 1.0)),
    )
    frame[frames.LR_PROBE] = [0.1] * 3 + [0.3] * 3
    frame["probe"] = [60.0] * 3 + [61.0] * 3
    chosen = selection.select(frame)
    assert chosen["run"].tolist() == ["r3", "r5"]
    row = tables.aggregate(chosen, frame).iloc[0]
    assert (row["grid"], row["mean"]) == ("0.1 0.01", 82.5)
    frame.loc[5, frames.LR_PROBE] = 0.1  # seed 1 starts from another: it is no sample of the same
    assert selection.select(frame)["run"].tolist() == ["r3"]
    frame.loc[4, ["config.method.lr_backbone", frames.LR_PROBE]] = [0.1, 0.3]
    with pytest.raises(UserError, match="the same rates and seed"):
        selection.select(frame)


def test_the_rate_of_a_head_alone_is_marked_at_the_edge_of_its_grid():
    frame = runs(("lp", None, 0, 60.0, 1.0), ("lp", None, 0, 61.0, 1.0), ("lp", None, 0, 59.0, 1.0))
    for heads, shown in (([0.3, 0.1, 1.0], ["-", "0.1*"]), ([0.1, 0.3, 1.0], ["-", "0.3"])):
        frame["config.method.lr_head"] = heads
        assert tables.rates(tables.aggregate(selection.select(frame), frame).iloc[0]) == shown


def test_a_run_by_hand_on_a_lower_seed_does_not_stand_in_for_the_grid():
    grid = [("ft", 0.1, 1, 80.0, 1.0), ("ft", 0.01, 1, 90.0, 1.0), ("ft", 0.01, 2, 89.0, 1.0)]
    assert selection.select(runs(("ft", 1e-4, 0, 95.0, 1.0), *grid))["run"].tolist() == ["r2", "r3"]


def test_the_same_images_and_weights_in_another_place_are_one_setting_and_others_are_not():
    frame = runs(("ft", 0.1, 0, 90.0, 1.0), ("ft", 0.1, 1, 80.0, 1.0))
    frame["config.dataset.root"] = ["data/pacs", "/scratch/pacs"]
    frame["config.backbone.checkpoint"] = ["a.pt", "b.pt"]
    frame["inputs"] = "0123456789ab"
    assert len(selection.select(frame)) == 2
    frame["inputs"] = ["0123456789ab", "ba9876543210"]
    with pytest.raises(UserError, match="differ in the images or weights that they read"):
        selection.select(frame)


def test_ties_keep_the_larger_rate_which_is_the_first_grid_entry():
    frame = runs(("ft", 0.01, 0, 90.0, 1.0), ("ft", 0.1, 0, 90.0, 1.0))
    assert selection.select(frame)["run"].tolist() == ["r1"]


def test_diverged_runs_are_never_selected_and_are_counted():
    frame = runs(
        ("ft", 0.1, 0, math.nan, math.nan, "diverged"),
        ("ft", 0.01, 0, 80.0, 50.0),
        ("ft", 0.001, 0, 70.0, 50.0),
    )
    chosen = selection.select(frame)
    assert chosen["run"].tolist() == ["r1"]
    table = tables.aggregate(chosen, frame)
    assert table["diverged"].unique().tolist() == [1]
    assert table["grid"].unique().tolist() == ["0.1 0.01 0.001"]
    assert not table["at_edge"].any()


def test_a_setting_that_older_records_lack_is_no_other_setting_while_it_is_null():
    frame = runs(("ft", 0.1, 0, 90.0, 1.0), ("ft", 0.1, 1, 80.0, 1.0))
    frame["config.method.conversion_batches"] = pd.Series([None, math.nan], dtype=object)
    assert len(selection.select(frame)) == 2
    frame["config.method.conversion_batches"] = [math.nan, 8]
    with pytest.raises(UserError, match=r"differ in method\.conversion_batches"):
        selection.select(frame)


def test_with_a_holdout_the_choice_is_made_on_it():
    frame = runs(("ft", 0.1, 0, 90.0, 1.0), ("ft", 0.01, 0, 80.0, 1.0))
    frame["config.training.selection"] = "holdout"
    frame["holdout/accuracy"] = [50.0, 60.0]
    assert selection.select(frame)["run"].tolist() == ["r1"]
    assert frames.accuracy_columns(frame) == ["id/accuracy", "ood/accuracy"]


def test_mean_std_and_n_are_those_of_the_sample():
    frame = runs(("ft", 0.1, 0, 90.0, 1.0), ("ft", 0.1, 1, 92.0, 1.0), ("ft", 0.1, 2, 97.0, 1.0))
    table = tables.aggregate(selection.select(frame), frame).set_index("metric")
    # mean 93; squared deviations 9 + 1 + 16 = 26, over n - 1 = 2: variance 13
    assert table.loc["id/accuracy", "mean"] == pytest.approx(93)
    assert table.loc["id/accuracy", "std"] == pytest.approx(math.sqrt(13))
    assert table.loc["id/accuracy", "n"] == 3


def test_an_edge_of_the_head_s_grid_is_one_among_the_runs_at_the_chosen_backbone_rate():
    frame = runs(
        ("daft", 0.1, 0, 70.0, 1.0),
        ("daft", 0.01, 0, 80.0, 1.0),
        ("daft", 0.001, 0, 70.0, 1.0),
        ("daft", 0.01, 0, 90.0, 1.0),
        ("daft", 0.01, 0, 75.0, 1.0),
    )
    # The best has η_w = heads[3]; beside it at η_θ = 0.01 are heads[1] and heads[4], elsewhere larger ones.
    for heads, edge in (
        ([9, 1, 9, 3, 0.3], True),
        ([9, 3, 9, 1, 0.3], False),
        ([9, 3, 9, 0.3, 1], True),
    ):
        frame["config.method.lr_head"] = heads
        table = tables.aggregate(selection.select(frame), frame)
        assert not table["at_edge"].any()
        assert table["head_at_edge"].unique().tolist() == [edge]
        assert f"| daft | 0.01 | {heads[3]:g}{'*' if edge else ''} | 1 |" in markdown(frame)


def test_one_run_has_no_spread_and_an_edge_of_the_grid_is_marked():
    frame = runs(("ft", 0.1, 0, 90.0, 1.0), ("ft", 0.01, 0, 80.0, 2.0), ("lp", math.nan, 0, 60.0, 3.0))
    table = tables.aggregate(selection.select(frame), frame)
    assert table["std"].isna().all()
    text = markdown(frame)
    assert "| ft | 0.1* | = η_θ | 1 | 90.00 | 1.00 |" in text
    assert "| lp | - | - | 1 | 60.00 | 3.00 |" in text
    assert "±" not in text.replace("mean ± sample", "")


def test_a_metric_that_a_method_lacks_is_shown_as_missing():
    frame = runs(("ft", 0.1, 0, 90.0, 1.0), ("lp", math.nan, 0, 60.0, math.nan))
    text = markdown(frame)
    assert "| lp | - | - | 1 | 60.00 | missing |" in text


def test_a_line_of_a_sweep_names_rates_seed_and_accuracies():
    method = {"name": "daft", "lr_backbone": 0.01, "lr_head": 1.0}
    record = {
        "config": {"method": method, "seed": 0},
        "metrics": {"id/accuracy": 90.0, "ood/accuracy": 50.125},
        "time": {"train_s": 3.2},
        "status": "finished",
        "history": [],
    }
    expected = "daft η_θ=0.01 η_w=1 seed=0: ID 90.00 %, OOD mean 50.12 % (3 s)"
    assert tables.format_run(record, fresh=True) == expected


def test_runs_that_differ_in_more_than_rates_and_seed_are_no_sample():
    frame = runs(("ft", 0.1, 0, 90.0, 1.0), ("ft", 0.1, 1, 80.0, 1.0))
    frame["config.training.epochs"] = [1, 8]
    with pytest.raises(UserError, match=r"training\.epochs"):
        selection.select(frame)
    frame["config.training.epochs"] = 8
    frame["config.dataset.train.images"] = [None, 5000]
    with pytest.raises(UserError, match=r"dataset\.train\.images"):
        selection.select(frame)
    frame["config.dataset.train.images"] = None
    frame[frames.SEED] = 0
    with pytest.raises(UserError, match="same rates and seed: r0 and r1;"):
        selection.select(frame)
    frame["run"] = "r0"  # a folder that was copied
    with pytest.raises(UserError, match="same rates and seed: r0 in two folders;"):
        selection.select(frame)


def test_a_method_of_which_all_runs_diverged_is_shown_as_diverged():
    frame = runs(("lp", math.nan, 0, 60.0, 3.0), ("ft", 9.0, 0, math.nan, math.nan, "diverged"))
    text = markdown(frame)
    assert "| ft | - | - | 0 | diverged | diverged |" in text
    assert "| lp | - | - | 1 | 60.00 | 3.00 |" in text
    frame = frame[frame["status"] == "diverged"]
    assert "diverged" in markdown(frame)


def test_names_are_shown_as_they_are_in_the_terminal_and_in_markdown(tmp_path, monkeypatch, capsys):
    names = {"dataset": "[red]pets", "backbone": "net[/]", "method": ":smile: [bold]|`a`"}
    record = copy.deepcopy(RECORD)
    for group, name in names.items():
        record["config"][group]["name"] = name
    other = copy.deepcopy(record)
    other["config"]["dataset"]["name"] = "[/red]"
    other["metrics"]["[night]|/accuracy"] = 10.0
    for folder, one in (("a", record), ("b", other)):
        records.write(tmp_path / folder, one)
    monkeypatch.setenv("COLUMNS", "200")
    tables.show([tmp_path / "a", tmp_path / "b"], "runs/[red]")
    output = capsys.readouterr().out
    for text in ("runs/[red]", "[red]pets", "[/red]", names["method"], "[night]| %"):
        assert text in output
    runs = frames.from_directories([tmp_path / "a", tmp_path / "b"])
    (first, _, *rows), *_ = (part.splitlines() for part in [tables.markdown(tables.aggregate(runs, runs))])
    assert first == "### [red]pets, net[/]"
    assert any(row.startswith(r"| :smile: [bold]\|\`a\` |") for row in rows)
    assert any(r"| [night]\| % |" in row for row in rows)
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows if row.startswith("|")}) == 2


def test_a_run_without_a_measured_distance_has_a_row(tmp_path, capsys):
    record = copy.deepcopy(RECORD)
    del record["metrics"]["id/l2"]
    records.write(tmp_path / "a", record)
    tables.show([tmp_path / "a"], "runs")
    assert re.search(r"ft\s+│\s+90\.00 │\s+50\.00 │\s+- │", capsys.readouterr().out)
    unknown = {**record, "status": "diverged", "metrics": {"id/accuracy": None}}
    assert tables.format_run(unknown, fresh=False) == "ft η_θ=0.1 seed=0: diverged (taken from its record)"


def diverged(status: str = "diverged", **method: object) -> dict[str, Any]:
    record: dict[str, Any] = copy.deepcopy(RECORD) | {"status": status}
    record["config"]["method"] |= method
    record["history"] = [
        {"epoch": 1, "train/loss": 2.0, "selection/accuracy": 50.0},
        {"epoch": 2, "train/loss": 9.0, "selection/accuracy": None},
    ]
    return record


def test_a_run_that_diverged_says_when_at_which_rates_and_what_to_try():
    assert tables.divergence(RECORD) == ""
    first = "in epoch 2 loss or logits were not finite at η_θ=0.1"
    assert tables.divergence(diverged()) == f"{first}; try a smaller rate, such as method.lr_backbone=0.01"
    kept = diverged("finished") | {"best_epoch": 1}
    assert tables.divergence(kept).startswith(f"{first}; epoch 1 before it counts; try")
    fitting = {"head_rate": {"rate": 0.5}}
    assert tables.divergence(diverged(lr_head=1.0) | fitting).endswith(
        "at η_θ=0.1, η_w=1; try a smaller rate, such as method.lr_head=0.1"
    )
    assert tables.divergence(diverged(lr_head=0.3) | fitting).endswith("such as method.lr_backbone=0.01")
    far = diverged(lr_head=1.0, lr_backbone=1e6) | fitting
    assert tables.divergence(far).endswith("such as method.lr_backbone=100000")
    auto = diverged(lr_head=3.0, lr_head_unit="auto") | fitting
    assert "η_w=3 auto; try a smaller rate, such as method.lr_head=auto" in tables.divergence(auto)
    assert tables.divergence(diverged(lr_backbone=None, lr_head=2.0)).endswith("such as method.lr_head=0.2")


def test_rates_that_are_no_better_than_others_are_said_to_be_so():
    frame = runs(("ft", 0.1, 0, 90.0, 1.0), ("ft", 0.03, 0, 90.0, 2.0), ("ft", 0.01, 0, 80.0, 3.0))
    told = "no better by ID accuracy than η_θ=0.03, of equal ones the larger counts."
    assert f"d, b, ft: η_θ=0.1 is chosen; {told}" in markdown(frame).splitlines()
    of_masks = tables.aggregate(selection.select(frame), frame).assign(metric="id/miou")
    assert "no better by ID mIoU than" in tables.tie_notes(of_masks)[0]
    frame.loc[1, "id/accuracy"] = 89.0
    assert "no better" not in markdown(frame)
    assert "ties" not in tables.aggregate(selection.select(frame), frame)


def of_unequal_classes(**accuracies: float) -> dict[str, Any]:
    record: dict[str, Any] = copy.deepcopy(RECORD)
    record["data"] = {"classes": [*accuracies], "images": {"id": 100}}
    images = [90, *[5] * (len(accuracies) - 1)]
    record["per_class"] = {
        "id": {"images": images, "accuracy": [*accuracies.values()]},
        "night": {"images": [10] * len(images), "accuracy": [50.0] * len(images)},
    }
    mean = sum(accuracies.values()) / len(accuracies)
    record["metrics"] |= {"id/balanced_accuracy": mean, "night/balanced_accuracy": 50.0}
    return record


def test_accuracy_by_class_is_in_the_tables_where_classes_are_unequal():
    record = of_unequal_classes(cat=100.0, dog=0.0, newt=25.0)
    frame = frames.from_records([record])
    assert "night/balanced_accuracy" not in frame  # of equal classes it is the accuracy
    text = tables.markdown(tables.aggregate(frame, frame))
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    first = dict(zip(rows[0], rows[2], strict=True))
    assert (first["ID %"], first["ID balanced %"]) == ("90.00", "41.67")
    assert rows[3:4] + rows[5:] == [["class", "ft"], ["cat", "100.00"], ["dog", "0.00"], ["newt", "25.00"]]
    table = tables.class_table(record)
    assert table is not None
    assert [[*column.cells] for column in table.columns] == [
        ["cat", "dog", "newt"],
        ["90", "5", "5"],
        ["100.00", "0.00", "25.00"],
    ]
    record["per_class"]["id"]["images"] = [33, 33, 34]
    assert tables.class_table(record) is None
    assert "balanced" not in tables.markdown(tables.aggregate(*[frames.from_records([record])] * 2))
