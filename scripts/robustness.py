"""Corruption errors of finished runs at their chosen learning rates, all seeds; nothing is trained.

python scripts/robustness.py table4            the table's runs on CIFAR-10-C
python scripts/robustness.py runs/sweep        the runs of a folder on their own ID images, corrupted here
python scripts/robustness.py small --images 500 --out results/small/robustness      so those of another table

A result is a file beside the run's record. What is there is not repeated; interrupted, the same command
goes on.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from daft.common.errors import UserError
from daft.common.files import write_atomically
from daft.common.progress import console
from daft.report import corruption_errors, paper, tables
from daft.runs import frames, records, reopened, robustness
from daft.runs.robustness import KINDS, Kind
from daft.sweep import selection


def main() -> int:
    """Evaluate what is missing, a line per run; print and write the table of a folder; 1 if a run failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    tables_of = {table.name: table for table in map(paper.load, paper.names()) if table.metric != "miou"}
    parser.add_argument("what", help=f"{', '.join(tables_of)}, or a folder of run directories")
    parser.add_argument(
        "--runs",
        type=Path,
        default=os.environ.get("DAFT_RUNS", "runs"),
        help="folder of a table's run directories; default: DAFT_RUNS, or runs",
    )
    parser.add_argument("--on", choices=KINDS, help="default: what the table shows, else generated")
    parser.add_argument("--images", type=_count, help="in each of the 75 blocks, stratified; default: all")
    parser.add_argument("--batch-size", type=_count, default=256)
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: a GPU if there is one")
    parser.add_argument("--threads", type=_count, help="of the CPU; default: torch's")
    parser.add_argument("--out", type=Path, help="folder for robustness.md and .csv")
    args = parser.parse_args()
    table = tables_of.get(args.what)
    kind: Kind = args.on or _shown(table)
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.backends.cudnn.benchmark = True

    folder = args.runs if table else Path(args.what)
    chosen, failed = _chosen(records.below(folder), table)
    if not chosen:
        raise UserError(f"{folder}: no finished runs {'of the table ' if table else ''}below this folder")
    failed |= _evaluate(chosen, kind, device, args.batch_size, args.images)
    _show(chosen, kind, args.images, args.out)
    return int(failed)


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")
    return int(text)


def _shown(table: paper.Table | None) -> Kind:
    """The corrupted images whose errors a table shows; generated ones if it shows none."""
    for kind in KINDS:
        if table and table.metric == f"{kind}_error":
            return kind
    return "generated"


def _chosen(directories: list[Path], table: paper.Table | None) -> tuple[list[Path], bool]:
    """The directories of the runs at the chosen rates, of a table or of all; whether a cell is no sample."""
    named = {record["run"]: path for path in directories for record in records.load([path])}
    runs = frames.frame(named.values())
    if table and not runs.empty:
        runs = runs[table.members(runs)]
    chosen, failed = [], False
    for _, cell in [] if runs.empty else runs.groupby(frames.CELL, sort=False):
        try:
            chosen += [named[run] for run in selection.select(cell)["run"]]
        except UserError as error:
            _complain(error)
            failed = True
    return chosen, failed


def _complain(error: UserError) -> None:
    console.print(f"left out: {error}", style="yellow", soft_wrap=True, markup=False, highlight=False)


def _evaluate(
    directories: list[Path], kind: Kind, device: torch.device, batch_size: int, images: int | None
) -> bool:
    """Whether any run could not be evaluated; each such is named, and the others are."""
    failed, known = False, {}
    for directory in directories:
        try:
            run = reopened.open_run(directory)
            key = robustness.key(run, kind)
            if key not in known:
                known = {key: robustness.of_run(run, kind, device, batch_size, images)}  # one at a time
            result = robustness.evaluate(run, known[key], device)
        except UserError as error:
            _complain(error)
            failed = True
            continue
        mean = robustness.metrics(result).get(f"{robustness.MEAN}/{kind}_error")
        error = "not finite" if mean is None else f"{mean:.2f} %"
        size = f"{result['images']:,} images x 75, {result['seconds']:.0f} s"
        print(f"{run}: mean error {error} ({size})", flush=True)
    return failed


def _show(directories: list[Path], kind: Kind, images: int | None, out: Path | None) -> None:
    means = corruption_errors.aggregate(robustness.load(directories, images), kind)
    if means.empty:
        return
    text = corruption_errors.markdown(means, kind)
    print(f"\n{text}", end="")
    if out:
        long = means.drop(columns=["grid", *tables.EDGES, "diverged"])
        write_atomically(out / "robustness.csv", long.to_csv(index=False))
        write_atomically(out / "robustness.md", text)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on where it was")
    except (UserError, OSError) as error:
        sys.exit(f"robustness.py: {error}")
