"""What a staged sweep shows: its plan before, its tables and what is missing after."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from rich.console import Console
from rich.table import Table

from daft import records, tables
from daft.cells import Cell
from daft.errors import UserError
from daft.sweep import Standing


class Item(NamedTuple):
    """One line of a plan."""

    cell: Cell
    stage: str
    runs: int
    done: int
    hours: float | None
    """device-hours that the others take; None if no past run tells"""


def plan(cells: Sequence[Cell], standings: Sequence[Standing]) -> list[Item]:
    """The runs of each cell and stage; one that several cells share counts for the first of them."""
    past = {folder: _past(folder) for folder in {cell.config.paths.runs for cell in cells}}
    items, seen = [], set()
    for cell, standing in zip(cells, standings, strict=True):
        typical = _hours(cell, past[cell.config.paths.runs])
        for step in standing.steps:
            runs = [cell.runs[trial] for trial in step.trials]
            fresh = [run for run in runs if id(run) not in seen]
            seen |= {id(run) for run in runs}
            size = step.size - len(runs) + len(fresh)
            done = sum(run.outcome is not None for run in fresh)
            hours = 0.0 if size == done else None if typical is None else (size - done) * typical
            items.append(Item(cell, step.name, size, done, hours))
    return items


def show_plan(items: Sequence[Item]) -> None:
    """Print a plan and its sums."""
    table = Table(title="Plan", title_justify="left")
    for name in ("cell", "stage", "runs", "done", "device-hours left"):
        table.add_column(name, justify="left" if name in ("cell", "stage") else "right")
    for item in items:
        hours = "unknown" if item.hours is None else f"{item.hours:.2f}"
        table.add_row(str(item.cell), item.stage, str(item.runs), str(item.done), hours)
    _print(table)
    runs, done = (sum(getattr(item, key) for item in items) for key in ("runs", "done"))
    hours = sum(item.hours or 0 for item in items)
    unknown = sum(item.runs - item.done for item in items if item.hours is None)
    known = f"{hours:.2f} device-hours" if hours or not unknown else "time unknown"
    rest = f" and {unknown} run(s) of unknown time" if hours and unknown else ""
    print(f"{runs} runs, {done} done, {runs - done} to compute: {known}{rest}")


def finish(cells: Sequence[Cell], standings: Sequence[Standing]) -> None:
    """Print the table of each setting, what stands at an edge, and what failed.

    Raises UserError if a run is missing.
    """
    pairs = list(zip(cells, standings, strict=True))
    for setting in dict.fromkeys(cell.setting for cell in cells):
        told = [(cell, standing) for cell, standing in pairs if cell.setting == setting]
        if text := _table([pair for pair in told if pair[1].status in ("chosen", "diverged")]):
            print(f"\n{setting}\n\n{text}" if setting else f"\n{text}")
    for cell, standing in pairs:
        for rate in standing.edges:
            value = getattr(standing.rates, rate)
            print(f"edge: {cell}: {rate}={value:g} is at the edge of its grid; sweep.extend=true goes on")
    trials = [(cell, trial, cell.runs[trial]) for cell, standing in pairs for trial in standing.trials]
    missing = [told for told in trials if told[2].is_missing]
    for cell, trial, run in missing:
        print(f"missing: {cell} {trial}: {run.error}")
    for cell, standing in pairs:
        if standing.status == "failed":
            print(f"missing: {cell}: its later stages, which need what failed")
    if missing:
        raise UserError(f"{len(missing)} run(s) are missing, as listed; the same command tries them again")


def _table(pairs: Sequence[tuple[Cell, Standing]]) -> str:
    """The long table of these cells as Markdown; records go by their cell's names, not by their own."""
    frames = []
    for cell, standing in pairs:
        told = [cell.runs[trial] for trial in standing.trials if not cell.runs[trial].is_missing]
        runs = records.frame(run.directory for run in told if run.directory)
        frames.append(runs.assign(**dict(zip(tables.CELL, cell.names, strict=True))))
    runs = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    return "" if runs.empty else tables.markdown(tables.aggregate(tables.select(runs), runs))


def _past(folder: str) -> pd.DataFrame:
    """All records of a folder of runs."""
    return records.frame(records.below(Path(folder)))


def _hours(cell: Cell, past: pd.DataFrame) -> float | None:
    """What a run of this cell took on average: same images, network, epochs, and as much of it trained."""
    config = cell.config
    like = {
        tables.DATASET: config.dataset.name,
        tables.BACKBONE: config.backbone.name,
        "config.training.epochs": config.training.epochs,
    }
    if past.empty:
        return None
    frozen = (past["config.method.rates"] == "frozen") == (config.method.rates == "frozen")
    alike = past[(past[list(like)] == list(like.values())).all(axis=1) & frozen]
    return None if alike.empty else float(alike.filter(like="time.").sum(axis=1).mean()) / 3600


def _print(table: Table) -> None:
    Console(width=None if sys.stdout.isatty() else 120).print(table)
