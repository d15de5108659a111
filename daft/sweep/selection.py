"""Which learning rates win: by ID accuracy on one seed, never by OOD."""

import pandas as pd

from daft.common.errors import UserError
from daft.runs import identity
from daft.runs.frames import CELL, LR_PROBE, RATES, SEED, cell_metric


def select(runs: pd.DataFrame) -> pd.DataFrame:
    """Per cell the runs at the learning rates with the best ID accuracy at the seed of its grid.

    Selection reads the split that the runs selected their epoch on, never an OOD one. Diverged runs are
    never selected; of equal ones the larger rates are, which stand first in the paper's grids. Of runs that
    start from several LP runs, those that start from the best of these are the cell.
    """
    chosen = []
    for names, cell in runs.groupby(CELL, sort=False):
        _require_one_setting(" ".join(map(str, names)), cell)
        cell = cell[cell["status"] == "finished"]
        if cell.empty:
            continue
        grid = cell[cell[SEED] == grid_seed(cell)]
        if LR_PROBE in cell and grid[LR_PROBE].nunique() > 1:
            first = grid.sort_values(["probe", LR_PROBE], ascending=False, kind="stable").iloc[0]
            cell, grid = (rows[rows[LR_PROBE] == first[LR_PROBE]] for rows in (cell, grid))
        holdout = grid["config.training.selection"].iloc[0] == "holdout"
        metric = f"{'holdout' if holdout else 'id'}/{cell_metric(cell)}"
        best = grid.sort_values([metric, *RATES], ascending=False, kind="stable").iloc[0]
        same = pd.Series(True, index=cell.index)
        for rate in [name for name in (*RATES, LR_PROBE) if name in cell]:
            same &= cell[rate].isna() if pd.isna(best[rate]) else cell[rate] == best[rate]
        chosen.append(cell[same])
    return pd.concat(chosen) if chosen else runs.iloc[:0]


def grid_seed(cell: pd.DataFrame) -> int:
    """The seed with the most runs, of several the lowest: one run by hand does not stand in for a grid."""
    return int(cell[SEED].mode().min())


def _require_one_setting(name: str, cell: pd.DataFrame) -> None:
    """Raise UserError if runs of a cell differ in more than rates and seed: they are no sample."""
    free = (
        *RATES,
        LR_PROBE,
        SEED,
        "config.compute.",
        "config.wandb.",
        "config.paths.",
        "config.sweep",
        "config.backbone.lr_head",
        "config.segmentation.lr_head",
        "config.segmentation.eval_batch_size",
        *(f"config.{place}" for place in identity.PLACES),
    )
    fixed = [c for c in cell.columns if c.startswith("config.") and not c.startswith(free)]
    # A setting that records of before do not have yet is at its default there, which is null.
    texts = {c: cell[c].astype(str).where(cell[c].notna(), "") for c in fixed}
    mixed = [c.removeprefix("config.") for c, text in texts.items() if text.nunique() > 1]
    if not mixed and "inputs" in cell and cell["inputs"].nunique() > 1:
        mixed = ["the images or weights that they read"]
    if mixed:
        raise UserError(f"runs of {name} differ in {', '.join(mixed)}; give a folder with one setting")
    if cell.duplicated([*RATES, *({LR_PROBE} & {*cell}), SEED]).any():
        raise UserError(f"several runs of {name} have the same rates and seed; give a folder with one")


def beside(chosen: pd.DataFrame, cell: pd.DataFrame) -> pd.DataFrame:
    """The runs of a cell that these were chosen among, which start from LP at the same rate, if any do."""
    if LR_PROBE not in chosen or pd.isna(probe := chosen[LR_PROBE].iloc[0]):
        return cell
    return cell[cell[LR_PROBE] == probe]
