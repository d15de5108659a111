"""Pictures from records: ID against OOD accuracy, accuracy per split, feature distortion."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from daft import tables

LABELS = {
    "lp": "LP",
    "ft": "FT",
    "ft_bnc": "FT + conversion",
    "lp_ft": "LP-FT",
    "lp_ft_train": "LP-FT, train mode",
    "lp_ft_bnc": "LP-FT + conversion",
    "integrated_lp_ft": "Integrated LP-FT",
    "integrated_lp_ft_train": "Integrated, train mode",
    "daft": "DAFT",
}
# Colour-blind safe (Okabe and Ito), and a marker each for print.
COLOURS = {"lp": "#999999", "ft": "#d55e00", "lp_ft": "#0072b2", "daft": "#009e73"}
COLOURS |= {"ft_bnc": "#e69f00", "lp_ft_bnc": "#56b4e9", "integrated_lp_ft": "#cc79a7"}
COLOURS |= {"lp_ft_train": "#1b1b1b", "integrated_lp_ft_train": "#b59f00"}
MARKERS = {"lp": "s", "ft": "^", "lp_ft": "D", "daft": "o"}
MARKERS |= {"ft_bnc": "v", "lp_ft_bnc": "d", "integrated_lp_ft": "P"}
MARKERS |= {"lp_ft_train": "X", "integrated_lp_ft_train": "p"}

File = Path | BytesIO
"""A file by its suffix, or SVG in memory."""


def overview(runs: pd.DataFrame, loaded: Sequence[dict[str, Any]], file: File) -> None:
    """One dataset at a glance: accuracy per split, and how far the features moved, per method.

    runs: selected runs of one dataset and backbone. loaded: their records.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), width_ratios=(1.6, 1))
    methods = _methods(runs)
    columns = tables.accuracies(runs)
    width = 0.8 / len(methods)
    for i, method in enumerate(methods):
        cell = runs[runs[tables.METHOD] == method]
        x = np.arange(len(columns)) + (i - (len(methods) - 1) / 2) * width
        means, stds = cell[columns].mean(), cell[columns].std(ddof=1)
        left.bar(x, means, width, yerr=stds if len(cell) > 1 else None, color=COLOURS.get(method))
        for position, mean, std in zip(x, means, stds.fillna(0), strict=True):
            left.text(position, mean + std + 0.8, f"{mean:.0f}", ha="center", va="bottom", fontsize=7)
    left.set_xticks(range(len(columns)), [tables.split_name(c) for c in columns])
    left.set_ylabel("accuracy (%)")
    left.set_ylim(0, 105)
    left.set_title(f"Accuracy, {_seeds(runs.groupby(tables.METHOD)[tables.SEED].nunique())}", fontsize=10)
    for method in methods:
        if method == "lp":
            continue  # its features do not move
        records = [r for r in loaded if r["config"]["method"]["name"] == method]
        _density(right, [r["distortion"]["id"]["cosine"] for r in records], method)
    right.set_xlabel("cosine similarity of ID features before and after")
    right.set_ylabel("density of images")
    right.set_title("Feature distortion (as Figure 1 of the paper)", fontsize=10)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    handles = [Patch(color=COLOURS.get(m)) for m in methods]
    figure.legend(
        handles, [LABELS.get(m, m) for m in methods], ncols=len(methods), loc="outside lower center"
    )
    names = runs.iloc[0]
    figure.suptitle(f"{names[tables.DATASET]}, {names[tables.BACKBONE]}", fontsize=11)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    _save(figure, file)


def id_against_ood(runs: pd.DataFrame, file: File) -> None:
    """Mean OOD accuracy over ID accuracy per method, a panel per dataset; small marks are single runs."""
    datasets = list(dict.fromkeys(runs[tables.DATASET]))
    figure, panels = plt.subplots(1, len(datasets), figsize=(4.6 * len(datasets), 4), squeeze=False)
    for axes, dataset in zip(panels[0], datasets, strict=True):
        of_dataset = runs[runs[tables.DATASET] == dataset]
        for method in _methods(of_dataset):
            cell = of_dataset[of_dataset[tables.METHOD] == method]
            x, y = cell["id/accuracy"], cell["ood/accuracy"]
            style: dict[str, Any] = {"color": COLOURS.get(method), "marker": MARKERS.get(method, "o")}
            axes.scatter(x, y, s=14, alpha=0.5, linewidths=0, **style)
            several = len(cell) > 1
            axes.errorbar(
                x.mean(),
                y.mean(),
                xerr=x.std(ddof=1) if several else None,
                yerr=y.std(ddof=1) if several else None,
                markersize=9,
                capsize=3,
                label=f"{LABELS.get(method, method)} (n = {len(cell)})",
                **style,
            )
        axes.set_title(f"{dataset}, {of_dataset[tables.BACKBONE].iloc[0]}", fontsize=10)
        axes.set_xlabel("ID accuracy (%)")
        axes.set_ylabel("mean OOD accuracy (%)")
        _plain(axes)
        axes.legend(fontsize=8)
    figure.tight_layout()
    _save(figure, file)


def learning_rates(runs: pd.DataFrame, chosen: float, file: File) -> None:
    """ID and mean OOD accuracy over η_θ of one cell at its lowest seed, a line per η_w; × marks divergence.

    runs: of one dataset, backbone and method. chosen: the selected η_θ.
    """
    grid = runs[runs[tables.SEED] == runs[tables.SEED].min()].sort_values(tables.RATES[0])
    figure, axes = plt.subplots(figsize=(4.2, 3))
    name, measure = str(grid[tables.METHOD].iloc[0]), tables.measure(grid)
    of_head = list(grid.groupby(tables.RATES[1], dropna=False))
    for i, (rate, line) in enumerate(sorted(of_head, key=lambda group: -len(group[1]))):
        shade = {"color": COLOURS.get(name, "#1b1b1b"), "alpha": max(1 - 0.25 * i, 0.25)}
        suffix = "" if len(of_head) == 1 else f", η_w = {rate:g}"
        for metric, style in ((f"id/{measure}", "o-"), (f"ood/{measure}", "s--")):
            if metric in line:
                label = f"{tables.split_name(metric)}{suffix}"
                axes.plot(line[tables.RATES[0]], line[metric], style, markersize=5, label=label, **shade)
    diverged = grid[grid["status"] == "diverged"][tables.RATES[0]]
    axes.plot(diverged, [0.04] * len(diverged), "kx", transform=axes.get_xaxis_transform())
    axes.axvline(chosen, color="#1b1b1b", linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.set_xlabel("η_θ (dotted: chosen by ID accuracy)")
    axes.set_ylabel(f"{measure} (%)")
    axes.set_title(LABELS.get(name, name), fontsize=10)
    axes.legend(fontsize=7)
    _plain(axes)
    figure.tight_layout()
    _save(figure, file)


def distortion(runs: pd.DataFrame, file: File) -> None:
    """How far the ID features moved, per method: small marks are runs, the large one is their mean.

    runs: selected runs of one dataset and backbone.
    """
    methods = _methods(runs)
    figure, panels = plt.subplots(1, 2, figsize=(6.4, 0.9 + 0.35 * len(methods)), sharey=True)
    for axes, measure, label in zip(
        panels, ("l2", "cosine"), ("L2 distance", "cosine similarity"), strict=True
    ):
        for y, method in enumerate(methods):
            values = runs[runs[tables.METHOD] == method][f"id/{measure}"]
            style: dict[str, Any] = {"color": COLOURS.get(method), "marker": MARKERS.get(method, "o")}
            axes.scatter(values, [y] * len(values), s=14, alpha=0.5, linewidths=0, **style)
            axes.scatter(values.mean(), y, s=70, **style)
        axes.set_xlabel(f"{label} of ID features", fontsize=9)
        _plain(axes)
    panels[0].set_yticks(range(len(methods)), [LABELS.get(m, m) for m in methods])
    panels[0].set_ylim(len(methods) - 0.5, -0.5)
    figure.tight_layout()
    _save(figure, file)


def _plain(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _methods(runs: pd.DataFrame) -> list[str]:
    return sorted(dict.fromkeys(runs[tables.METHOD]), key=tables.method_order)


def _seeds(counts: "pd.Series[int]") -> str:
    low, high = int(counts.min()), int(counts.max())
    if high == 1:
        return "one seed"
    n = f"{low}" if low == high else f"{low} to {high}"
    return f"mean of {n} seeds, bars ± sample std (ddof = 1)"


def _density(axes: Axes, histograms: list[dict[str, Any]], method: str) -> None:
    """Pooled histogram of several runs as a density, with its mean as a line."""
    edges = np.array(histograms[0]["edges"])
    counts = np.sum([h["counts"] for h in histograms], axis=0)
    colour = COLOURS.get(method)
    density = counts / counts.sum() / np.diff(edges)
    axes.stairs(density, edges, color=colour, fill=True, alpha=0.25)
    axes.stairs(density, edges, color=colour)
    axes.axvline(float(np.mean([h["mean"] for h in histograms])), color=colour, linestyle="--", linewidth=1)
    filled = edges[:-1][counts > 0]
    low = float(filled[0]) if len(filled) else -1.0
    axes.set_xlim(min(axes.get_xlim()[0] if axes.get_xlim()[1] == 1 else 1.0, low), 1)


def _save(figure: Any, file: File) -> None:
    if isinstance(file, Path):
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=130)
    else:  # text stays text, and the same figure is the same bytes
        with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "daft"}):
            figure.savefig(file, format="svg", metadata={"Date": None})
    plt.close(figure)
