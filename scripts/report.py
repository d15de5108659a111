"""Write one HTML file with the tables, figures and settings of a folder of runs.

python scripts/report.py --runs runs --out report.html
"""

from _door import cli

from daft.common.errors import UserError
from daft.common.files import write_atomically


def main() -> None:
    """Write the page."""
    parser = cli.parser(__doc__)
    cli.add_runs(parser)
    parser.add_argument("--out", type=cli.path, required=True, help="an .html file")
    args = parser.parse_args()
    cli.require_out(args.out, "html")

    from daft.report import page
    from daft.runs import records, results

    loaded = results.load(records.find_runs(args.runs))
    if not loaded:
        raise UserError(f"{args.runs}: no records below this folder")
    write_atomically(args.out, page.render_page(loaded, f"Runs of {args.runs}", args.runs))
    print(f"wrote {args.out}")


if __name__ == "__main__":
    cli.run(main)
