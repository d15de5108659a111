"""Mirror every finished record that W&B does not have yet: one run each, the record's id as its id.

python scripts/wandb_sync.py runs --dry-run     what would be sent; without an account, what may be
python scripts/wandb_sync.py runs
"""

from collections import Counter
from typing import TYPE_CHECKING

from _door import cli

from daft.common.errors import UserError

if TYPE_CHECKING:
    from daft.tracking import sync

DID = {"send": "sent", "complete": "completed", "update": "updated"}


def main() -> None:
    """Print a line per run that is sent, completed or updated, then how many there are of each."""
    parser = cli.parser(__doc__)
    parser.add_argument("runs", type=cli.path, help="folder of run directories")
    own = "in place of the one that each record names"
    parser.add_argument("--project", type=cli.project, help=f"{own} (wandb.project)")
    parser.add_argument("--entity", type=cli.entity, help=f"{own} (wandb.entity), or the account's own")
    parser.add_argument("--dry-run", action="store_true", help="only print what would be done")
    args = parser.parse_args()

    from daft.runs import records
    from daft.tracking import sync

    directories = records.find_runs(args.runs)
    if not directories:
        raise UserError(f"{args.runs}: no records below this folder")
    service = _service(required=not args.dry_run)
    account = service.account if service else "your-account"
    wanted = sync.entries(directories, account, args.project, args.entity)
    todo = sync.needs(service, wanted)
    for need, entry, _ in todo:
        print(f"{need} {entry.place} {entry.directory.name}", flush=True)
    counts = {DID[need]: count for need, count in Counter(need for need, _, _ in todo).items()}
    there = f"{len(wanted) - len(todo)} of {len(wanted)} were there"
    if service is None:
        print(f"what is online is not known without an account; {len(todo)} to do at most")
        return
    if args.dry_run:
        print(f"{there}; {len(todo)} to do")
        return
    busy = sync.send(service, todo)
    print(", ".join([there, *(f"{count} {did}" for did, count in counts.items())]))
    if busy:
        raise UserError(f"{len(busy)} left out, another process is at them; the same command goes on")


def _service(*, required: bool) -> "sync.Service | None":
    """W&B, or None where there is no account and none is required."""
    from daft.tracking import sync

    try:
        return sync.Service()
    except sync.NoAccountError:
        if required:
            raise
        return None


if __name__ == "__main__":
    cli.run(main)
