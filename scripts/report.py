"""Write one HTML file with the tables, figures and settings of a folder of runs.

python scripts/report.py --runs runs --out report.html
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from daft.common.errors import UserError
from daft.common.files import write_atomically
from daft.report import page
from daft.runs import records, robustness


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--runs",
        type=Path,
        default=os.environ.get("DAFT_RUNS", "runs"),
        help="folder of run directories; default: DAFT_RUNS, or runs",
    )
    parser.add_argument("--out", type=Path, required=True, help="an .html file")
    args = parser.parse_args()
    loaded = robustness.load(records.below(args.runs))
    if not loaded:
        raise UserError(f"{args.runs}: no records below this folder")
    write_atomically(args.out, page.report(loaded, f"Runs of {args.runs}", args.runs))
    print(f"wrote {args.out}")


if __name__ == "__main__":
    try:
        main()
    except (UserError, OSError) as error:  # a full or read-only disk, say
        sys.exit(f"report.py: {error}")
