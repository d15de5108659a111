"""What BN conversion does to each strategy: arrows over ID and OOD accuracy."""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from daft.config.parts import TARGET_BN, target_mark
from daft.report.figures import style
from daft.report.methods import PAIRS, in_order
from daft.runs import frames

COLOURS = (
    "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#1b1b1b", "#882255",
    "#b59f00", "#332288", "#56b4e9", "#a6611a", "#117733", "#7b3294",
)  # fmt: skip
"""Of the strategies, one after the other."""


def pairs(methods: list[str]) -> dict[str, str]:
    """The methods of which there is the same with BN conversion, and that, in the order of legends."""
    found = {}
    for name in in_order(methods):
        plain, *parts = name.split("+")
        converted = "+".join([PAIRS.get(plain, plain), *parts])
        if converted != name and converted in methods:
            found[name] = converted
    return found


def ood(runs: pd.DataFrame) -> "pd.Series[float]":
    """The mean OOD accuracy of runs of one method; with BN at test time, of that."""
    at_test_time = f"ood{TARGET_BN}"
    if runs.reindex(columns=[f"{at_test_time}/{frames.cell_metric(runs)}"]).notna().any(axis=None):
        return frames.score(runs, at_test_time)
    return frames.score(runs, "ood")


def arrows(runs: pd.DataFrame) -> Figure:
    """Mean OOD over ID accuracy: arrows from strategies to the same with BN conversion; others are marks.

    runs: selected ones, of one dataset and backbone; a strategy stands at the mean over its seeds.
    """
    points: dict[str, tuple[float, float]] = {}
    for method, cell in runs.groupby(frames.METHOD):
        points[str(method)] = (frames.score(cell, "id").mean(), ood(cell).mean())
    found = pairs([*points])
    alone = [name for name in in_order(points) if name not in {*found, *found.values()}]
    figure, ((axes,),) = style.canvas(1, 1, 5.4)
    looks: dict[str, dict[str, Any]] = {
        name: {"color": COLOURS[i % len(COLOURS)]} for i, name in enumerate(found)
    }
    for name, converted in found.items():
        start, end = points[name], points[converted]
        head = {"arrowstyle": "-|>", "shrinkA": 4, "shrinkB": 4, "linewidth": 1.4, **looks[name]}
        axes.annotate("", end, start, arrowprops=head)
        axes.plot(*start, "o", markerfacecolor="white", markersize=7, **looks[name])
        axes.plot(*end, "o", markersize=7, label=_strategy(name), **looks[name])
    for name in alone:
        look = style.mark(name) | {"color": style.FAINT}  # the colours are the arrows'
        axes.plot(*points[name], linestyle="none", markersize=8, label=style.label(name), **look)
    axes.set_xlabel(f"ID {style.metric_label(runs)} (%)")
    axes.set_ylabel(f"mean OOD {style.metric_label(runs)} (%)")
    axes.grid()
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1))
    names = runs.iloc[0]
    counts = runs.groupby(frames.METHOD)[frames.SEED].nunique()
    axes.set_title(f"{names[frames.DATASET]}, {names[frames.BACKBONE]}: {style.count(counts)}")
    style.note(
        figure, "arrows: from a strategy (open) to the same with BN conversion (full); means over seeds"
    )
    return figure


def _strategy(name: str) -> str:
    """What both ends of an arrow have in common: the parts of a method, or the method."""
    plain, *parts = name.split("+")
    return " + ".join(parts) + target_mark(name) if parts else style.label(plain)
