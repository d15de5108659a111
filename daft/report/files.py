"""The tables of a folder of runs as files."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from daft.common.errors import UserError
from daft.common.files import write_atomically
from daft.report import layouts, paper, tables
from daft.runs import frames, records, results
from daft.sweep import selection


def write_table(table: paper.PaperTable, runs: Path, out: Path) -> str:
    """Write a table of the paper with the numbers of these runs in every layout; returns the Markdown."""
    compared = paper.compare(table, frames.from_records(results.load(records.find_runs(runs))))
    write_atomically(out / f"{table.name}.csv", compared.to_csv(index=False))
    for suffix, render in layouts.RENDERERS.items():
        write_atomically(out / f"{table.name}.{suffix}", render(table, compared))
    return layouts.markdown(table, compared)


def write_folder(folder: Path, out: Path, over: str | None = None) -> str:
    """Write every run and every cell of a folder: runs.csv, table.csv and table.md; returns the Markdown.

    over: the setting whose values have a table each. Raises UserError if there are no runs, or if they have
    no such setting.
    """
    runs = frames.from_records(results.load(records.find_runs(folder)))
    if runs.empty:
        raise UserError(f"{folder}: no records below this folder, and no table of that name")
    setting = f"config.{over}"
    if over is not None and setting not in runs:
        raise UserError(f"--over {over}: the runs in {folder} have no such setting")
    own = (*frames.CELL, *frames.RATES, frames.SEED, setting)
    columns = ["run", "status", "best_epoch", *(c for c in runs.columns if "/" in c or c in own)]
    found, texts = [], []
    for value, group in runs.groupby(runs[setting].map(_hashable), dropna=False) if over else [("", runs)]:
        table = tables.aggregate(selection.select(group), group)
        found.append(table.assign(**{over: _text(value)}) if over else table)
        texts.append((f"## {over} = {_text(value)}\n\n" if over else "") + tables.markdown(table))
    write_atomically(out / "runs.csv", runs[columns].to_csv(index=False))
    write_atomically(out / "table.csv", pd.concat(found).to_csv(index=False))
    write_atomically(out / "table.md", "\n".join(texts))
    return "\n".join(texts)


def _hashable(value: Any) -> Any:
    """A setting's value, a list as text."""
    return json.dumps(value) if isinstance(value, list | dict) else value


def _text(value: Any) -> str:
    """A setting's value as on the command line."""
    return "null" if pd.isna(value) else f"{value:g}" if isinstance(value, float) else str(value)
