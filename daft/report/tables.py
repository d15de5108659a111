"""Records to tables: what to show is computed here, apart from how it is shown."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from daft.report.methods import in_order
from daft.runs import frames
from daft.runs.frames import (
    BACKBONE,
    CELL,
    DATASET,
    MEASURES,
    METHOD,
    RATES,
    SEED,
    accuracies,
    cell_metric,
)
from daft.sweep.selection import candidates

EDGES = ["at_edge", "head_at_edge"]
"""Whether η_θ, and η_w, are at the edge of their grids."""


def split_name(column: str) -> str:
    """How a metric's split is called in tables and figures."""
    split = column.partition("/")[0]
    return {"id": "ID", "ood": "OOD mean"}.get(split, split)


def aggregate(chosen: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Long table: a row per cell and metric with mean, std, n, rates and the ids of the runs behind them.

    std: of the sample (ddof = 1), none at n = 1.
    runs: all of them, for the grids that the cell's rates were chosen from, and whether they are at an edge.
    """
    metrics = [c for c in chosen.columns if "/" in c]
    rows = []
    for names, cell in chosen.groupby(CELL, sort=False):
        everything = candidates(cell, runs[(runs[CELL] == list(names)).all(axis=1)])
        rate, head = (cell[name].iloc[0] for name in RATES)
        grid = sorted(everything[RATES[0]].dropna().unique(), reverse=True)
        same = everything[RATES[0]].isna() if pd.isna(rate) else everything[RATES[0]] == rate
        heads = sorted(everything.loc[same, RATES[1]].dropna().unique(), reverse=True)
        for metric in metrics:
            values = cell[metric].dropna()
            if values.empty:
                continue
            rows.append(
                {
                    "dataset": names[0],
                    "backbone": names[1],
                    "method": names[2],
                    "metric": metric,
                    "mean": values.mean(),
                    "std": values.std(ddof=1) if len(values) > 1 else None,
                    "n": len(values),
                    "lr_backbone": rate,
                    "lr_head": head,
                    "grid": " ".join(f"{r:g}" for r in grid),
                    "at_edge": _at_edge(rate, grid),
                    "head_at_edge": _at_edge(head, heads),
                    "diverged": int((everything["status"] == "diverged").sum()),
                    "runs": " ".join(cell.loc[values.index, "run"]),
                }
            )
    known = set(chosen[CELL].itertuples(index=False, name=None))
    for names, cell in runs.groupby(CELL, sort=False):
        if names not in known:  # nothing to select from: shown as what it is
            row = dict(zip(("dataset", "backbone", "method"), names, strict=True))
            row |= {"metric": f"id/{cell_metric(cell)}", "n": 0, "diverged": len(cell)}
            rows.append(row | dict.fromkeys(EDGES, False))
    columns = ["dataset", "backbone", "method", "metric", "mean", "std", "n", "lr_backbone", "lr_head"]
    return pd.DataFrame(rows, columns=[*columns, "grid", *EDGES, "diverged", "runs"])


def _at_edge(rate: float, grid: Sequence[float]) -> bool:
    return len(grid) > 1 and rate in (grid[0], grid[-1])


def markdown(table: pd.DataFrame) -> str:
    """The long table as one Markdown table per dataset and backbone, a row per method."""
    parts = []
    for names, cell in table.groupby(["dataset", "backbone"], sort=False):
        metrics = [m for m in cell["metric"].unique() if m.endswith(MEASURES)]
        metrics = sorted(metrics, key=lambda m: m.startswith("ood/"))
        metrics += [m for m in ("id/cosine", "id/l2") if m in set(cell["metric"])]
        heads = [_metric_head(m) for m in metrics]
        lines = [
            f"### {names[0]}, {names[1]}\n",
            "| method | η_θ | η_w | n | " + " | ".join(heads) + " |",
            "| --- | --- | --- | --- |" + " ---: |" * len(metrics),
        ]
        by_method = {str(method): of_method for method, of_method in cell.groupby("method")}
        for method in in_order(by_method):
            of_method = by_method[method]
            first, by_metric = of_method.iloc[0], of_method.set_index("metric")
            absent = "missing" if first["n"] else "diverged"
            values = [mean_std(by_metric.loc[m]) if m in by_metric.index else absent for m in metrics]
            lines.append("| " + " | ".join([str(method), *rates(first), str(first["n"]), *values]) + " |")
        parts.append("\n".join(lines))
    note = (
        "Accuracies in percent, mean ± sample standard deviation (ddof = 1) over n seeds; learning rates "
        "chosen by ID accuracy on the lowest seed; * marks a choice at the edge of its grid. Cosine and L2 "
        "compare ID features before and after."
    )
    return "\n\n".join([*parts, note]) + "\n"


def _metric_head(metric: str) -> str:
    split, _, kind = metric.partition("/")
    if metric.endswith(MEASURES):
        return f"{split_name(metric)} {'mIoU ' if kind == 'miou' else ''}%"
    return f"{split_name(split)} feature {'L2' if kind == 'l2' else kind}"


def rates(row: Any) -> list[str]:
    """η_θ and η_w of a row of the long table, with a * at the edge of their grids."""
    backbone, head = row["lr_backbone"], row["lr_head"]
    edge, head_edge = ("*" if row[name] else "" for name in EDGES)
    tied = "-" if pd.isna(backbone) else "= η_θ"
    return [
        "-" if pd.isna(backbone) else f"{backbone:g}{edge}",
        tied if pd.isna(head) else f"{head:g}{head_edge}",
    ]


def mean_std(row: Any) -> str:
    """mean ± std of a row of the long table that is indexed by metric."""
    if pd.isna(row["mean"]):
        return "diverged"
    digits = 3 if row.name.endswith("cosine") else 2
    spread = "" if pd.isna(row["std"]) else f" ± {row['std']:.{digits}f}"
    return f"{row['mean']:.{digits}f}{spread}"


def line(record: dict[str, Any], fresh: bool) -> str:
    """One run in one line, for a sweep that goes on."""
    metrics = record["metrics"]
    keys = [f"{split}{kind}" for kind in MEASURES for split in ("id", "ood")]
    found = [f"{split_name(key)} {metrics[key]:.2f} %" for key in keys if key in metrics]
    seconds = sum(record["time"].values())
    how = f"{seconds:.0f} s" if fresh else "taken from its record"
    return f"{label(record['config'])}: {', '.join(found) or record['status']} ({how})"


def label(config: dict[str, Any]) -> str:
    """What tells a run from others of its dataset and backbone: method, rates, seed."""
    method = config["method"]
    rates = [f"{m}={method[k]:g}" for m, k in (("η_θ", "lr_backbone"), ("η_w", "lr_head")) if method[k]]
    return " ".join([method["name"], *rates, f"seed={config['seed']}"])


def run_table(runs: pd.DataFrame, title: str) -> Table:
    """Accuracies of runs for the terminal, one row each."""
    columns = accuracies(runs)
    table = Table(title=title, title_justify="left")
    varying = [c for c in (DATASET, BACKBONE, *RATES, SEED) if runs[c].nunique(dropna=False) > 1]
    table.add_column("method")
    for column in varying:
        table.add_column({DATASET: "dataset", BACKBONE: "backbone"}.get(column, column.rpartition(".")[2]))
    for column in columns:
        table.add_column(_metric_head(column), justify="right")
    table.add_column("ID feature L2", justify="right")
    for _, run in runs.iterrows():
        cells = [str(run[METHOD]), *("-" if pd.isna(run[c]) else f"{run[c]}" for c in varying)]
        if run["status"] == "finished":
            cells += [f"{run[c]:.2f}" for c in columns]
            cells.append(f"{run['id/l2']:.2f}")
        else:
            cells.append(str(run["status"]))
        table.add_row(*cells)
    return table


def show(directories: Sequence[Path], title: str) -> None:
    """Print the table of these runs."""
    runs = frames.frame(directories)
    if not runs.empty:
        Console(width=None if sys.stdout.isatty() else 120).print(run_table(runs, title))
