"""Show what the runs of a folder are doing: finished, diverged, running, waiting, interrupted or failed.

python scripts/status.py runs
"""

from collections import Counter
from datetime import timedelta

from _door import cli


def main() -> None:
    """Print a line per run that has no record, then how many there are of each state."""
    parser = cli.parser(__doc__)
    cli.add_runs(parser, "runs")
    parser.add_argument("--all", action="store_true", help="list finished runs too")
    args = parser.parse_args()

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


if __name__ == "__main__":
    cli.run(main)
