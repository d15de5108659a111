"""Claims about what a table says that its methods cost."""

import math
import re

import pandas as pd
import pytest
from pydantic import TypeAdapter

from daft.report import costs, paper
from daft.runs import frames
from tests.report.test_parts_in_tables import TABLE


@pytest.fixture
def table() -> paper.PaperTable:
    return TypeAdapter(paper.PaperTable).validate_python({**TABLE, "costs": True})


def runs(*rows: tuple) -> pd.DataFrame:
    """Rows of (method, seed, η_θ, ID accuracy, ID cosine, seconds, images labelled, unlabelled)."""
    names = [frames.METHOD, frames.SEED, frames.RATES[0], "id/accuracy", "id/cosine", "time.epoch_s"]
    frame = pd.DataFrame(rows, columns=[*names, "seen.labelled", "seen.unlabelled"])
    frame[frames.DATASET], frame[frames.BACKBONE] = "shapes_unlabelled", "shapes_resnet10"
    frame["run"], frame["device"] = [f"r{i}" for i in range(len(frame))], "CPU"
    return frame.assign(
        **{frames.RATES[1]: math.nan, "status": "finished", "config.training.selection": "paper"}
    )


FOUND = runs(
    ("ft+coral+dann", 0, 0.1, 80.0, 0.5, 30.0, 400, 400),
    ("ft", 0, 0.1, 90.0, 0.2, 10.0, 400, 0),
    ("ft", 1, 0.1, 92.0, 0.4, 12.0, 400, 0),
    ("ft", 0, 0.01, 70.0, 0.9, 20.0, 400, 0),  # not chosen, and as long as any
)


def test_distortion_is_of_the_chosen_runs_and_time_that_of_the_fastest_epoch_in_multiples_of_fts(table):
    found = costs.compare(table, FOUND).set_index("method")
    assert [*found.index] == ["ft", "ft+coral+dann"]
    assert [*found["n"]] == [2, 1]
    assert found.loc["ft", "id/cosine"] == pytest.approx(0.3)
    assert found.loc["ft", "id/cosine std"] == pytest.approx(math.sqrt(0.02))  # of 0.2 and 0.4, ddof = 1
    assert [*found["time"]] == [1.0, 3.0]  # 30 s over the least of 10, 12 and 20 s
    assert [*found["unlabelled"]] == [0, 400]


def test_time_is_held_against_fts_on_the_same_device_and_that_with_most_runs(table):
    """FT on the GPU is not held against the other on the CPU, and where both are on both the CPU counts."""
    apart = costs.compare(table, FOUND.assign(device=["GPU", *["CPU"] * 3]))
    assert [*apart["time"].isna()] == [False, True]
    again = FOUND[:2].assign(**{"device": "GPU", "time.epoch_s": 1.0, frames.SEED: 7, "run": ["r8", "r9"]})
    both = pd.concat([FOUND, again], ignore_index=True)
    assert [*costs.compare(table, both)["time"]] == [1.0, 3.0]


def test_the_second_table_marks_what_saw_target_images_and_has_signs_for_what_is_not_there(table):
    text = costs.markdown(table, costs.compare(table, FOUND))
    assert "| Shapes | ResNet-10 | FT | 2 | 0.300 ± 0.141 | - | 1.00 × | 400 | 0 |" in text
    assert "| Shapes | ResNet-10 | Both (target images) | 1 | 0.500 | - | 3.00 × | 400 | 400 |" in text
    without = costs.markdown(table, costs.compare(table, FOUND[FOUND[frames.METHOD] != "ft"]))
    assert re.search(r"Both .* \| - \| 400 \| 400 \|", without)


def test_a_table_without_runs_costs_nothing(table):
    assert costs.compare(table, pd.DataFrame()).empty
    assert "Time is that of the fastest epoch" in costs.markdown(table, costs.compare(table, FOUND[:0]))
