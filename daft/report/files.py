"""The tables of a folder of runs as files."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from daft.common import progress
from daft.common.errors import UserError, join_first
from daft.common.files import write_atomically
from daft.report import costs, layouts, paper, tables
from daft.runs import frames, records, results
from daft.sweep import selection


def write_table(table: paper.PaperTable, runs: Path, out: Path) -> str:
    """Write a table of the paper with the numbers of these runs in every layout; returns the Markdown."""
    found = frames.from_records(results.load(records.find_runs(runs)))
    compared = paper.compare(table, found)
    texts = {suffix: render(table, compared) for suffix, render in layouts.RENDERERS.items()}
    texts["csv"] = compared.to_csv(index=False)
    if table.costs:
        spent = costs.compare(table, found)
        write_atomically(out / f"{table.name}_costs.csv", spent.to_csv(index=False))
        texts["md"] += f"\n{costs.markdown(table, spent)}"
    for suffix, text in texts.items():
        write_atomically(out / f"{table.name}.{suffix}", text)
    return texts["md"]


def write_folder(folder: Path, out: Path, over: str | None = None, only: Sequence[str] = ()) -> str:
    """Write every run and every cell of a folder: runs.csv, table.csv and table.md; returns the Markdown.

    over: the setting whose values have a table each. only: `key=value`, the runs that have it. A cell whose
    runs mix settings is named and left out. Raises UserError if there are no runs, if they have no such
    setting, or if no cell is left.
    """
    runs = frames.from_records(results.load(records.find_runs(folder)))
    if runs.empty:
        raise UserError(f"{folder}: no records below this folder, and no table of that name")
    for condition in only:
        runs = _only(runs, condition, folder)
    setting = f"config.{over}"
    if over is not None and setting not in runs:
        raise UserError(f"--over {over}: the runs in {folder} have no such setting")
    own = (*frames.CELL, *frames.RATES, frames.SEED, setting)
    columns = ["run", "status", "best_epoch", *(c for c in runs.columns if "/" in c or c in own)]
    found, texts, problems = [], [], []
    for value, group in runs.groupby(runs[setting].map(_hashable), dropna=False) if over else [("", runs)]:
        kept, mixed = selection.usable(group)
        problems += [_with_advice(error) for error in mixed]
        if kept.empty:
            continue
        table = tables.aggregate(selection.select(kept), kept)
        found.append(table.assign(**{over: _text(value)}) if over else table)
        texts.append((f"## {over} = {_text(value)}\n\n" if over else "") + tables.markdown(table))
    if not found:
        raise UserError(problems[0])
    for problem in problems:
        progress.warn_left_out(problem)
    texts += [f"Left out: {tables.in_markdown(problem)}\n" for problem in problems]
    write_atomically(out / "runs.csv", runs[columns].to_csv(index=False))
    write_atomically(out / "table.csv", pd.concat(found).to_csv(index=False))
    write_atomically(out / "table.md", "\n".join(texts))
    return "\n".join(texts)


def _with_advice(error: UserError) -> str:
    """Why a cell is left out, and what would show it."""
    if not isinstance(error, selection.MixedError) or "images" in error.settings[0]:
        return str(error)
    key = error.settings[0]
    return f"{error}, or tell them apart by --over {key} or --only {key}=VALUE"


GROUPS = {group: f"{group}.name" for group in ("dataset", "backbone", "method")}
"""What the groups of configurations stand for."""


def _only(runs: pd.DataFrame, condition: str, folder: Path) -> pd.DataFrame:
    """The runs with one of the values in `key=value,value`; raises UserError if there are none."""
    key, _, values = condition.partition("=")
    column = f"config.{GROUPS.get(key, key)}"
    if column not in runs:
        raise UserError(f"--only {condition}: the runs in {folder} have no setting {key!r}")
    texts = runs[column].map(_hashable).map(_text)
    if (kept := runs[texts.isin(values.split(","))]).empty:
        known = join_first(sorted(texts.unique()))
        raise UserError(f"--only {condition}: no run in {folder} has it; {key} is {known}")
    return kept


def _hashable(value: Any) -> Any:
    """A setting's value, a list as text."""
    return json.dumps(value) if isinstance(value, list | dict) else value


def _text(value: Any) -> str:
    """A setting's value as on the command line."""
    return "null" if pd.isna(value) else f"{value:g}" if isinstance(value, float) else str(value)
