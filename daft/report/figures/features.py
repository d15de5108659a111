"""How far the features moved (Figure 1): cosine similarity and L2 distance of before and after."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from daft.report import tables
from daft.report.figures import style
from daft.report.methods import in_order
from daft.runs import frames

MEASURES = {"cosine": "cosine similarity", "l2": "L2 distance"}


BINS = 50
"""In a picture, at most; the records' own are finer."""


def distributions(loaded: Sequence[dict[str, Any]], methods: Sequence[str], split: str = "id") -> Figure:
    """Figure 1: densities of both measures over the images of a split, of all methods in one panel each.

    loaded: records of one dataset and backbone.
    """
    figure, (panels,) = style.canvas(1, 2, 3.3)
    for axes, measure in zip(panels, MEASURES, strict=True):
        overlay(axes, loaded, methods, split, measure)
        better = "higher" if measure == "cosine" else "lower"
        axes.set_title(f"{MEASURES[measure].capitalize()} ({better} is less distortion)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(methods))
    style.note(figure, _note(loaded, methods, split))
    return figure


def overlay(
    axes: Axes, loaded: Sequence[dict[str, Any]], methods: Iterable[str], split: str, measure: str
) -> None:
    """Densities of one measure on one split, a colour per method, with their means as dashed lines."""
    found = {m: _histograms(loaded, m, split, measure) for m in methods}
    found = {m: histograms for m, histograms in found.items() if histograms}
    if not found:
        return
    edges = _edges([h for histograms in found.values() for h in histograms], measure)
    for method, histograms in found.items():
        _shape(axes, density(histograms, edges), edges, 0, method)
        axes.axvline(_mean(histograms), color=style.colour(method), linestyle="--", linewidth=1)
    axes.set_xlim(edges[0], edges[-1])
    axes.locator_params(axis="x", nbins=5)  # cosines that are all but 1 have long labels
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"{MEASURES[measure]} of {_split(split)} features before and after")
    axes.set_ylabel("density of images")


def ridges(loaded: Sequence[dict[str, Any]], measure: str) -> Figure:
    """The same per split, a row per method, which many methods need; the vertical tick is the mean.

    loaded: records of one dataset and backbone.
    """
    methods = trained_methods(loaded)
    splits = [s for s in loaded[0]["distortion"] if s != "holdout"]
    figure, (panels,) = style.canvas(1, len(splits), 0.9 + 0.5 * len(methods), sharey=True, sharex=True)
    every = [h for s in splits for m in methods for h in _histograms(loaded, m, s, measure)]
    edges = _edges(every, measure)
    for axes, split in zip(panels, splits, strict=True):
        found = {m: _histograms(loaded, m, split, measure) for m in methods}
        for row, (method, histograms) in enumerate(found.items()):
            if not histograms:
                continue
            heights = density(histograms, edges)
            base = len(methods) - 1 - row
            _shape(axes, 0.85 * heights / heights.max(), edges, base, method)
            mean = _mean(histograms)
            axes.plot([mean, mean], [base, base + 0.85], color=style.INK, linewidth=1)
            # The number stands where the curve is not.
            left = mean > (edges[0] + edges[-1]) / 2
            axes.text(
                edges[0] if left else edges[-1],
                base + 0.62,
                f"{mean:.2f}" if measure == "cosine" else f"{mean:.1f}",
                ha="left" if left else "right",
                fontsize=8,
                color=style.FAINT,
            )
        axes.set_title(_split(split))
        axes.set_xlim(edges[0], edges[-1])
        axes.locator_params(axis="x", nbins=max(2, 10 // len(splits)))
        axes.spines["left"].set_visible(False)
        axes.tick_params(left=False)
    panels[0].set_yticks([len(methods) - 1 - i for i in range(len(methods))], map(style.label, methods))
    panels[0].set_ylim(-0.1, len(methods))
    figure.suptitle(f"{MEASURES[measure].capitalize()} of features before and after fine-tuning")
    style.note(
        figure,
        f"distribution over images, each to its own height; line and number: mean; {_runs(loaded, methods)}",
    )
    return figure


def moved(runs: pd.DataFrame) -> Figure:
    """How far the ID features moved, per method: small marks are runs, the large one is their mean.

    runs: selected runs of one dataset and backbone.
    """
    methods = in_order(runs[frames.METHOD])
    figure, (panels,) = style.canvas(1, 2, 1.1 + 0.3 * len(methods), sharey=True)
    for axes, measure in zip(panels, ("l2", "cosine"), strict=True):
        for y, method in enumerate(methods):
            values = runs[runs[frames.METHOD] == method][f"id/{measure}"]
            axes.scatter(values, [y] * len(values), s=14, alpha=0.5, linewidths=0, **style.mark(method))
            axes.scatter(values.mean(), y, s=60, **style.mark(method))
        axes.set_xlabel(f"{MEASURES[measure]} of ID features before and after")
        axes.grid()
    panels[0].set_yticks(range(len(methods)), [style.label(m) for m in methods])
    panels[0].set_ylim(len(methods) - 0.5, -0.5)
    style.note(figure, "large marks: means over seeds; small marks: single runs")
    return figure


def methods_of(loaded: Iterable[dict[str, Any]], split: str = "id") -> list[str]:
    """The methods whose records say how far the features of a split moved."""
    return in_order(frames.method_of(r["config"]) for r in loaded if _usable(r["distortion"].get(split, {})))


def trained_methods(loaded: Iterable[dict[str, Any]]) -> list[str]:
    """Those of `methods_of` that train the backbone: of others, as of LP, features do not move."""
    return methods_of(r for r in loaded if r["config"]["method"].get("rates") != "frozen")


def density(histograms: Sequence[dict[str, Any]], edges: np.ndarray) -> np.ndarray:
    """Mean density of runs on common edges; the images of one of their own bins count as spread evenly."""
    shares = []
    for histogram in histograms:
        cumulative = np.concatenate([[0], np.cumsum(histogram["counts"])]) / np.sum(histogram["counts"])
        shares.append(np.diff(np.interp(edges, histogram["edges"], cumulative)))
    return np.mean(shares, axis=0) / np.diff(edges)


def _edges(histograms: Sequence[dict[str, Any]], measure: str) -> np.ndarray:
    """Common bins: of cosine the coarsest records' own, some in one, from the lowest filled; L2 from 0 on."""
    if measure == "cosine":
        edges = np.array(min((h["edges"] for h in histograms), key=len))  # else heights would not compare
        lowest = min(h["edges"][int(np.flatnonzero(h["counts"])[0])] for h in histograms)
        bins = int(np.sum(edges >= lowest))  # and one below, which is empty
        pooled = -(-bins // BINS)
        return edges[::-1][: bins + pooled : pooled][::-1]
    return np.linspace(0, max(h["edges"][-1] for h in histograms), BINS + 1)


def _shape(axes: Axes, heights: np.ndarray, edges: np.ndarray, base: float, method: str) -> None:
    colour = style.colour(method)
    axes.stairs(heights + base, edges, baseline=base, color=colour, fill=True, alpha=0.25)
    axes.stairs(heights + base, edges, baseline=base, color=colour, label=style.label(method), linewidth=1.3)


def _histograms(
    loaded: Iterable[dict[str, Any]], method: str, split: str, measure: str
) -> list[dict[str, Any]]:
    of_method = [r["distortion"].get(split, {}) for r in loaded if frames.method_of(r["config"]) == method]
    return [measures[measure] for measures in of_method if _usable(measures)]


def _usable(measures: dict[str, Any]) -> bool:
    return all(measures.get(measure, {}).get("counts") for measure in MEASURES)


def _mean(histograms: Sequence[dict[str, Any]]) -> float:
    return float(np.mean([h["mean"] for h in histograms]))


def _split(split: str) -> str:
    return tables.split_name(split)


def _runs(loaded: Sequence[dict[str, Any]], methods: Iterable[str]) -> str:
    """`n = 3 seeds`: how many runs are pooled."""
    counts = pd.Series([frames.method_of(r["config"]) for r in loaded]).value_counts()
    return f"{style.count(counts.reindex([*methods], fill_value=0))} pooled"


def _note(loaded: Sequence[dict[str, Any]], methods: Sequence[str], split: str) -> str:
    config = loaded[0]["config"]
    histogram = _histograms(loaded, methods[0], split, "cosine")[0]
    return (
        f"{config['dataset']['name']}, {config['backbone']['name']}: {sum(histogram['counts']):,} "
        f"{_split(split)} images, {_runs(loaded, methods)}; dashed: mean"
    )
