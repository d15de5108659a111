"""Which learning rates win: by ID accuracy on one seed, never by OOD."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from daft.common.errors import UserError
from daft.runs import identity
from daft.runs.frames import CELL, LR_PROBE, RATES, SEED, cell_metric


def preference(metric: float | None, rates: Iterable[float | None]) -> tuple[float, ...]:
    """Sort key by which a trial wins: the best metric, of equal ones the larger rates, first in the grids."""
    return tuple(-math.inf if value is None or math.isnan(value) else value for value in (metric, *rates))


def select(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of each cell at the learning rates that win on the seed of its grid, by `preference`.

    The metric is that of the split that the runs selected their epoch on, never of an OOD split. Diverged
    runs never win. Where runs start from different LP runs, those that start from the best LP run count.
    """
    chosen = []
    for names, cell in runs.groupby(CELL, sort=False):
        _require_one_setting(" ".join(map(str, names)), cell)
        cell = cell[cell["status"] == "finished"]
        if cell.empty:
            continue
        grid = cell[cell[SEED] == grid_seed(cell)]
        if LR_PROBE in cell and grid[LR_PROBE].nunique() > 1:
            best = _best(grid, "probe", [LR_PROBE])
            cell, grid = (rows[rows[LR_PROBE] == best[LR_PROBE]] for rows in (cell, grid))
        best = _best(grid, _metric(grid), RATES)
        rates = [name for name in (*RATES, LR_PROBE) if name in cell]
        same = (cell[rates] == best[rates]) | (cell[rates].isna() & best[rates].isna())
        chosen.append(cell[same.all(axis=1)])
    return pd.concat(chosen) if chosen else runs.iloc[:0]


def _best(runs: pd.DataFrame, metric: str, rates: list[str]) -> "pd.Series[Any]":
    keys = [preference(value, values) for value, *values in runs[[metric, *rates]].to_numpy(dtype=float)]
    return runs.iloc[keys.index(max(keys))]


class MixedError(UserError):
    """Runs of a cell differ in a setting, so they are no sample."""

    def __init__(self, name: str, settings: Sequence[str]) -> None:
        super().__init__(f"runs of {name} differ in {', '.join(settings)}; give a folder with one setting")
        self.settings = settings


def usable(runs: pd.DataFrame) -> tuple[pd.DataFrame, list[UserError]]:
    """The runs of the cells that `select` takes, and why it does not take the others."""
    kept, problems = [], []
    for names, cell in runs.groupby(CELL, sort=False):
        try:
            _require_one_setting(" ".join(map(str, names)), cell)
        except UserError as error:
            problems.append(error)
            continue
        kept.append(cell)
    return pd.concat(kept).sort_index() if kept else runs.iloc[:0], problems


def ties(chosen: pd.DataFrame, cell: pd.DataFrame) -> list[tuple[float, ...]]:
    """Other rates of a cell (η_θ, η_w; NaN for none) that are as good as the chosen ones to the last bit."""
    cell = candidates(chosen, cell)
    cell = cell[cell["status"] == "finished"]
    grid = cell[cell[SEED] == grid_seed(cell)]
    own = chosen[RATES].iloc[0]
    same = ((grid[RATES] == own) | (grid[RATES].isna() & own.isna())).all(axis=1)
    best = grid.loc[same, _metric(grid)]
    others = grid[~same & grid[_metric(grid)].isin(best)]
    return sorted(others[RATES].itertuples(index=False, name=None), reverse=True)


def _metric(grid: pd.DataFrame) -> str:
    """What rates are chosen by: never a number of an OOD split."""
    holdout = grid["config.training.selection"].iloc[0] == "holdout"
    return f"{'holdout' if holdout else 'id'}/{cell_metric(grid)}"


def grid_seed(cell: pd.DataFrame) -> int:
    """The seed with the most runs, the lowest of several: a single run on another seed is no grid."""
    return int(cell[SEED].mode().min())


def _require_one_setting(name: str, cell: pd.DataFrame) -> None:
    """Raise UserError if runs of a cell differ in more than rates and seed."""
    settings = {*RATES, LR_PROBE, SEED, "config.backbone.lr_head", "config.segmentation.lr_head"}
    settings.add("config.segmentation.eval_batch_size")
    free = ("config.compute.", "config.wandb.", "config.paths.", "config.sweep")
    free += ("config.dataset.unlabelled",)  # what was seen of them is among the inputs
    free += tuple(f"config.{place}" for place in identity.PLACES)
    fixed = [
        c for c in cell.columns if c.startswith("config.") and c not in settings and not c.startswith(free)
    ]
    # A setting that older records lack has its default there, which is null.
    texts = {c: cell[c].astype(str).where(cell[c].notna(), "") for c in fixed}
    mixed = [c.removeprefix("config.") for c, text in texts.items() if text.nunique() > 1]
    if not mixed and "inputs" in cell and cell["inputs"].nunique() > 1:
        mixed = ["the images or weights that they read"]
    if mixed:
        raise MixedError(name, mixed)
    settings = [*RATES, *({LR_PROBE} & {*cell}), SEED]
    if (again := cell.duplicated(settings)).any():
        last = cell[again].iloc[0][settings]
        alike = ((cell[settings] == last) | (cell[settings].isna() & last.isna())).all(axis=1)
        one, other, *_ = cell["run"][alike]
        told = f"{one} in two folders" if one == other else f"{one} and {other}"
        raise UserError(
            f"several runs of {name} have the same rates and seed: {told}; give a folder with one"
        )


def candidates(chosen: pd.DataFrame, cell: pd.DataFrame) -> pd.DataFrame:
    """The runs of a cell that `chosen` were selected from: those that start from LP at the same rate."""
    if LR_PROBE not in chosen or pd.isna(lr_probe := chosen[LR_PROBE].iloc[0]):
        return cell
    return cell[cell[LR_PROBE] == lr_probe]
