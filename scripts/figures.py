"""Draw the records of a folder of runs, at the selected learning rates.

python scripts/figures.py runs/demo --out demo.png          one dataset: accuracy and distortion
python scripts/figures.py runs/small --kind id_ood --out id_ood.png
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from daft import figures, records, tables
from daft.errors import UserError


def main() -> None:
    """Write one PNG."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder of run directories")
    parser.add_argument("--kind", choices=["overview", "id_ood"], default="overview")
    parser.add_argument("--dataset", help="only runs on this dataset")
    parser.add_argument("--out", type=Path, required=True, help="a .png file")
    args = parser.parse_args()
    loaded = records.load(records.below(args.runs))
    runs = records.rows(loaded)
    if args.dataset and not runs.empty:
        runs = runs[runs[tables.DATASET] == args.dataset]
    if runs.empty:
        raise UserError(f"{args.runs}: no records{f' of {args.dataset}' if args.dataset else ''} here")
    chosen = tables.select(runs)
    if chosen.empty:
        raise UserError(f"{args.runs}: all {len(runs)} run(s) diverged")
    if args.kind == "id_ood" and "ood/accuracy" not in chosen:
        raise UserError(f"{args.runs}: no run has an OOD set")
    if args.kind == "overview" and len(found := chosen[tables.DATASET].unique()) > 1:
        raise UserError(f"{args.runs}: several datasets; choose one with --dataset {' | '.join(found)}")
    if args.kind == "id_ood":
        figures.id_against_ood(chosen, args.out)
    else:
        figures.overview(chosen, [r for r in loaded if r["run"] in set(chosen["run"])], args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"figures.py: {error}")
