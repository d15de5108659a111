"""Claims about the committed results: today's code makes the same of the committed runs."""

import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure
from matplotlib.text import Text

from daft.report import layouts, paper, robustness, tables
from daft.report.figures import accuracy, features, sensitivity
from daft.runs import frames
from daft.sweep import selection

SMALL = Path(__file__).resolve().parents[2] / "results" / "small"
RESULTS = SMALL / "resnet18_tin64"
FIGURES = Path(__file__).parent / "figures.json"
"""What `drawn` returned for each of `pictures` before the code was rearranged."""


def runs_of(folder: Path) -> pd.DataFrame:
    """The committed runs of a folder, as `frames.from_records` has them."""
    runs = pd.read_csv(folder / "runs.csv", dtype={"run": str})
    return runs.assign(**{"config.training.selection": "paper"})


@pytest.fixture(scope="module")
def compared() -> tuple[paper.PaperTable, pd.DataFrame]:
    """The small table and its comparison, of the committed runs, all of which have the table's settings."""
    table, runs = paper.load("small_resnet18"), runs_of(RESULTS)
    for dataset, columns in table.datasets.items():
        for key, _, value in (override.partition("=") for override in columns.overrides):
            runs.loc[runs[frames.DATASET] == dataset, f"config.{key}"] = yaml.safe_load(value)
    return table, paper.compare(table, runs)


def test_the_comparison_is_the_committed_one_to_the_last_digit(compared):
    assert compared[1].to_csv(index=False) == (RESULTS / "small_resnet18.csv").read_text()


def content(text: str, suffix: str) -> Any:
    """What a layout says, apart from how its source is written: texts, what is bold, and heads that span."""
    if suffix == "md":
        return text
    if suffix == "html":
        before, head, body = re.split("<thead>|</thead>", text.partition("<body>")[2].replace("&nbsp;", ""))
        words = [
            re.sub(r"<style.*?</style>|<[^>]*>", " ", t, flags=re.DOTALL).split() for t in (before, body)
        ]
        spans = re.findall(r'(?:row|col)span="\d+"', head.replace('rowspan="2"', "") + body)
        heads = sorted(re.sub("<[^>]*>", " ", head).split())  # the names of rows have a row of their own now
        return words, heads, re.findall("<b>(.*?)</b>", body), spans
    head, rows = text.replace(r"\\[2pt]", r"\\").split("\\midrule\n")
    heads = sorted(re.findall(r"[^\s&\\]+|\\\w+", head))
    return heads, [cell.strip() for line in rows.splitlines() for cell in line.split(" & ")]


@pytest.mark.parametrize("suffix", layouts.RENDERERS)
def test_every_layout_of_the_table_says_what_the_committed_one_says(suffix: str, compared):
    made, committed = layouts.RENDERERS[suffix](*compared), (RESULTS / f"small_resnet18.{suffix}").read_text()
    assert content(made, suffix) == content(committed, suffix)


STUDIES = {
    "conversion_batches": "method.conversion_batches",
    "rate_grid": None,
    "shift_family": "dataset.shift_strength",
    "training_size": "dataset.train.images",
}
"""Folder of results/small/sensitivity, and the setting that its runs differ in."""


@pytest.mark.parametrize("study", [None, *STUDIES])
def test_the_long_table_of_a_folder_is_the_committed_one(study: str | None):
    folder = SMALL / "sensitivity" / study if study else RESULTS
    runs, setting = runs_of(folder), STUDIES.get(study or "")
    made = {"": runs} if setting is None else dict(iter(runs.groupby(f"config.{setting}", dropna=False)))
    made = {value: tables.aggregate(selection.select(part), part) for value, part in made.items()}
    made = {"null" if pd.isna(value) else f"{value:g}" if value != "" else "": t for value, t in made.items()}
    own = {value: {setting: value} if setting else {} for value in made}
    whole = pd.concat(table.assign(**own[value]) for value, table in made.items())
    assert whole.to_csv(index=False) == (folder / "table.csv").read_text()
    heads = {value: f"## {setting} = {value}\n\n" if setting else "" for value in made}
    text = "\n".join(heads[value] + tables.markdown(table) for value, table in made.items())
    assert text == (folder / "table.md").read_text()


def test_the_table_of_corruption_errors_is_the_committed_one():
    means = pd.read_csv(RESULTS / "robustness" / "robustness.csv")
    text = robustness.markdown(means, "generated")
    assert text == (RESULTS / "robustness" / "robustness.md").read_text()


def pictures() -> Iterator[tuple[str, Callable[[], Figure]]]:
    """The pictures that need no more of a run than its row, by name."""
    runs = runs_of(RESULTS)
    yield "id_ood", partial(accuracy.id_against_ood, selection.select(runs))
    for dataset, group in runs.groupby(frames.DATASET):
        chosen = selection.select(group)
        yield f"{dataset}-overview", partial(accuracy.overview, chosen, [])
        yield f"{dataset}-id_ood", partial(accuracy.id_against_ood, chosen)
        yield f"{dataset}-moved", partial(features.moved, chosen)
        for method, cell in group.groupby(frames.METHOD):
            if cell[frames.RATES[0]].nunique() > 1:
                rate = chosen.loc[chosen[frames.METHOD] == method, frames.RATES[0]].iloc[0]
                yield f"{dataset}-rates_{method}", partial(accuracy.learning_rates, cell, rate)
    for study in STUDIES:
        runs = runs_of(SMALL / "sensitivity" / study)
        runs[sensitivity.EPOCHS] = np.arange(len(runs)) % 6 + 1.0  # not in the committed files
        runs[sensitivity.IMAGES] = runs.get("config.dataset.train.images", pd.Series(2000, runs.index))
        runs[sensitivity.BATCHES] = runs.get(sensitivity.SETTING, pd.Series(np.nan, runs.index)).fillna(50.0)
        layer = {"name": "bn", "log2_std_ratio": 0.5}
        shifts = [[layer | {"mean_shift": 1 / batches}] for batches in runs[sensitivity.BATCHES]]
        runs["bn_shift"] = pd.Series(shifts, runs.index)
        for dataset, group in runs.groupby(frames.DATASET):
            if study == "rate_grid":
                group = group[group[frames.METHOD] == "daft"]
            yield f"{dataset}-{study}", partial(getattr(sensitivity, study), group)


def drawn(figure: Any) -> dict[str, Any]:
    """The texts, the looks (colours, markers and lines) and the coordinates of all that a figure shows."""
    texts = [text for found in figure.findobj(Text) if (text := found.get_text())]
    looks, numbers = [], []
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            texts += getattr(axis.get_major_formatter(), "seq", [])
        for line in axes.lines:
            looks.append(f"{line.get_color()} {line.get_marker()} {line.get_linestyle()}")
            numbers += [*np.ravel(np.asarray(line.get_xydata(), float))]
        for collection in axes.collections:
            looks.append(str(to_rgba_array(collection.get_edgecolor()).round(3).tolist()))
            if isinstance(collection, PathCollection):
                looks.append(str(to_rgba_array(collection.get_facecolor()).round(3).tolist()))
                numbers += [*np.ravel(np.asarray(collection.get_offsets(), float))]
            for path in collection.get_paths():
                numbers += [*np.ravel(path.vertices)]
        for patch in axes.patches:
            looks.append(str(to_rgba_array(patch.get_facecolor()).round(3).tolist()))
            numbers += [*np.ravel(patch.get_patch_transform().transform(patch.get_path().vertices))]
        for image in axes.images:
            numbers += [*np.ravel(np.ma.filled(np.asarray(image.get_array(), float), np.nan))]
    return {"texts": texts, "looks": looks, "numbers": [float(f"{number:.8g}") for number in numbers]}


PICTURES = dict(pictures())


@pytest.mark.parametrize("name", PICTURES)
def test_every_picture_of_the_committed_runs_shows_the_same(name: str):
    expected, found = json.loads(FIGURES.read_text())[name], drawn(PICTURES[name]())
    assert found["texts"] == expected["texts"]
    assert found["looks"] == expected["looks"]
    np.testing.assert_allclose(found["numbers"], expected["numbers"], rtol=1e-6, atol=1e-9)


def test_no_picture_is_left_out():
    assert set(json.loads(FIGURES.read_text())) == {*PICTURES}


def test_the_sweeps_of_every_table_are_what_they_were():
    """What `make TABLE` runs, from before the code was rearranged."""
    lines = [f"{name}: {' '.join(sweep)}" for name in paper.names() for sweep in paper.load(name).sweeps()]
    assert lines == Path(__file__).with_name("sweeps.txt").read_text().splitlines()
