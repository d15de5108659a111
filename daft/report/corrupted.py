"""Corruption errors of the runs of a table, or of a folder: which runs, their evaluation, and its files."""

from collections.abc import Sequence
from pathlib import Path

import torch

from daft.common import progress
from daft.common.errors import UserError
from daft.common.files import write_atomically
from daft.report import corruption_errors, paper, tables
from daft.runs import frames, records, reopened, robustness
from daft.runs.robustness import KINDS, Kind
from daft.sweep import selection


def kind_of(table: paper.PaperTable | None) -> Kind:
    """The corrupted images whose errors a table shows; generated ones if it shows none."""
    for kind in KINDS:
        if table and table.metric == f"{kind}_error":
            return kind
    return "generated"


def chosen(folder: Path, table: paper.PaperTable | None) -> tuple[list[Path], bool]:
    """The directories of the runs at the chosen rates, of a table or of all, and whether every cell has some.

    A cell whose runs are no sample is named on stderr. Raises UserError if there are no such runs, or if the
    table's runs segment.
    """
    if table and table.metric == "miou":
        raise UserError(f"{table.name}: its runs segment; corruption errors are of classifiers")
    named = {record["run"]: path for path in records.find_runs(folder) for record in records.load([path])}
    runs = frames.from_directories(named.values())
    if table and not runs.empty:
        runs = runs[table.members(runs)]
    found, whole = [], True
    for _, cell in [] if runs.empty else runs.groupby(frames.CELL, sort=False):
        try:
            found += [named[run] for run in selection.select(cell)["run"]]
        except UserError as error:
            progress.warn_left_out(error)
            whole = False
    if not found:
        raise UserError(f"{folder}: no finished runs {'of the table ' if table else ''}below this folder")
    return found, whole


def evaluate(
    directories: Sequence[Path], kind: Kind, device: torch.device, batch_size: int, images: int | None
) -> bool:
    """Evaluate each run, a line each; False if one could not be, which is named on stderr.

    images: in each block; None: all.
    """
    whole, known = True, {}
    for directory in directories:
        try:
            run = reopened.open_run(directory)
            key = robustness.key(run, kind)
            if key not in known:
                known = {key: robustness.of_run(run, kind, device, batch_size, images)}  # one at a time
            result = robustness.evaluate(run, known[key], device)
        except UserError as error:
            progress.warn_left_out(error)
            whole = False
            continue
        mean = robustness.metrics(result).get(f"{robustness.MEAN}/{kind}_error")
        error = "not finite" if mean is None else f"{mean:.2f} %"
        size = f"{result['images']:,} images x 75, {result['seconds']:.0f} s"
        print(f"{run}: mean error {error} ({size})", flush=True)
    return whole


def write(directories: Sequence[Path], kind: Kind, images: int | None, out: Path | None) -> None:
    """Print the table of these runs, and write it to a folder as robustness.md and robustness.csv."""
    means = corruption_errors.aggregate(robustness.load(directories, images), kind)
    if means.empty:
        return
    text = corruption_errors.markdown(means, kind)
    print(f"\n{text}", end="")
    if out:
        long = means.drop(columns=["grid", *tables.EDGES, "diverged"])
        write_atomically(out / "robustness.csv", long.to_csv(index=False))
        write_atomically(out / "robustness.md", text)
