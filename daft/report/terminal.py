"""What a staged sweep prints: its plan before, its tables and what is missing after."""

import sys
from collections.abc import Sequence

import pandas as pd
from rich.console import Console
from rich.table import Table

from daft.common.errors import UserError
from daft.data import datasets
from daft.report import tables
from daft.runs.frames import CELL, frame
from daft.sweep import selection
from daft.sweep.cells import Cell
from daft.sweep.plan import Item, _weights
from daft.sweep.protocol import Standing

MARKS = {"measured": "", "scaled": "~", "probed": "≈"}
NOTES = {
    "scaled": "~: by runs of the same network on other images, scaled by images and epochs",
    "probed": "≈: by a few training steps on this machine; reading images is not in it",
}


def show_plan(items: Sequence[Item], keep_all: bool) -> None:
    """Print a plan and its sums.

    keep_all: whether the weights of whole grids stay, or those of the chosen rates alone.
    """
    table = Table(title="Plan", title_justify="left")
    for name in ("cell", "stage", "runs", "done", "device-hours left"):
        table.add_column(name, justify="left" if name in ("cell", "stage") else "right")
    for item in items:
        about = MARKS[item.each.source] if item.left and item.each else ""
        hours = "unknown" if item.hours is None else f"{about}{item.hours:.2f}"
        table.add_row(str(item.cell), item.stage, str(item.runs), str(item.done), hours)
    _print(table)
    unusable = [run for item in items for run in item.unusable]
    for run in unusable:
        print(f"no use: {run.name}: {run.error}")
    runs, done, left = (sum(getattr(item, key) for item in items) for key in ("runs", "done", "left"))
    hours = sum(item.hours or 0 for item in items)
    unknown = sum(item.left for item in items if item.hours is None)
    known = f"{hours:.2f} device-hours" if hours or not unknown else "time unknown"
    rest = f" and {unknown} run(s) of unknown time" if hours and unknown else ""
    lost = f"{len(unusable)} of no use, " if unusable else ""
    print(f"{runs} runs, {done} done, {lost}{left} to compute: {known}{rest}")
    if to_come := [item for item in items if item.left]:
        for why in dict.fromkeys(_why_unknown(item) for item in to_come if item.hours is None):
            print(f"unknown: {why}")
        sources = {item.each.source for item in to_come if item.each}
        for source, note in NOTES.items():
            if source in sources:
                print(note)
        for name, key in (("memory", "host_gib"), ("GPU memory", "gpu_gib")):
            peaks = [getattr(item.each, key, None) for item in to_come]
            known = [peak for peak in peaks if peak is not None]
            if known or key == "host_gib":
                at_most = f"{max(known):.1f} GiB" if known else "unknown"
                others = ", of some unknown" if known and len(known) < len(peaks) else ""
                print(f"{name} of a run: {at_most}{others}")
        print(_disk(to_come, keep_all))


def _why_unknown(item: Item) -> str:
    if item.stage == "lr_probe" or item.cell.config.method.rates == "frozen":
        return "no past run tells the time of a linear probe"
    try:
        datasets.listing(item.cell.config)
    except UserError as error:
        return str(error)
    return "there is no GPU here to time a few steps on"


def _disk(to_come: Sequence[Item], keep_all: bool) -> str:
    """What the runs to come write: the weights, which are nearly all of it."""
    stays, most = 0, 0
    for cell in {id(item.cell): item.cell for item in to_come}.values():
        weights, frozen = _weights(cell.config), cell.config.method.rates == "frozen"
        own = [item for item in to_come if item.cell is cell]
        kept = sum(
            i.left for i in own if keep_all or frozen or i.stage == "lr_probe"
        )  # LP-FT may start there
        others = sum(item.left for item in own) - kept
        stays += weights * (kept + min(others, len(cell.protocol.seeds)))
        # A checkpoint holds weights and momentum: the last one, the next one, and two best epochs meanwhile.
        most = max(most, weights * (1 if frozen and cell.config.segmentation is None else 2 + 2 + 2))
    return f"disk: {_size(stays)} of weights stay; a run at work takes up to {_size(most)}"


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


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
        if standing.status == "diverged" and all(trial.is_probe for trial in standing.trials):
            print(f"diverged: {cell}: every run of LP that it could start from")
    if lost := list({id(run): run for *_, run in missing}.values()):
        again = "; the same command tries again what failed" if any(run.attempts for run in lost) else ""
        raise UserError(f"{len(lost)} run(s) are missing, as listed{again}")


def _table(pairs: Sequence[tuple[Cell, Standing]]) -> str:
    """The long table of these cells as Markdown; records go by their cell's names, not by their own."""
    tables_of_cells = []
    for cell, standing in pairs:
        told = [cell.runs[trial] for trial in standing.trials if not trial.is_probe]
        runs = frame(run.directory for run in told if run.directory and not run.is_missing)
        tables_of_cells.append(runs.assign(**dict(zip(CELL, cell.names, strict=True))))
    runs = pd.concat(tables_of_cells, ignore_index=True) if tables_of_cells else pd.DataFrame()
    return "" if runs.empty else tables.markdown(tables.aggregate(selection.select(runs), runs))


def _print(table: Table) -> None:
    Console(width=None if sys.stdout.isatty() else 120).print(table)
