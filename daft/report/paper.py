"""The tables of the paper: which cells make them up, and our numbers beside the printed ones."""

import functools
import math
from collections.abc import Collection, Iterable
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import yaml
from pydantic import BeforeValidator, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from daft.common.errors import UserError
from daft.config import texts, yaml_files
from daft.config.check import validate, validate_section
from daft.config.compose import composed
from daft.config.schema import Config, SweepConfig
from daft.config.types import STRICT
from daft.report import tables
from daft.runs import frames
from daft.sweep import selection
from daft.sweep.protocol import Protocol, Rates, Trial, count_missing, protocol

ROOT = Path(__file__).resolve().parents[2]
DEFINITIONS, PRINTED = ROOT / "conf" / "table", ROOT / "results" / "paper"
KEYS = ["backbone", "method", "dataset", "split"]
MEASURED = ("accuracy", "miou", "error")
"""Columns of numbers in results/paper."""

NUMBERS = ["mean", "std", "n", "runs"]
"""Columns of a cell's split."""

OF_CELL = ["lr_backbone", "lr_head", "lr_head_unit", *tables.EDGES, "diverged", "lacking", "problem"]
"""Columns of a cell, the same for all of its splits."""

ABSENT: dict[str, Any] = dict.fromkeys(("mean", "std", "lr_backbone", "lr_head"), math.nan)
ABSENT |= dict.fromkeys(("n", "diverged", "lacking"), 0) | dict.fromkeys(tables.EDGES, False)
ABSENT |= {"lr_head_unit": "", "runs": "", "problem": ""}
"""What a cell without runs has in them."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Heading:
    """A row or column of a table."""

    title: str
    paper: dict[str, str | bool] | None = field(default_factory=dict)
    """what the paper's numbers are filed under where that is not our name; null: it prints none"""


def _titled(value: Any) -> Any:
    return {"title": value} if isinstance(value, str) else value


Titled = Annotated[Heading, BeforeValidator(_titled)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Columns:
    """The columns of one dataset."""

    title: str
    splits: dict[str, Titled]
    backbones: dict[str, str] = field(default_factory=dict)
    """networks that stand in for a row's on this dataset"""
    overrides: list[str] = field(default_factory=list)
    """settings that the table's runs have on this dataset, beside those of the dataset's own file"""


class CellKey(NamedTuple):
    """What a sweep has to select learning rates for, by the names of the configuration."""

    dataset: str
    backbone: str
    method: str


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PaperTable:
    """Which cells make up a table, in the order of its rows and columns."""

    name: str
    title: str
    backbones: dict[str, Titled]
    methods: dict[str, Titled]
    """with the parts that are added to them, as in `ft+coral`"""
    datasets: dict[str, Columns]
    paper: str | None = None
    """file of results/paper with the printed numbers; null: there are none"""
    metric: str = "accuracy"
    """what a cell shows of each split, as the records call it"""
    best: Literal["highest", "lowest"] = "highest"
    digits: int = 2
    """decimals that the paper prints"""
    mean_of: str | None = None
    """table that this one averages"""
    sweep: str = "paper"
    """option of conf/sweep that the cells are run with"""
    settings: dict[str, list[str]] = field(default_factory=dict)
    """overrides that the runs of a method have, beside its own file and those of its parts"""
    costs: bool = False
    """whether a second table says what each method costs: distortion, time, images seen"""
    notes: list[str] = field(default_factory=list)

    def source(self) -> "PaperTable":
        """The table whose runs this one shows."""
        return load(self.mean_of) if self.mean_of else self

    def cells(self) -> list[CellKey]:
        """Every cell, datasets outermost."""
        table = self.source()
        return [
            CellKey(dataset, columns.backbones.get(backbone, backbone), method)
            for dataset, columns in table.datasets.items()
            for backbone in table.backbones
            for method in table.methods
        ]

    def sweeps(self) -> list[list[str]]:
        """Overrides of as few multiruns as have these cells and no others."""
        table, blocks = self.source(), {}
        by_parts: dict[tuple[str, ...], list[str]] = {}
        for method in table.methods:
            plain, *parts = [*_method_overrides(method), *table.settings.get(method, [])]
            by_parts.setdefault(tuple(parts), []).append(plain.removeprefix("method="))
        for dataset, columns in table.datasets.items():
            backbones = [columns.backbones.get(backbone, backbone) for backbone in table.backbones]
            blocks.setdefault((",".join(backbones), *columns.overrides), []).append(dataset)
        return [
            [
                f"sweep={table.sweep}",
                f"dataset={','.join(datasets)}",
                f"backbone={backbones}",
                f"method={','.join(methods)}",
                *parts,
                *overrides,
            ]
            for (backbones, *overrides), datasets in blocks.items()
            for parts, methods in by_parts.items()
        ]

    def members(self, runs: pd.DataFrame) -> "pd.Series[bool]":
        """Which rows of `frames.from_records` are runs of its cells, with the settings that it has."""
        table = self.source()
        found = runs[frames.CELL].apply(tuple, axis=1).isin(table.cells())
        for dataset, columns in table.datasets.items():
            found &= _have(runs, columns.overrides) | (runs[frames.DATASET] != dataset)
        for method, overrides in table.settings.items():
            found &= _have(runs, overrides) | (runs[frames.METHOD] != method)
        return found

    def narrowed(self, **only: Collection[str]) -> "PaperTable":
        """The table with only these datasets, backbones, methods; none named: all; raises UserError."""
        axes = {}
        for axis, names in only.items():
            known = getattr(self.source(), axis)
            for name in names:
                if name not in known:
                    raise UserError(f"{self.name}: no {axis[:-1]} {name!r}; choose from {', '.join(known)}")
            axes[axis] = {key: value for key, value in known.items() if not names or key in names}
        return replace(self.source(), **axes)


def names() -> list[str]:
    """The tables that are defined."""
    return sorted(path.stem for path in DEFINITIONS.glob("*.yaml"))


def load(name: str) -> PaperTable:
    """A table's definition; raises UserError if there is none, or it is not one."""
    file = DEFINITIONS / f"{name}.yaml"
    if not file.exists():
        raise UserError(f"{name}: no such table; choose from {', '.join(names())}")
    try:
        content = yaml_files.load(file, PaperTable)
        return TypeAdapter(PaperTable).validate_python({"name": name, **content})
    except TypeError as error:
        raise UserError(f"{file}: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{file}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def compare(table: PaperTable, runs: pd.DataFrame) -> pd.DataFrame:
    """A row per cell and split: ours (mean, std, n, rates, run ids), the paper's, and the difference.

    Accuracies (or errors) and `difference` in points; `std` of the sample (ddof = 1), none at n = 1, and
    `difference_in_std` in units of it. `best` and `paper_best` are the highest (of errors the lowest) of a
    column within a backbone, at the decimals that the paper prints, where there are several to compare.
    `lacking` counts runs that the cell's protocol has and the cell has not: such a cell is never the best.
    `diverged` counts runs; `missing` is a split that no finished run has, or a cell whose runs are no sample,
    as `problem` says.
    """
    source = table.source()
    ours = _ours(source, runs)
    if table.mean_of:
        ours = averages(ours)
    ours["paper"] = _printed(table, ours)
    ours["difference"] = ours["mean"] - ours["paper"]
    ours["difference_in_std"] = (ours["difference"] / ours["std"]).where(ours["std"] > 0)
    columns = ours.groupby(["backbone", "dataset", "split"], sort=False)
    for best, numbers in (("best", ours["mean"].where(ours["lacking"] == 0)), ("paper_best", ours["paper"])):
        rounded = numbers.round(table.digits)
        extreme = "max" if table.best == "highest" else "min"
        most, several = (rounded.groupby(columns.ngroup()).transform(f) for f in (extreme, "count"))
        ours[best] = (rounded == most) & (several > 1)
    ours["missing"] = ours["mean"].isna()
    if "lr_head_unit" in ours and not ours["lr_head_unit"].any():  # as in the files of older tables
        del ours["lr_head_unit"]
    return ours


def averages(cells: pd.DataFrame) -> pd.DataFrame:
    """Mean over the ID columns and over the OOD columns of each row of a table, as Table 6 has them.

    The runs of different datasets are independent, so variances add; the columns of one dataset show the
    same runs, so their stds add, which is the most that their sum can spread. A row with a gap has no mean.
    """
    rows = []
    for (backbone, method), row in cells.groupby(["backbone", "method"], sort=False):
        for split, columns in (("id", row[row["split"] == "id"]), ("ood", row[row["split"] != "id"])):
            spread = columns["std"].groupby(columns["dataset"]).sum(min_count=1, skipna=False)
            rows.append(
                dict(zip(KEYS, (backbone, method, "average", split), strict=True))
                | {
                    "mean": columns["mean"].mean(skipna=False),
                    "std": (spread**2).sum(skipna=False) ** 0.5 / len(columns),
                    "n": columns["n"].min(),
                    "lacking": row["lacking"].sum(),
                    "diverged": 0,  # as problems and edges: of a cell, and shown there
                    "problem": "",
                    "runs": " ".join(dict.fromkeys(" ".join(columns["runs"]).split())),
                }
                | dict.fromkeys(tables.EDGES, False)
            )
    return pd.DataFrame(rows)


def _ours(table: PaperTable, runs: pd.DataFrame) -> pd.DataFrame:
    """A row per cell and split of the table with what the runs have of it; without runs n is 0."""
    rows = [
        (backbone, method, dataset, split, columns.backbones.get(backbone, backbone))
        for dataset, columns in table.datasets.items()
        for backbone in table.backbones
        for method in table.methods
        for split in columns.splits
    ]
    cell = ["dataset", "network", "method"]
    found = _aggregated(table, runs).rename(columns={"backbone": "network"})
    ours = pd.DataFrame(rows, columns=[*KEYS, "network"])
    ours["metric"] = ours["split"] + f"/{table.metric}"
    ours = ours.merge(found[[*cell, "metric", *NUMBERS]], how="left", on=[*cell, "metric"])
    of_cell = found[[*cell, *OF_CELL]].drop_duplicates(cell)
    ours = ours.merge(of_cell, how="left", on=cell).drop(columns="metric")
    kinds = {name: type(value) for name, value in ABSENT.items()}
    return ours.astype(dict.fromkeys(ABSENT, object)).fillna(ABSENT).astype(kinds)


def _aggregated(table: PaperTable, runs: pd.DataFrame) -> pd.DataFrame:
    """The long table of the table's runs, with what each cell lacks, or why its runs are no sample."""
    columns = ["dataset", "backbone", "method", "metric", *NUMBERS, *OF_CELL]
    found = [pd.DataFrame(columns=columns)]
    for names, cell in [] if runs.empty else runs[table.members(runs)].groupby(frames.CELL):
        key = CellKey(*map(str, names))
        try:
            chosen = selection.select(cell)
            lacking = _lacking(table.sweep, key, cell, chosen)
            found.append(tables.aggregate(chosen, cell).assign(lacking=lacking, problem=""))
        except UserError as error:
            found.append(pd.DataFrame([key._asdict() | ABSENT | {"metric": "", "problem": str(error)}]))
    return pd.concat([part.reindex(columns=columns).astype(object) for part in found], ignore_index=True)


def _lacking(sweep: str, cell: CellKey, runs: pd.DataFrame, chosen: pd.DataFrame) -> int:
    """How many runs of the cell's protocol there are not."""
    if chosen.empty:
        return 0

    def trials(rows: pd.DataFrame) -> list[Trial]:
        rates = [f"config.method.{rate}" for rate in Rates._fields]
        columns = rows.reindex(columns=[*rates, frames.SEED]).astype(object)  # old records lack some
        known = columns.where(columns.notna(), None).itertuples(index=False, name=None)
        return [Trial(Rates(*rates), seed) for *rates, seed in known]

    first = trials(chosen)[0]
    return count_missing(_protocol(sweep, cell), trials(runs), selection.grid_seed(runs), first.rates)


def _have(runs: pd.DataFrame, overrides: Iterable[str]) -> "pd.Series[bool]":
    """Which runs have these settings, but for where and why they were computed."""
    found = pd.Series(True, runs.index)
    for key, _, value in (override.partition("=") for override in overrides):
        if not key.startswith(("compute.", "sweep.")):
            wanted = value if texts.is_text(key, Config) else yaml.safe_load(value)
            found &= runs.get(f"config.{key}", pd.Series(index=runs.index)) == wanted
    return found


@functools.cache
def _protocol(sweep: str, cell: CellKey) -> Protocol:
    named = [f"dataset={cell.dataset}", f"backbone={cell.backbone}", *_method_overrides(cell.method)]
    config = composed(f"sweep={sweep}", *named)
    return protocol(validate_section(config, "sweep", SweepConfig), validate(config))


@functools.cache
def _method_overrides(name: str) -> list[str]:
    """What composes a method with the parts that its name has, beside those of its own file."""
    plain, *parts = name.split("+")
    if not parts:
        return [f"method={name}"]
    own = composed(f"method={plain}")["method"].get("parts") or {}
    added = [part for part in parts if part not in own]
    return [f"method={plain}", *([f"part=[{','.join(added)}]"] if added else [])]


def _printed(table: PaperTable, cells: pd.DataFrame) -> "pd.Series[float]":
    """The paper's number for each row, which has KEYS; NaN where the paper prints none."""
    if table.paper is None:
        return pd.Series(np.nan, cells.index)
    printed = pd.read_csv(PRINTED / table.paper)
    printed = printed.rename(columns=dict.fromkeys(MEASURED, "number") | {"corruption": "split"})
    if "number" not in printed:  # Table 6 has a column per split
        printed = printed.melt(["backbone", "method"], var_name="split", value_name="number")
        printed["split"] = printed["split"].str.removesuffix("_accuracy")
    filed = []
    for row, key in enumerate(cells[KEYS].astype(str).itertuples(index=False, name=None)):
        backbone, method, dataset, split = key
        headings = (table.backbones[backbone], table.methods[method], table.datasets[dataset].splits[split])
        names = [heading.paper for heading in headings if heading.paper is not None]
        if len(names) == len(headings):
            own: dict[str, Any] = {"row": row} | dict(zip(KEYS, key, strict=True))
            filed.append(own | names[0] | names[1] | names[2])
    wanted = pd.DataFrame(filed)
    keys = [column for column in printed.columns if column in wanted]
    found = wanted.merge(printed[[*keys, "number"]], how="left", on=keys).set_index("row")["number"]
    counts = found.groupby("row").count()
    for row, count in counts[counts != 1].items():
        name = " ".join(cells[KEYS].iloc[int(str(row))])
        raise UserError(f"{PRINTED / table.paper}: {count} numbers for {name}, not one")
    return found.reindex(range(len(cells)))
