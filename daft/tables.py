"""Records to tables: what to show is computed here, apart from how it is shown."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from daft import records

POINTER = "run.txt"
"""In a job's folder of a sweep: the directory of its run."""

CELL = ["config.dataset.name", "config.backbone.name", "config.method.name"]
RATES = ["config.method.lr_backbone", "config.method.lr_head"]
SEED = "config.seed"


def accuracies(runs: pd.DataFrame) -> list[str]:
    """The accuracy columns in the order of evaluation, the OOD mean last."""
    columns = [c for c in runs.columns if c.endswith("/accuracy") and not c.startswith("holdout/")]
    return sorted(columns, key=lambda c: c == "ood/accuracy")


def select(runs: pd.DataFrame) -> pd.DataFrame:
    """Per cell the runs at the learning rates with the best ID accuracy at the lowest seed.

    Diverged runs are never selected; ties keep the larger rates, which stand first in the grids.
    Selection reads the split that each run selected its epoch on, never an OOD one.
    """
    chosen = []
    for _, cell in runs[runs["status"] == "finished"].groupby(CELL, sort=False):
        grid = cell[cell[SEED] == cell[SEED].min()]
        holdout = grid["config.training.selection"].iloc[0] == "holdout"
        metric = "holdout/accuracy" if holdout else "id/accuracy"
        best = grid.sort_values([metric, *RATES], ascending=False, kind="stable").iloc[0]
        same = pd.Series(True, index=cell.index)
        for rate in RATES:
            same &= cell[rate].eq(best[rate]) | (cell[rate].isna() & pd.isna(best[rate]))
        chosen.append(cell[same])
    return pd.concat(chosen) if chosen else runs.iloc[:0]


def aggregate(chosen: pd.DataFrame) -> pd.DataFrame:
    """Long table: a row per cell and metric with mean, std (sample, ddof = 1; empty at n = 1) and n."""
    metrics = [c for c in chosen.columns if "/" in c]
    rows = []
    for names, cell in chosen.groupby(CELL, sort=False):
        for metric in metrics:
            values = cell[metric].dropna()
            if values.empty:
                continue
            rows.append(
                {
                    **dict(zip(["dataset", "backbone", "method"], names, strict=True)),
                    "lr_backbone": cell[RATES[0]].iloc[0],
                    "lr_head": cell[RATES[1]].iloc[0],
                    "metric": metric,
                    "mean": values.mean(),
                    "std": values.std(ddof=1) if len(values) > 1 else None,
                    "n": len(values),
                    "runs": " ".join(cell["run"]),
                }
            )
    return pd.DataFrame(rows)


def run_table(runs: pd.DataFrame, title: str) -> Table:
    """Accuracies of runs on the terminal, one row each."""
    columns = accuracies(runs)
    table = Table(title=title, title_justify="left")
    varying = [c for c in (*CELL[:2], *RATES, SEED) if runs[c].nunique(dropna=False) > 1]
    table.add_column("method")
    for column in varying:
        table.add_column(column.split(".")[-1 if column in (*RATES, SEED) else 1])
    for column in columns:
        name = column.removesuffix("/accuracy")
        table.add_column({"id": "ID", "ood": "OOD mean"}.get(name, name) + " %", justify="right")
    table.add_column("feature L2", justify="right")
    for _, run in runs.iterrows():
        cells = [str(run[CELL[2]]), *("-" if pd.isna(run[c]) else f"{run[c]}" for c in varying)]
        if run["status"] != "finished":
            cells += [run["status"]] + [""] * len(columns)
        else:
            cells += [f"{run[c]:.2f}" for c in columns]
            cells.append(f"{run['id/l2']:.2f}")
        table.add_row(*cells)
    return table


def show(directories: Sequence[Path], title: str) -> None:
    """Print the table of these runs."""
    runs = records.frame(directories)
    if not runs.empty:
        Console(width=None if sys.stdout.isatty() else 120).print(run_table(runs, title))


class SweepSummary(Callback):
    """At the end of a sweep prints one table of its runs, wherever the launcher ran them."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        pointers = Path(config.hydra.sweep.dir).glob(f"*/{POINTER}")
        ordered = sorted(pointers, key=lambda p: int(p.parent.name) if p.parent.name.isdigit() else 0)
        show([Path(p.read_text()) for p in ordered], "Sweep")
