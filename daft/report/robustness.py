"""Corruption errors of the runs of a table, or of a folder: which runs, their evaluation, and their table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from daft.common import progress
from daft.common.errors import UserError
from daft.common.files import write_atomically
from daft.common.numbers import fixed
from daft.data.corruptions import CORRUPTIONS
from daft.report import paper, tables
from daft.report.methods import in_order
from daft.runs import frames, records, reopened, results, robustness
from daft.runs.results import KINDS, MEAN, Kind
from daft.sweep import selection

IMAGES: dict[Kind, str] = {"cifar10_c": "images of CIFAR-10-C", "generated": "ID images, corrupted here,"}
"""What a block is of."""

MEANS = (
    "Each number is a mean over the 5 severities and n seeds; the mean is over the 15 corruptions, ± sample "
    "standard deviation (ddof = 1) over n seeds. Learning rates are those chosen by ID accuracy."
)
NOTES: dict[Kind, str] = {
    "cifar10_c": MEANS,
    "generated": f"{MEANS} Frost is a random texture in place of the published photographs: that column, and "
    "the mean with it, do not compare with published errors.",
}
"""Below a table: what its numbers are."""


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
        mean = results.metrics(result).get(f"{MEAN}/{kind}_error")
        error = "not finite" if mean is None else f"{fixed(mean)} %"
        size = f"{result['images']:,} images x 75, {result['seconds']:.0f} s"
        print(f"{run}: mean error {error} ({size})", flush=True)
    return whole


def write(directories: Sequence[Path], kind: Kind, images: int | None, out: Path | None) -> None:
    """Print the table of these runs, and write it to a folder as robustness.md and robustness.csv."""
    means = aggregate(results.load(directories, images), kind)
    if means.empty:
        return
    text = markdown(means, kind)
    print(f"\n{text}", end="")
    if out:
        long = means.drop(columns=["grid", *tables.EDGES, "diverged"])
        write_atomically(out / "robustness.csv", long.to_csv(index=False))
        write_atomically(out / "robustness.md", text)


def aggregate(loaded: Sequence[dict[str, Any]], kind: Kind) -> pd.DataFrame:
    """`tables.aggregate` of the errors of selected runs, with `images` in each block and their `whole`."""
    runs = frames.from_records(loaded)
    means = tables.aggregate(runs, runs)
    means = means[means["metric"].str.endswith(f"/{kind}_error")]
    blocks = {record["run"]: record.get("corrupted", {}).get(kind) for record in loaded}
    of_cells = [blocks[ids.split()[0]] for ids in means["runs"]]
    return means.assign(**{key: [block[key] for block in of_cells] for key in ("images", "whole")})


def markdown(means: pd.DataFrame, kind: Kind) -> str:
    """What `aggregate` has, a row per cell: means over seeds, and the spread of the mean error."""
    parts = []
    for names, setting in means.groupby(["dataset", "backbone"], sort=False):
        rows = []
        for method in in_order(setting["method"]):
            errors = setting[setting["method"] == method].set_index("metric")
            found = errors.loc[[f"{name}/{kind}_error" for name in CORRUPTIONS]]
            mean = tables.format_mean_std(errors.loc[f"{MEAN}/{kind}_error"])
            name, counted = tables.in_markdown(method), str(found["n"].iloc[0])
            rows.append([name, counted, *(fixed(error, 1) for error in found["mean"]), mean])
        table = pd.DataFrame(rows, columns=["method", "n", *CORRUPTIONS, "mean"])
        sizes = setting[["images", "whole"]].drop_duplicates().itertuples(index=False)
        of = " or ".join(f"{images:,} of the {whole:,}" for images, whole in sizes)
        parts += [
            f"### {tables.in_markdown(', '.join(map(str, names)))}: corruption errors (%)",
            tables.pipe_table(table, texts=2),
            f"Of {of} {IMAGES[kind]} at each severity of each corruption.",
        ]
    return "\n\n".join([*parts, NOTES[kind]]) + "\n"
