"""Show what the runs of a folder are doing: finished, diverged, running, waiting, interrupted or failed.

python scripts/status.py runs
python scripts/status.py runs --clean     remove the runs that failed, after asking
"""

from collections import Counter
from datetime import timedelta
from pathlib import Path

from _door import cli


def main() -> None:
    """Print a line per run that has no record, then how many there are of each state."""
    parser = cli.parser(__doc__)
    cli.add_runs(parser, "runs")
    parser.add_argument("--all", action="store_true", help="list finished runs too")
    parser.add_argument("--clean", action="store_true", help="remove failed runs, after asking")
    parser.add_argument("--yes", action="store_true", help="with --clean: without asking")
    args = parser.parse_args()
    if args.yes and not args.clean:
        parser.error("--yes is of --clean")

    from rich.table import Table

    from daft.common import progress
    from daft.runs import status

    states = status.list_runs(args.runs)
    table = Table()
    for name in ("run", "state", "epoch", "left"):
        table.add_column(name, no_wrap=True)
    table.add_column("error", overflow="fold", max_width=80)
    for run in states:
        if run.state not in ("finished", "diverged") or args.all:
            epoch = f"{run.epoch} of {run.epochs}" if run.epochs else "-"
            left = "-" if run.seconds_left is None else str(timedelta(seconds=round(run.seconds_left)))
            table.add_row(run.name, run.state, epoch, left, run.error)
    if table.row_count:
        progress.print_whole(table)
    counts = Counter(run.state for run in states)
    print(", ".join(f"{count} {state}" for state, count in counts.items()))
    if args.clean:
        _clean(args.runs, ask=not args.yes)


def _clean(runs: Path, *, ask: bool) -> None:
    """Remove the directories of failed runs, and what sweeps say of others."""
    from daft.runs import status

    failed = status.failed_runs(runs)
    if ask and failed:
        print("\n".join(["to remove:", *(f"  {folder}" for folder in failed)]), flush=True)
        if input(f"remove {len(failed)} failed run(s)? [y/N] ").strip().lower() not in ("y", "yes"):
            print("nothing is removed")
            return
    removed = [status.remove(folder) for folder in failed]
    status.forget_failures(runs)
    print(f"{sum(removed)} failed run(s) removed")


if __name__ == "__main__":
    cli.run(main)
