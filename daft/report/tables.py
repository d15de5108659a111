"""Records to tables: what to show is computed here, apart from how it is shown."""

import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from daft.common import progress
from daft.common.numbers import fixed
from daft.config.parts import TARGET_BN, target_mark
from daft.report.methods import in_order
from daft.runs import frames
from daft.runs.frames import (
    BACKBONE,
    BALANCED,
    CELL,
    CLASS_ACCURACY,
    CLASS_IOU,
    DATASET,
    LR_HEAD_UNIT,
    MEASURES,
    METHOD,
    RATES,
    SEED,
    accuracy_columns,
    cell_metric,
)
from daft.sweep.selection import candidates, ties

EDGES = ["at_edge", "head_at_edge"]
"""Whether η_θ, and η_w, are at the edge of their grids."""


def split_name(column: str) -> str:
    """How a metric's split is called in tables and figures."""
    split = column.partition("/")[0]
    bare = split.removesuffix(TARGET_BN)
    return {"id": "ID", "ood": "OOD mean"}.get(bare, bare) + split[len(bare) :]


def aggregate(chosen: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Long table: a row per cell and metric with mean, std, n, rates and the ids of the runs behind them.

    std: of the sample (ddof = 1), none at n = 1. A cell of which no run is chosen has one row, with n = 0.
    runs: all runs; from them come the grids of the rates, whether a rate is at an edge, and what diverged.
    """
    of_cell, chosen_of = (dict(iter(rows.groupby(CELL, sort=False))) for rows in (runs, chosen))
    cells = pd.DataFrame(
        dict(zip(CELL, names, strict=True)) | _grid(chosen_of.get(names), of_cell[names])
        for names in {**chosen_of, **of_cell}
    )
    values = chosen.melt([*CELL, "run"], [c for c in chosen.columns if "/" in c], "metric").dropna(
        subset="value"
    )
    # Not the names of pandas' own functions: those add up otherwise, and differ in the last digit.
    means = values.groupby([*CELL, "metric"], sort=False).agg(
        mean=("value", lambda of_runs: of_runs.astype(float).mean()),
        std=("value", lambda of_runs: of_runs.astype(float).std(ddof=1)),
        n=("value", "size"),
        runs=("run", " ".join),
    )
    table = cells.merge(means.reset_index(), how="left", on=CELL)
    table["metric"] = table["metric"].fillna(table["judged_by"])
    table["n"] = table["n"].fillna(0).astype(int)
    table = table.rename(columns=dict(zip(CELL, ("dataset", "backbone", "method"), strict=True)))
    columns = ["dataset", "backbone", "method", "metric", "mean", "std", "n", "lr_backbone", "lr_head"]
    columns += [column for column in ("lr_head_unit", "ties") if table[column].notna().any()]
    return table[[*columns, "grid", *EDGES, "diverged", "runs"]]


def _grid(chosen: pd.DataFrame | None, cell: pd.DataFrame) -> dict[str, Any]:
    """The chosen rates of a cell, the grid that they were chosen from, and how many of its runs diverged."""
    if chosen is None:  # shown as diverged
        none = dict.fromkeys(("lr_backbone", "lr_head", "lr_head_unit", "ties", "grid"))
        edges = dict.fromkeys(EDGES, False)
        return none | edges | {"diverged": len(cell), "judged_by": f"id/{cell_metric(cell)}"}
    cell = candidates(chosen, cell)
    rate, head = chosen[RATES].iloc[0]
    grid = sorted(cell[RATES[0]].dropna().unique(), reverse=True)
    same = cell[RATES[0]].isna() if pd.isna(rate) else cell[RATES[0]] == rate
    return {
        "lr_backbone": rate,
        "lr_head": head,
        "lr_head_unit": chosen[LR_HEAD_UNIT].iloc[0] if LR_HEAD_UNIT in chosen else None,
        "ties": ", ".join(_rates_in_words(*tied) for tied in ties(chosen, cell)) or None,
        "grid": " ".join(f"{r:g}" for r in grid),
        "at_edge": _at_edge(rate, grid),
        "head_at_edge": _at_edge(head, cell.loc[same, RATES[1]].dropna().unique()),
        "diverged": int((cell["status"] == "diverged").sum()),
        "judged_by": None,
    }


def _rates_in_words(backbone: float, head: float) -> str:
    named = {"η_θ": backbone, "η_w": head}
    return " ".join(f"{name}={rate:g}" for name, rate in named.items() if pd.notna(rate))


def tie_notes(table: pd.DataFrame) -> list[str]:
    """A sentence per cell of the long table whose chosen rates are no better than others."""
    if "ties" not in table:
        return []
    rows = table.dropna(subset="ties").drop_duplicates(["dataset", "backbone", "method"])
    return [
        f"{row['dataset']}, {row['backbone']}, {row['method']}: "
        f"{_rates_in_words(row['lr_backbone'], row['lr_head'])} is chosen; no better by ID "
        f"{'mIoU' if row['metric'].endswith('miou') else 'accuracy'} than {row['ties']}, "
        "of equal ones the larger counts."
        for _, row in rows.iterrows()
    ]


def _at_edge(rate: float, grid: Sequence[float]) -> bool:
    return len(grid) > 1 and rate in (min(grid), max(grid))


def summary(table: pd.DataFrame, metrics: Sequence[str], title: Callable[[str], str] = str) -> pd.DataFrame:
    """The long table of one dataset and backbone in words: a row per method, a column per metric."""
    rows = []
    for method in in_order(table["method"]):
        row = table[table["method"] == method].set_index("metric")
        first = row.iloc[0]
        absent = "missing" if first["n"] else "diverged"
        numbers = [
            format_mean_std(row.loc[metric])
            if metric in row.index
            else "-"
            if frames.is_target_bn(metric)  # only methods that ask for it are evaluated so
            else absent
            for metric in metrics
        ]
        rows.append([title(method) + target_mark(method), *rates(first), str(first["n"]), *numbers])
    return pd.DataFrame(rows, columns=["method", "η_θ", "η_w", "n", *map(_metric_title, metrics)])


def markdown(table: pd.DataFrame) -> str:
    """The long table as one Markdown table per dataset and backbone, a row per method."""
    parts = []
    for names, cell in table.groupby(["dataset", "backbone"], sort=False):
        metrics = [m for m in cell["metric"].unique() if m.endswith(MEASURES)]
        metrics = frames.with_balanced(sorted(metrics, key=frames.is_ood_mean), cell["metric"])
        metrics += [m for m in ("id/cosine", "id/l2") if m in set(cell["metric"])]
        rows = summary(cell, metrics, in_markdown).rename(columns=in_markdown)
        parts += [f"### {in_markdown(', '.join(map(str, names)))}", pipe_table(rows, texts=4)]
        for by_class, note in classes(cell):
            parts += [note, pipe_table(by_class.rename(columns=in_markdown).map(in_markdown), texts=1)]
    note = (
        "Accuracies in percent, mean ± sample standard deviation (ddof = 1) over n seeds; learning rates "
        "chosen by ID accuracy on the lowest seed; * marks a choice at the edge of its grid. Cosine and L2 "
        "compare ID features before and after."
    )
    return "\n\n".join([*parts, note, *map(in_markdown, tie_notes(table))]) + "\n"


BY_CLASS = {
    f"id/{CLASS_ACCURACY}": "ID accuracy by class in percent, for the classes are unequal; "
    "balanced is the mean of these:",
    f"id/{CLASS_IOU}": "ID intersection over union by class in percent; mIoU is the mean of these:",
}
"""What the metrics of classes begin with, and what is said of them."""


def classes(table: pd.DataFrame) -> Iterator[tuple[pd.DataFrame, str]]:
    """Numbers by class of one dataset and backbone, a column per method, in words; and what they are.

    None of a classification whose classes have as many images.
    """
    for start, note in BY_CLASS.items():
        found = table[table["metric"].str.startswith(start)]
        columns = {
            method: found[found["method"] == method].set_index("metric")
            for method in in_order(found["method"])
        }
        rows = [
            [metric.removeprefix(start)]
            + [format_mean_std(of.loc[metric]) if metric in of.index else "-" for of in columns.values()]
            for metric in dict.fromkeys(found["metric"])
        ]
        if rows:
            yield pd.DataFrame(rows, columns=["class", *columns]), note


def in_markdown(text: str) -> str:
    """A text as Markdown shows it, with the signs that would be taken for marks."""
    return re.sub(r"([\\`*|<])", r"\\\1", text)


def pipe_table(rows: pd.DataFrame, texts: int) -> str:
    """Strings as a Markdown table, the columns after the first `texts` flush right.

    Without the padding of `DataFrame.to_markdown`, so that one number more changes one line of a file.
    """
    rule = ["---"] * texts + ["---:"] * (rows.shape[1] - texts)
    return "\n".join(f"| {' | '.join(line)} |" for line in (rows.columns, rule, *rows.to_numpy()))


def _metric_title(metric: str) -> str:
    split, _, kind = metric.partition("/")
    if metric.endswith(MEASURES) or kind == BALANCED:
        word = {"miou": "mIoU ", BALANCED: "balanced "}.get(kind, "")
        return f"{split_name(metric)} {word}%"
    return f"{split_name(split)} feature {'L2' if kind == 'l2' else kind}"


def rates(row: Any) -> list[str]:
    """η_θ and η_w of a row of the long table, with a * at the edge of their grids."""
    backbone, head = row["lr_backbone"], row["lr_head"]
    edge, head_edge = ("*" if row[name] else "" for name in EDGES)
    tied = "-" if pd.isna(backbone) else "= η_θ"
    return [
        "-" if pd.isna(backbone) else f"{backbone:g}{edge}",
        tied if pd.isna(head) else f"{format_head_rate(head, row.get('lr_head_unit'))}{head_edge}",
    ]


def format_head_rate(rate: float, unit: object) -> str:
    """η_w as it is set: a number, or a multiple of the rate that fits the features."""
    return f"{rate:g} auto" if unit == "auto" else f"{rate:g}"


def format_mean_std(row: Any) -> str:
    """mean ± std of a row of the long table that is indexed by metric."""
    if pd.isna(row["mean"]):
        return "diverged"
    digits = 3 if row.name.endswith("cosine") else 2
    spread = "" if pd.isna(row["std"]) else f" ± {fixed(row['std'], digits)}"
    return f"{fixed(row['mean'], digits)}{spread}"


def format_run(record: dict[str, Any], fresh: bool) -> str:
    """One run in one line, for a sweep that goes on."""
    metrics = record["metrics"]
    keys = [f"{split}{kind}" for kind in MEASURES for split in ("id", "ood")]
    found = [f"{split_name(key)} {fixed(metrics[key])} %" for key in keys if metrics.get(key) is not None]
    seconds = sum(record["time"].values())
    how = f"{seconds:.0f} s" if fresh else "taken from its record"
    line = f"{run_label(record['config'])}: {', '.join(found) or record['status']} ({how})"
    return "; ".join(filter(None, [line, divergence(record), rate_warning(record)]))


def divergence(record: dict[str, Any]) -> str:
    """When a run diverged, at which rates, and what to try; mostly nothing."""
    lost = [row for row in record["history"] if not _is_finite(row)]
    if not lost:
        return ""
    epoch, method = lost[0]["epoch"], record["config"]["method"]
    head, fitting = method["lr_head"], (record.get("head_rate") or {}).get("rate")
    absolute = head * fitting if head and fitting and method.get("lr_head_unit") else head
    too_large, backbone = "lr_backbone", method["lr_backbone"]
    if backbone is None or (absolute and fitting and absolute > max(fitting, backbone)):
        too_large = "lr_head"  # past what the features bear
    rates = ", ".join(_rate_labels(method))
    smaller = f"{method[too_large] / 10:g}"
    if too_large == "lr_head" and method.get("lr_head_unit"):
        smaller = "auto"
    kept = f"; epoch {record['best_epoch']} before it counts" if record["status"] == "finished" else ""
    return (
        f"in epoch {epoch:g} loss or logits were not finite at {rates}{kept}; "
        f"try a smaller rate, such as method.{too_large}={smaller}"
    )


def _is_finite(row: dict[str, float | None]) -> bool:
    """Whether an epoch has a loss and a metric; in a record that was read, None stands for NaN."""
    scores = (value for key, value in row.items() if key == "train/loss" or key.startswith("selection/"))
    return all(value is not None and math.isfinite(value) for value in scores)


def rate_warning(record: dict[str, Any]) -> str:
    """Which epochs of a run with a rate for the head alone were worse than a head of zeros; mostly none."""
    epochs = record.get("above_zero_head") or []  # older records have none
    if not epochs or record["config"]["method"].get("rates") != "separate":
        return ""
    named = ", ".join(f"{epoch:g}" for epoch in epochs[:3]) + (", …" if len(epochs) > 3 else "")
    return f"in epoch {named} the loss was above that of a head of zeros: a rate may be too large"


def run_label(config: dict[str, Any]) -> str:
    """What tells a run from others of its dataset and backbone: method, rates, seed."""
    name = frames.method_of(config)
    return " ".join([name + target_mark(name), *_rate_labels(config["method"]), f"seed={config['seed']}"])


def _rate_labels(method: dict[str, Any]) -> list[str]:
    rates = [f"η_θ={method['lr_backbone']:g}"] if method["lr_backbone"] else []
    if head := method["lr_head"]:
        rates.append(f"η_w={format_head_rate(head, method.get('lr_head_unit'))}")
    return rates


def run_table(runs: pd.DataFrame, *, target_bn: bool = False) -> Table:
    """Accuracies of runs for the terminal, one row each.

    target_bn: those with the BN statistics of the evaluated batches, instead of the others.
    """
    columns = [column for column in accuracy_columns(runs) if frames.is_target_bn(column) == target_bn]
    columns = columns if target_bn else frames.with_balanced(columns, runs.columns)
    table = Table()
    varying = [c for c in (DATASET, BACKBONE, *RATES, SEED) if runs[c].nunique(dropna=False) > 1]
    table.add_column("method", overflow="fold")
    for column in varying:
        table.add_column({DATASET: "dataset", BACKBONE: "backbone"}.get(column, column.rpartition(".")[2]))
    titles = (
        [*map(_metric_title, columns), *([] if target_bn else ["ID feature L2"])] if columns else ["state"]
    )
    for title in titles:
        table.add_column(title, justify="right")
    for _, run in runs.iterrows():
        name = str(run[METHOD])
        cells = [name + target_mark(name), *(_setting(run[c]) for c in varying)]
        if run["status"] == "finished":
            cells += ["-" if pd.isna(run[c]) else fixed(run[c]) for c in columns]
            distance = run.get("id/l2")
            cells += [] if target_bn else ["-" if pd.isna(distance) else fixed(distance)]
        else:
            cells.append(str(run["status"]))
        table.add_row(*cells)
    return table


def _setting(value: Any) -> str:
    return "-" if pd.isna(value) else f"{value:g}" if isinstance(value, float) else f"{value}"


def class_table(record: dict[str, Any]) -> Table | None:
    """IoU by class of one run, or accuracy on splits whose classes are unequal; None if there are none."""
    found, names = frames.unequal_splits(record), record.get("data", {}).get("classes", [])
    if ious := _iou_columns(record["metrics"]):
        table = Table("class")
        for split in ious:
            table.add_column(f"{split_name(split)} IoU %", justify="right")
        for name in names:
            values = [of.get(name) for of in ious.values()]
            table.add_row(name, *("-" if value is None else fixed(value) for value in values))
        return table
    if not found:
        return None
    table = Table("class")
    for split in found:
        table.add_column(f"{split_name(split)} images", justify="right")
        table.add_column(f"{split_name(split)} %", justify="right")
    for label, name in enumerate(names):
        cells = [
            [f"{of['images'][label]:,}", "-" if (value := of["accuracy"][label]) is None else fixed(value)]
            for of in found.values()
        ]
        table.add_row(name, *(text for pair in cells for text in pair))
    return table


def _iou_columns(metrics: dict[str, float | None]) -> dict[str, dict[str, float | None]]:
    """By split, but for means, the IoU of each class; none of a classification."""
    found: dict[str, dict[str, float | None]] = {}
    for key, value in metrics.items():
        split, _, metric = key.partition("/")
        if metric.startswith(CLASS_IOU) and not frames.is_ood_mean(key) and split != "holdout":
            found.setdefault(split, {})[metric.removeprefix(CLASS_IOU)] = value
    return found


def show(directories: Sequence[Path], title: str) -> None:
    """Print the table of these runs."""
    runs = frames.from_directories(directories)
    if runs.empty:
        return
    terminal = progress.terminal(width=None if sys.stdout.isatty() else 120)
    print(title)  # not of the table, which would break a path that is wider
    terminal.print(run_table(runs))
    if columns := [*filter(frames.is_target_bn, accuracy_columns(runs))]:
        print("the same with the BN statistics of the evaluated batches")
        terminal.print(run_table(runs.dropna(subset=columns, how="all"), target_bn=True))
