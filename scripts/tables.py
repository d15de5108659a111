"""Turn the records of a folder of runs into tables.

python scripts/tables.py table5 --runs runs --out results   a table of the paper, ours beside the paper's
python scripts/tables.py runs/demo --out results/demo       every cell of a folder of runs
python scripts/tables.py runs/sizes --over dataset.train.images --out sizes     for each value of a setting
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pandas as pd

from daft.common.errors import UserError
from daft.common.files import write_atomically
from daft.report import layouts, paper, tables
from daft.runs import frames, records, robustness
from daft.sweep import selection

AXES = ("datasets", "backbones", "methods")


def main() -> None:
    """Write TABLE.{csv,md,html,tex}, or for a folder runs.csv, table.csv and table.md; print the Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", help=f"{', '.join(paper.names())}, or a folder of run directories")
    parser.add_argument("--out", type=Path, help="folder for the files")
    parser.add_argument(
        "--runs",
        type=Path,
        default=os.environ.get("DAFT_RUNS", "runs"),
        help="folder of the table's run directories; default: DAFT_RUNS, or runs",
    )
    parser.add_argument(
        "--overrides", action="store_true", help="only print, a line each, the sweeps that have its runs"
    )
    for axis in (*AXES, "seeds"):
        parser.add_argument(f"--{axis}", default="", help="with --overrides: only these, separated by commas")
    parser.add_argument("--over", default="", help="of a folder: the setting that its runs differ in")
    args = parser.parse_args()
    only = {axis: _listed(getattr(args, axis)) for axis in AXES}
    seeds = _listed(args.seeds)
    if (seeds or any(only.values())) and not args.overrides:
        parser.error(
            "--datasets, --backbones, --methods and --seeds narrow --overrides; a table is always whole"
        )
    if wrong := [seed for seed in seeds if not seed.isdigit()]:
        raise UserError(f"--seeds {args.seeds}: {wrong[0]!r} is no seed; write whole numbers as in 0,1,2")
    if args.over and (args.overrides or args.what in paper.names()):
        parser.error("--over is of a folder of runs")
    if not args.out and not args.overrides:
        parser.error("the following arguments are required: --out")
    if args.overrides:
        chosen = [f"sweep.seeds=[{','.join(seeds)}]"] if seeds else []
        for overrides in paper.load(args.what).narrowed(**only).sweeps():
            print(" ".join([*overrides, *chosen]))
    elif args.what in paper.names():
        _table(paper.load(args.what), args.runs, args.out)
    else:
        _folder(Path(args.what), args.out, args.over)


def _listed(names: str) -> list[str]:
    """The names between commas."""
    return [name.strip() for name in names.split(",") if name.strip()]


def _table(table: paper.Table, runs: Path, out: Path) -> None:
    compared = paper.compare(table, frames.rows(robustness.load(records.below(runs))))
    _write(compared, out / f"{table.name}.csv")
    for suffix, render in layouts.RENDERERS.items():
        write_atomically(out / f"{table.name}.{suffix}", render(table, compared))
    print(layouts.markdown(table, compared))


def _folder(folder: Path, out: Path, over: str) -> None:
    runs = frames.rows(robustness.load(records.below(folder)))
    if runs.empty:
        raise UserError(f"{folder}: no records below this folder, and no table of that name")
    setting = f"config.{over}"
    if over and setting not in runs:
        raise UserError(f"--over {over}: the runs in {folder} have no such setting")
    parts = dict(iter(runs.groupby(setting, dropna=False))) if over else {"": runs}
    made = {_text(value): tables.aggregate(selection.select(part), part) for value, part in parts.items()}
    own = (*frames.CELL, *frames.RATES, frames.SEED, setting)
    kept = [c for c in runs.columns if "/" in c or c in own]
    _write(runs[["run", "status", "best_epoch", *kept]], out / "runs.csv")
    columns = {value: {over: value} if over else {} for value in made}
    _write(pd.concat(table.assign(**columns[value]) for value, table in made.items()), out / "table.csv")
    heads = {value: f"## {over} = {value}\n\n" if over else "" for value in made}
    text = "\n".join(heads[value] + tables.markdown(table) for value, table in made.items())
    write_atomically(out / "table.md", text)
    print(text)


def _text(value: Any) -> str:
    """A setting's value as on the command line."""
    return "null" if pd.isna(value) else f"{value:g}" if isinstance(value, float) else str(value)


def _write(table: pd.DataFrame, file: Path) -> None:
    write_atomically(file, table.to_csv(index=False))


if __name__ == "__main__":
    try:
        main()
    except (UserError, OSError) as error:  # a full or read-only disk, say
        sys.exit(f"tables.py: {error}")
