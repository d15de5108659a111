"""What a staged sweep prints: its plan before, its tables and what is missing after."""

import sys
from collections.abc import Sequence

import pandas as pd
from rich.table import Table

from daft.common import progress
from daft.common.errors import UserError
from daft.report import tables
from daft.runs.frames import CELL, from_directories
from daft.sweep import selection
from daft.sweep.cells import Cell
from daft.sweep.plan import Estimate, PlannedStage, disk_bytes, peak_memory
from daft.sweep.protocol import EXTENSIONS, CellState

MARKS = {"measured": "", "scaled": "~", "timed": "≈"}
NOTES = {
    "scaled": "~: by runs of the same network on other images, scaled by images and epochs",
    "timed": "≈: by a few training steps on this machine; reading images is not in it",
}


def show_plan(stages: Sequence[PlannedStage], *, keep_all: bool, growing: int = 0) -> None:
    """Print a plan and its sums.

    keep_all: whether the weights of whole grids stay, or those of the chosen rates alone. growing: grids that
    `sweep.extend` may add values to.
    """
    table = Table(title="Plan", title_justify="left")
    for name in ("cell", "stage", "runs", "done", "device-hours left"):
        table.add_column(name, justify="left" if name in ("cell", "stage") else "right")
    for stage in stages:
        mark = MARKS[stage.estimate.source] if stage.left and isinstance(stage.estimate, Estimate) else ""
        hours = "unknown" if stage.hours is None else f"{mark}{stage.hours:.2f}"
        table.add_row(str(stage.cell), stage.name, str(stage.runs), str(stage.done), hours)
    progress.terminal(width=None if sys.stdout.isatty() else 120).print(table)
    unusable = [run for stage in stages for run in stage.unusable]
    for run in unusable:
        print(f"no use: {run.name}: {run.error}")
    runs, done, left = (sum(getattr(stage, key) for stage in stages) for key in ("runs", "done", "left"))
    hours = sum(stage.hours or 0 for stage in stages)
    unknown = sum(stage.left for stage in stages if stage.hours is None)
    known = f"{hours:.2f} device-hours" if hours or not unknown else "time unknown"
    rest = f" and {unknown} run(s) of unknown time" if hours and unknown else ""
    lost = f"{len(unusable)} of no use, " if unusable else ""
    print(f"{runs} runs, {done} done, {lost}{left} to compute: {known}{rest}")
    if growing:
        print(
            f"more may come, which are not counted: sweep.extend=true adds up to {EXTENSIONS} values to each "
            f"of {growing} grid(s) whose best value is at its edge"
        )
    fitting = {" ".join(stage.cell.names[:2]): stage.head_rate for stage in stages if stage.head_rate}
    for names, rate in fitting.items():
        print(f"η_w that fits the features of {names}: {rate:g}, by a past run (backbone.lr_head=auto)")
    if not (to_compute := [stage for stage in stages if stage.left]):
        return
    estimates = dict.fromkeys(stage.estimate for stage in to_compute)
    for reason in estimates:
        if isinstance(reason, str):
            print(f"unknown: {reason}")
    sources = {estimate.source for estimate in estimates if isinstance(estimate, Estimate)}
    for source, note in NOTES.items():
        if source in sources:
            print(note)
    for name, kind in (("memory", "host_gib"), ("GPU memory", "gpu_gib")):
        peak, of_all = peak_memory(to_compute, kind)
        if peak or kind == "host_gib":
            more = "" if of_all else ", of some unknown"
            print(f"{name} of a run: {f'{peak:.1f} GiB{more}' if peak else 'unknown'}")
    kept, peak = map(_size, disk_bytes(to_compute, keep_all=keep_all))
    print(f"disk: {kept} of weights stay; a run at work takes up to {peak}")


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def show_results(cells: Sequence[Cell], states: Sequence[CellState]) -> None:
    """Print the table of each setting, the rates at an edge of their grids, and what failed.

    Raises UserError if a run is missing.
    """
    pairs = list(zip(cells, states, strict=True))
    for setting in dict.fromkeys(cell.setting for cell in cells):
        decided = [p for p in pairs if p[0].setting == setting and p[1].status in ("chosen", "diverged")]
        if text := _table(decided):
            print(f"\n{setting}\n\n{text}" if setting else f"\n{text}")
    for cell, state in pairs:
        for rate in state.edges:
            value = getattr(state.rates, rate)
            more = ", also after sweep.extend" if cell.protocol.extend else "; sweep.extend=true goes on"
            print(f"edge: {cell}: {rate}={value:g} is at the edge of its grid{more}")
    trials = [(cell, trial, cell.runs[trial]) for cell, state in pairs for trial in state.trials]
    missing = [(cell, trial, run) for cell, trial, run in trials if run.has_failed]
    for cell, trial, run in missing:
        print(f"missing: {cell} {trial}: {run.error}")
    for cell, state in pairs:
        if state.status == "failed":
            print(f"missing: {cell}: its later stages, which need what failed")
        if state.status == "diverged" and all(trial.is_probe for trial in state.trials):
            print(f"diverged: {cell}: every run of LP that it could start from")
    if lost := {run for *_, run in missing}:
        again = "; the same command tries again what failed" if any(run.attempts for run in lost) else ""
        raise UserError(f"{len(lost)} run(s) are missing, as listed{again}")


def _table(pairs: Sequence[tuple[Cell, CellState]]) -> str:
    """The long table of these cells as Markdown; runs get the names of the cell, which may share them."""
    parts = []
    for cell, state in pairs:
        runs = [cell.runs[trial] for trial in state.trials if not trial.is_probe]
        rows = from_directories(run.directory for run in runs if run.directory and not run.has_failed)
        parts.append(rows.assign(**dict(zip(CELL, cell.names, strict=True))))
    runs = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    return "" if runs.empty else tables.markdown(tables.aggregate(selection.select(runs), runs))
