"""What the methods of a table cost beside their accuracies: distortion, time, and images seen."""

import math
from collections.abc import Hashable
from typing import Any

import pandas as pd

from daft.common.numbers import fixed
from daft.config.parts import target_mark
from daft.report import tables
from daft.report.paper import PaperTable
from daft.runs import frames
from daft.sweep import selection

REFERENCE = "ft"
"""The method whose time is the unit."""

DISTORTION = ("id/cosine", "id/l2")

LEGEND = (
    "Cosine and L2 compare the features of ID images before and after training, mean ± sample standard "
    "deviation (ddof = 1) over n seeds. Time is that of the fastest epoch of a cell's runs, as a multiple of "
    "FT's on the same device. Images are those that training took in, each as often as it did; a linear "
    "probe is solved and takes in none."
)


def compare(table: PaperTable, runs: pd.DataFrame) -> pd.DataFrame:
    """A row per cell of the table that has usable runs, in its order: n, ID distortion, time, images seen.

    time: of the fastest epoch of the cell's runs, which other work on the machine disturbs least, as a
    multiple of FT's on the same dataset, backbone and device; NaN without those. Of several devices it is
    the one with most runs. labelled, unlabelled: images that training took in, in one run.
    """
    if runs.empty:
        return runs
    kept, _ = selection.usable(runs[table.members(runs)])
    chosen = dict(iter(selection.select(kept).groupby(frames.CELL)))
    timed = kept.dropna(subset="time.epoch_s")
    fastest = timed.groupby([*frames.CELL, "device"])["time.epoch_s"].min().to_dict()
    devices = timed["device"].value_counts().index
    rows = []
    for key in table.cells():
        if (cell := chosen.get(tuple(key))) is None:
            continue
        row = {**key._asdict(), "n": len(cell)}
        for metric in DISTORTION:
            values = cell.reindex(columns=[metric])[metric].astype(float)
            row |= {metric: values.mean(), f"{metric} std": values.std(ddof=1)}
        pairs = [((*key, device), (*key._replace(method=REFERENCE), device)) for device in devices]
        multiples = [fastest[own] / fastest[fts] for own, fts in pairs if {own, fts} <= fastest.keys()]
        row["time"] = multiples[0] if multiples else math.nan
        seen = cell.reindex(columns=["seen.labelled", "seen.unlabelled"]).mean()
        rows.append(row | {"labelled": seen.iloc[0], "unlabelled": seen.iloc[1]})
    return pd.DataFrame(rows)


def markdown(table: PaperTable, found: pd.DataFrame) -> str:
    """The costs as a Markdown table, with its legend."""
    rows = []
    for row in found.to_dict("records"):
        network = table.backbones.get(row["backbone"])
        where = [table.datasets[row["dataset"]].title, network.title if network else row["backbone"]]
        method = table.methods[row["method"]].title + target_mark(row["method"])
        time = "-" if pd.isna(row["time"]) else f"{fixed(row['time'])} ×"
        seen = ["-" if pd.isna(row[kind]) else f"{row[kind]:,.0f}" for kind in ("labelled", "unlabelled")]
        rows.append([*where, method, str(row["n"]), *(_mean_std(row, of) for of in DISTORTION), time, *seen])
    columns = ["dataset", "model", "method", "n", "ID cosine", "ID L2", "time"]
    columns += ["labelled images", "unlabelled images"]
    shown = pd.DataFrame(rows, columns=columns).map(tables.in_markdown)
    return f"{tables.pipe_table(shown, texts=3)}\n\n{LEGEND}\n"


def _mean_std(row: dict[Hashable, Any], metric: str) -> str:
    of_runs = pd.Series({"mean": row[metric], "std": row[f"{metric} std"]}, name=metric)
    return "-" if pd.isna(row[metric]) else tables.format_mean_std(of_runs)
