"""Accuracies: per split and method, ID against OOD, over the learning rates."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from daft.report import tables
from daft.report.figures import features, style
from daft.report.methods import in_order
from daft.runs import frames
from daft.sweep import selection

RATE_MARKERS = "o^sDvPX*"
"""Of the head's rates, the one with the most runs first."""

ROOMY = 40
"""Bars whose numbers can stand upright."""


def overview(runs: pd.DataFrame, loaded: Sequence[dict[str, Any]]) -> Figure:
    """One dataset at a glance: accuracy per split, and how far the features moved, per method.

    runs: selected runs of one dataset and backbone. loaded: their records.
    """
    methods = in_order(runs[frames.METHOD])
    columns = [c for c in frames.accuracy_columns(runs) if not frames.is_target_bn(c)]
    figure, ((upper,), (lower,)) = style.canvas(2, 1, 5.4, height_ratios=(1.2, 1))
    width = 0.8 / len(methods)
    upright = len(methods) * len(columns) > ROOMY
    for i, method in enumerate(methods):
        cell = runs[runs[frames.METHOD] == method]
        x = np.arange(len(columns)) + (i - (len(methods) - 1) / 2) * width
        means, stds = cell[columns].mean(), cell[columns].std(ddof=1)
        bars = {"yerr": stds, "error_kw": {"elinewidth": 0.8}} if len(cell) > 1 else {}
        upper.bar(x, means, width, color=style.colour(method), **bars)
        for position, mean, std in zip(x, means, stds.fillna(0), strict=True):
            upper.text(
                position,
                mean + std + 1,
                f"{mean:.0f}",
                ha="center",
                va="bottom",
                fontsize=7,
                rotation=90 if upright else 0,
            )
    upper.set_xticks(range(len(columns)), [tables.split_name(c) for c in columns])
    upper.set_ylabel(f"{style.metric_label(runs)} (%)")
    upper.set_ylim(0, 112 if upright else 105)
    upper.set_title("By split")
    trained = features.trained_methods(loaded)
    features.overlay(lower, loaded, [m for m in methods if m in trained], "id", "cosine")
    lower.set_title("Feature distortion (as Figure 1 of the paper)")
    figure.legend(
        [Patch(color=style.colour(m)) for m in methods],
        [style.label(m) for m in methods],
        ncols=len(methods),
        loc="outside lower center",
    )
    names = runs.iloc[0]
    spread = style.seeds(runs.groupby(frames.METHOD)[frames.SEED].nunique())
    figure.suptitle(f"{names[frames.DATASET]}, {names[frames.BACKBONE]}: {spread}")
    return figure


def id_against_ood(runs: pd.DataFrame) -> Figure:
    """Mean OOD accuracy over ID accuracy per method, a panel per dataset and backbone.

    runs: selected ones; the small marks are single runs.
    """
    groups = list(runs.groupby([frames.DATASET, frames.BACKBONE], sort=False))
    figure, (panels,) = style.canvas(1, len(groups), 4.2, width=max(5.6, 4.6 * len(groups)))
    for axes, (names, group) in zip(panels, groups, strict=True):
        for method in in_order(group[frames.METHOD]):
            cell = group[group[frames.METHOD] == method]
            x, y = frames.score(cell, "id"), frames.score(cell, "ood")
            several = len(cell) > 1
            if several:
                axes.scatter(x, y, s=14, alpha=0.5, linewidths=0, **style.mark(method))
            axes.errorbar(
                x.mean(),
                y.mean(),
                xerr=x.std(ddof=1) if several else None,
                yerr=y.std(ddof=1) if several else None,
                markersize=8,
                capsize=3,
                linestyle="none",
                label=f"{style.label(method)} (n = {len(cell)})",
                **style.mark(method),
            )
        axes.set_title(", ".join(map(str, names)))
        axes.set_xlabel(f"ID {style.metric_label(group)} (%)")
        axes.set_ylabel(f"mean OOD {style.metric_label(group)} (%)")
        axes.grid()
        # Beside a single panel, below where there are several: nowhere over the marks.
        beside = {"loc": "upper left", "bbox_to_anchor": (1.02, 1)}
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "ncols": 2}
        frame = {"frameon": True, "fancybox": False, "edgecolor": "#cccccc", "borderpad": 0.8}
        axes.legend(**(beside if len(groups) == 1 else below), **frame)  # else its marks look like results
    style.note(figure, "large marks: means over n seeds, bars ± sample standard deviation (ddof = 1)")
    return figure


def learning_rates(runs: pd.DataFrame, chosen: float) -> Figure:
    """ID and mean OOD accuracy over η_θ of one cell's grid, a line per η_w; × marks divergence.

    runs: of one dataset, backbone and method. chosen: the selected η_θ.
    """
    grid = runs[runs[frames.SEED] == selection.grid_seed(runs)].sort_values(frames.RATES[0])
    name, measure = str(grid[frames.METHOD].iloc[0]), frames.cell_metric(grid)
    of_head = list(grid.groupby(frames.RATES[1], dropna=False))
    figure, ((axes,),) = style.canvas(1, 1, max(3, 0.8 + 0.4 * len(of_head)), width=5.6)
    for i, (rate, line) in enumerate(sorted(of_head, key=lambda group: -len(group[1]))):
        shade = {"color": style.colour(name), "alpha": max(1 - 0.2 * i, 0.4)}
        shade |= {"marker": RATE_MARKERS[i % len(RATE_MARKERS)], "markersize": 5.5}
        suffix = "" if len(of_head) == 1 else f", $\\eta_w$ = {rate:g}"
        for metric, look in (
            (f"id/{measure}", {"linestyle": "-"}),
            (f"ood/{measure}", {"linestyle": "--", "markerfacecolor": "white"}),
        ):
            if metric in line:
                split = f"{tables.split_name(metric)}{suffix}"
                axes.plot(line[frames.RATES[0]], line[metric], label=split, **shade, **look)
    diverged = grid[grid["status"] == "diverged"][frames.RATES[0]]
    if len(diverged):
        floor = {"transform": axes.get_xaxis_transform(), "label": "diverged"}
        axes.plot(diverged, [0.04] * len(diverged), "kx", **floor)
    axes.axvline(chosen, color=style.INK, linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    rates = sorted(grid[frames.RATES[0]].dropna().unique())
    axes.set_xticks(rates, [f"{rate:.3g}" for rate in rates])
    axes.minorticks_off()
    axes.set_xlabel(r"backbone learning rate $\eta_\theta$ (dotted: chosen by ID accuracy)")
    axes.set_ylabel(f"{style.metric_label(grid)} (%)")
    first = grid.iloc[0]
    axes.set_title(f"{style.label(name)}, {first[frames.DATASET]}, {first[frames.BACKBONE]}")
    style.note(figure, f"seed {first[frames.SEED]}, by which rates are chosen: n = 1 run each")
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1))
    axes.grid()
    return figure
