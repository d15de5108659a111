"""Turn the records of a folder of runs into tables.

python scripts/tables.py table5 --runs runs --out results   a table of the paper, ours beside the paper's
python scripts/tables.py runs/demo --out results/demo       every cell of a folder of runs
python scripts/tables.py runs/sizes --over dataset.train.images --out sizes     for each value of a setting
python scripts/tables.py runs --only dataset=pets --out pets                    of the runs that have it
"""

from pathlib import Path

from _door import cli

from daft.common.errors import UserError
from daft.config.options import options

AXES = ("datasets", "backbones", "methods")


def main() -> None:
    """Write TABLE.{csv,md,html,tex}, or for a folder runs.csv, table.csv and table.md; print the Markdown."""
    parser = cli.parser(__doc__)
    parser.add_argument("what", help=f"{', '.join(options('table'))}, or a folder of run directories")
    parser.add_argument("--out", type=cli.path, help="folder for the files")
    cli.add_runs(parser, of="the table's ")
    parser.add_argument(
        "--overrides", action="store_true", help="only print, a line each, the sweeps that have its runs"
    )
    for axis, kind in (*((axis, cli.names) for axis in AXES), ("seeds", cli.seeds)):
        about = "with --overrides: only these, separated by commas"
        parser.add_argument(f"--{axis}", type=kind, default=[], help=about)
    parser.add_argument("--over", help="of a folder: the setting that its runs differ in")
    parser.add_argument(
        "--only",
        type=cli.condition,
        action="append",
        default=[],
        help="of a folder: the runs that have it, as dataset=pets or training.epochs=5,10; may be repeated",
    )
    args = parser.parse_args()
    only = {axis: getattr(args, axis) for axis in AXES}
    if (args.seeds or any(only.values())) and not args.overrides:
        parser.error(
            "--datasets, --backbones, --methods and --seeds narrow --overrides; a table is always whole"
        )
    if args.over is not None and (args.overrides or args.what in options("table")):
        parser.error("--over is of a folder of runs")
    if args.only and (args.overrides or args.what in options("table")):
        parser.error("--only is of a folder of runs")
    if not args.out and not args.overrides:
        parser.error("the following arguments are required: --out")
    if args.out:
        cli.require_out(args.out)

    from daft.report import files, paper
    from daft.runs import records

    if args.overrides:
        seeds = [f"sweep.seeds=[{','.join(map(str, args.seeds))}]"] if args.seeds else []
        for overrides in paper.load(args.what).narrowed(**only).sweeps():
            print(" ".join([*overrides, *seeds]))
    elif args.what in options("table"):
        if not records.find_runs(args.runs):
            raise UserError(f"--runs {args.runs}: no records below this folder")
        print(files.write_table(paper.load(args.what), args.runs, args.out))
    else:
        print(files.write_folder(Path(args.what), args.out, args.over, args.only))


if __name__ == "__main__":
    cli.run(main)
