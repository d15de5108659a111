"""Pictures from records: ID against OOD accuracy, accuracy per split, feature distortion."""

from collections.abc import Sequence
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

LABELS = {"lp": "LP", "ft": "FT", "lp_ft": "LP-FT", "daft": "DAFT"}
# Colour-blind safe (Okabe and Ito), and a marker each for print.
COLOURS = {"lp": "#999999", "ft": "#d55e00", "lp_ft": "#0072b2", "daft": "#009e73"}
MARKERS = {"lp": "s", "ft": "^", "lp_ft": "D", "daft": "o"}


def overview(runs: pd.DataFrame, loaded: Sequence[dict[str, Any]], file: Path) -> None:
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


def id_against_ood(runs: pd.DataFrame, file: Path) -> None:
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
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8)
    figure.tight_layout()
    _save(figure, file)


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


def _save(figure: Any, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)
    plt.close(figure)
