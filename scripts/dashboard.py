"""Build the project's report in W&B, its panels from the tables' definitions.

python scripts/dashboard.py --out report.json           offline: what would be saved
python scripts/dashboard.py --save                      in place of the one before
"""

import json

from _door import cli

from daft.common.errors import UserError
from daft.common.files import write_atomically
from daft.config.options import options


def main() -> None:
    """Write the report's specification, save it online, or both."""
    parser = cli.parser(__doc__)
    parser.add_argument("tables", nargs="*", help=f"of {', '.join(options('table'))}; default: all")
    parser.add_argument("--project", type=cli.project, default="daft", help="default: daft")
    parser.add_argument("--entity", type=cli.entity, help="default: the account's own")
    parser.add_argument("--out", type=cli.path, help="a .json file for the specification")
    parser.add_argument("--save", action="store_true", help="save it online")
    args = parser.parse_args()
    if not args.out and not args.save:
        parser.error("say --save, --out FILE, or both")
    if args.out:
        cli.require_out(args.out, "json")

    from daft.report import paper
    from daft.tracking import sync

    try:
        from daft.tracking import dashboard
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed; pip install -e '.[dashboard]'") from error
    definitions = [paper.load(name) for name in args.tables or options("table")]
    service = sync.Service() if args.save else None
    entity = args.entity or (service.account if service else "")
    report = dashboard.build(definitions, args.project, entity)
    if args.out:
        write_atomically(args.out, json.dumps(dashboard.specification(report), indent=1) + "\n")
        print(f"wrote {args.out}")
    if service:
        print(f"saved {dashboard.save(report, service)}")


if __name__ == "__main__":
    cli.run(main)
