"""Turn the records of a folder of runs into a table: mean, std and n at the selected learning rates.

python scripts/tables.py runs/small --out results/small
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from daft import records, tables
from daft.errors import UserError


def main() -> None:
    """Write runs.csv (every run), table.csv (long) and table.md below --out; print the last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder of run directories")
    parser.add_argument("--out", type=Path, required=True, help="folder for the tables")
    args = parser.parse_args()
    runs = records.frame(sorted(path.parent for path in args.runs.glob(f"*/{records.RECORD}")))
    if runs.empty:
        raise UserError(f"{args.runs}: no records below this folder")
    table = tables.aggregate(tables.select(runs), runs)
    args.out.mkdir(parents=True, exist_ok=True)
    kept = [c for c in runs.columns if "/" in c or c in (*tables.CELL, *tables.RATES, tables.SEED)]
    runs[["run", "status", "best_epoch", *kept]].to_csv(args.out / "runs.csv", index=False)
    table.to_csv(args.out / "table.csv", index=False)
    (args.out / "table.md").write_text(tables.markdown(table))
    print(tables.markdown(table))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"tables.py: {error}")
