"""How the result depends on a setting: training images, conversion batches, learning rates, the shift."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.transforms import ScaledTranslation, Transform

from daft.common.errors import UserError
from daft.config import schema
from daft.report.figures import style
from daft.report.methods import PAIRS, in_order
from daft.runs import frames
from daft.sweep import selection

IMAGES, BATCHES, STRENGTH = "train.images", "conversion.batches", "config.dataset.shift_strength"
"""Columns by which runs are told apart: images trained on, mini-batches of the conversion, and the strength
of the shift between pretraining and target, a number of the dataset's own scale."""

SETTING = "config.method.conversion_batches"
"""What BATCHES differ by in a study of them."""

UNIT = "config.method.lr_head_unit"

EPOCHS = "epochs_to_95"

ENOUGH = 0.95
"""Of the last epoch's accuracy."""

APART = 4.0
"""Points of a page between the bars of neighbouring methods."""

ACCURACIES = {"id/accuracy": "ID accuracy (%)", "ood/accuracy": "mean OOD accuracy (%)"}
ACCURACIES |= {"id/miou": "ID mIoU (%)", "ood/miou": "mean OOD mIoU (%)"}


def frame(loaded: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """`frames.from_records` and what these pictures need besides: IMAGES, BATCHES, EPOCHS, `bn_shift`."""
    runs = frames.from_records(loaded)
    counted = [record.get("data", {}).get("images", {}) for record in loaded]  # records of before have none
    runs[IMAGES] = [images.get("train") for images in counted]
    shifts = [record.get("bn_shift", []) for record in loaded]
    runs["bn_shift"] = shifts
    runs[BATCHES] = [rows[0]["batches"] if rows else np.nan for rows in shifts]
    runs[EPOCHS] = [epochs_to_enough(record) for record in loaded]
    return runs


def epochs_to_enough(record: Mapping[str, Any]) -> float:
    """The first epoch with 95 % of the last one's accuracy, on the split that selects; NaN if diverged."""
    metric = f"selection/{schema.metric_name(record['config'].get('segmentation'))}"
    accuracies = [row.get(metric) for row in record["history"]]
    if record["status"] != "finished" or not accuracies or None in accuracies:
        return float("nan")
    return next(
        float(row["epoch"])
        for row, accuracy in zip(record["history"], accuracies, strict=True)
        if accuracy >= ENOUGH * accuracies[-1]
    )


def training_size(runs: pd.DataFrame) -> Figure:
    """Accuracy over the number of training images, per method, at the rates that each size selects.

    runs: of one dataset and backbone, that differ in it. Raises UserError if they do not.
    """
    chosen = _selected(runs, IMAGES, "training set sizes (dataset.train.images)")
    most = chosen[IMAGES].max()
    figure, panels = _panels(chosen)
    for axes, metric in zip(panels, _metrics(chosen), strict=True):
        _curves(axes, chosen, IMAGES, metric)
        axes.set_ylabel(ACCURACIES[metric])
        _log_ticks(axes, chosen[IMAGES], lambda n: f"{_percent(n / most)} %\n{n:,.0f}")
        axes.set_xlabel("share of the largest training set, and images")
    return _finished(figure, panels, chosen, [frames.METHOD, IMAGES])


def conversion_batches(runs: pd.DataFrame) -> Figure:
    """How far the conversion's estimate is from that of all mini-batches, and accuracy, over their number.

    runs: of one dataset, backbone and a converting method, that differ in it. Raises UserError if they do
    not.
    """
    runs = runs[runs[BATCHES].notna()]
    if SETTING in runs and runs[SETTING].nunique(dropna=False) < 2:  # as of training sets of several sizes
        raise UserError("runs have 1 value of method.conversion_batches; the picture needs two or more")
    chosen = _selected(runs, BATCHES, "numbers of mini-batches (method.conversion_batches)")
    metrics = _metrics(chosen)
    figure, (panels,) = style.canvas(1, 1 + len(metrics), 3.2)
    errors = estimate_errors(chosen)
    left = panels[0]
    names = {"mean_shift": "mean, in source std", "log2_std_ratio": "std, log₂ ratio"}
    for (measure, name), mark in zip(names.items(), ("o-", "s--"), strict=True):
        over = errors.groupby(BATCHES)[measure]
        left.errorbar(
            over.mean().index,
            over.mean(),
            yerr=over.std(ddof=1),
            fmt=mark,
            markersize=4.5,
            capsize=2,
            color=style.INK,
            label=name,
        )
    left.set_yscale("log")
    left.set_ylabel("distance from the estimate of all\n(root mean square over BN layers)")
    left.grid()
    for axes, metric in zip(panels[1:], metrics, strict=True):
        _curves(axes, chosen, BATCHES, metric)
        axes.set_ylabel(ACCURACIES[metric])
    most = chosen[BATCHES].max()
    for axes in panels:
        _log_ticks(axes, chosen[BATCHES], lambda n: "all" if n == most else f"{n:g}")
        axes.set_xlabel("mini-batches of the conversion")
    zeros = (errors.groupby(BATCHES)[[*names]].mean() == 0).sum()  # which have no place on a log axis
    unshown = [f"{names[str(name)]}, {count}" for name, count in zeros.items() if count]
    more = f"distances of 0, not on the log axis: {'; '.join(unshown)}" if unshown else ""
    return _finished(figure, panels[:2], chosen, [frames.METHOD, BATCHES], more)


def estimate_errors(runs: pd.DataFrame) -> pd.DataFrame:
    """A row per run that measured fewer than all batches: BATCHES, mean_shift and log2_std_ratio.

    Each is the root mean square over BN layers of the difference from the run of the same method and seed
    with the most batches; a layer's own is a mean over its channels (`distortion.shift_table`).
    """
    rows = []
    measures = ["mean_shift", "log2_std_ratio"]
    for _, same in runs.groupby([frames.METHOD, frames.SEED]):
        best = same.sort_values(BATCHES).iloc[-1]
        reference = pd.DataFrame(best["bn_shift"]).set_index("name")[measures].astype(float)
        for _, run in same[same[BATCHES] < runs[BATCHES].max()].iterrows():
            layers = pd.DataFrame(run["bn_shift"]).set_index("name")[measures].astype(float)
            error = ((layers - reference) ** 2).mean() ** 0.5
            rows.append({BATCHES: run[BATCHES], **error})
    return pd.DataFrame(rows, columns=[BATCHES, *measures])


def head_rate(runs: pd.DataFrame) -> Figure:
    """Accuracy over η_w in multiples of the one that fits the features, at the η_θ that each selects.

    runs: of one dataset and backbone, that differ in it. Raises UserError if they do not.
    """
    units = runs.get(UNIT, pd.Series(index=runs.index, dtype=object))
    chosen = _selected(
        runs[units == "auto"], frames.RATES[1], "multiples of the fitting rate (method.lr_head)"
    )
    figure, panels = _panels(chosen)
    for axes, metric in zip(panels, _metrics(chosen), strict=True):
        _curves(axes, chosen, frames.RATES[1], metric)
        axes.axvline(1, color=style.INK, linestyle=":", linewidth=1)
        axes.set_ylabel(ACCURACIES[metric])
        _log_ticks(axes, chosen[frames.RATES[1]], lambda multiple: f"{multiple:g}")
        axes.set_xlabel(r"head's rate $\eta_w$, in multiples of the one that fits the features")
    return _finished(figure, panels, chosen, [frames.METHOD, frames.RATES[1]])


def rate_grid(runs: pd.DataFrame) -> Figure:
    """Heat maps over η_θ and η_w: ID accuracy, OOD accuracy, epochs to 95 % of the final ID accuracy.

    runs: of one dataset, backbone and method; several seeds are averaged. × marks divergence, a frame the
    rates with the best ID accuracy. Raises UserError if there is no grid.
    """
    for rate, name in zip(frames.RATES, ("method.lr_backbone", "method.lr_head"), strict=True):
        if runs[rate].nunique() < 2:
            raise UserError(f"runs have {runs[rate].nunique()} value(s) of {name}; a grid needs two or more")
    finished = runs.assign(score=frames.score(runs, "id")).dropna(subset="score")
    if finished.empty:
        raise UserError(f"all {len(runs)} runs of the grid diverged")
    maps = [(metric, ACCURACIES[metric], "cividis", ".1f") for metric in _metrics(runs)]
    maps.append((EPOCHS, "epochs to 95 % of\nfinal ID accuracy", "cividis_r", ".2g"))
    columns, rows = (np.sort(runs[rate].dropna().unique()) for rate in frames.RATES)

    def place(run: "pd.Series[Any]") -> tuple[int, int]:
        x, y = (run[rate] for rate in frames.RATES)
        return int(np.searchsorted(columns, x)), int(np.searchsorted(rows, y))

    width, height = (0.42 * len(rates) for rates in (columns, rows))
    figure, (panels,) = style.canvas(1, len(maps), 1.6 + height, width=max(style.WIDTH, 3 * width))
    for axes, (metric, title, colours, form) in zip(panels, maps, strict=True):
        table = runs.pivot_table(
            index=frames.RATES[1], columns=frames.RATES[0], values=metric, aggfunc="mean"
        )
        values = table.reindex(index=rows, columns=columns).to_numpy(float)
        image = axes.imshow(values, cmap=colours, origin="lower", aspect="auto")
        _annotate(axes, values, image, form)
        for _, run in runs[runs["status"] == "diverged"].iterrows():
            axes.plot(*place(run), "x", color=style.INK, markersize=7)
        tilt = 45 if len(columns) > 5 else 0
        axes.set_xticks(range(len(columns)), [f"{rate:g}" for rate in columns], rotation=tilt)
        axes.set_yticks(range(len(rows)), [f"{rate:g}" for rate in rows])
        axes.set_xlabel(r"backbone's rate $\eta_\theta$")
        axes.set_title(title)
        axes.spines[:].set_visible(False)
    means = finished.groupby(frames.RATES)[["score"]].mean().reset_index()
    column, row = place(means.sort_values("score").iloc[-1])
    for axes in panels:
        corner = (column - 0.5, row - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="#d55e00", linewidth=2))
    panels[0].set_ylabel(r"head's rate $\eta_w$")
    seeds = runs.groupby(frames.RATES)[frames.SEED].nunique()
    low, high = seeds.min(), seeds.max()
    n = f"n = {low}{'' if low == high else f' to {high}'} seed{'' if high == 1 else 's, mean'}"
    names = runs.iloc[0]
    figure.suptitle(f"{style.label(names[frames.METHOD])}, {names[frames.DATASET]}, {names[frames.BACKBONE]}")
    style.note(figure, f"{n}; frame: best ID accuracy; ×: diverged; blank: not run")
    return figure


def shift_family(runs: pd.DataFrame) -> Figure:
    """What BN conversion gains, over the strength of the shift between pretraining and target.

    A gain is of two runs with the same seed, with conversion and without; a dotted line marks where its mean
    falls to zero. runs: of one dataset and backbone. Raises UserError if they do not differ in strength, or
    no method is there with and without.
    """
    chosen = _selected(runs, STRENGTH, "strengths of the shift (dataset.shift_strength)")
    gained = gains(chosen)
    if gained.empty:
        pairs = ", ".join(f"{without} and {converted}" for without, converted in PAIRS.items())
        raise UserError(f"no method is there with and without BN conversion: {pairs}")
    figure, panels = _panels(chosen)
    for axes, metric in zip(panels, _metrics(chosen), strict=True):
        axes.axhline(0, color=style.INK, linewidth=0.8)
        pairs = in_order(gained["method"])
        for without, offset in zip(pairs, _offsets(axes, len(pairs)), strict=True):
            over = gained[gained["method"] == without].groupby(STRENGTH)[metric]
            _line(axes, over, f"{style.label(PAIRS[without])} − {style.label(without)}", without, offset)
            if (end := crossing(over.mean())) is not None:
                axes.axvline(end, color=style.mark(without)["color"], linestyle=":", linewidth=1)
        axes.set_ylabel(f"gain in {ACCURACIES[metric].replace(' (%)', '')} (points)")
        axes.set_xlabel("strength of the shift between pretraining and target")
        axes.grid(axis="y")
    return _finished(
        figure, panels, chosen, [frames.METHOD, STRENGTH], "dotted: where the mean gain falls to zero"
    )


def gains(chosen: pd.DataFrame) -> pd.DataFrame:
    """A row per pair of runs: method without conversion, strength, seed, and the gain of each accuracy."""
    metrics, keys = _metrics(chosen), [STRENGTH, frames.SEED]
    found = []
    for without, converted in PAIRS.items():
        before, after = (
            chosen[chosen[frames.METHOD] == name].set_index(keys)[metrics] for name in (without, converted)
        )
        found.append((after - before).dropna().reset_index().assign(method=without))
    return pd.concat(found, ignore_index=True)


def crossing(gain: "pd.Series[float]") -> float | None:
    """Where a gain over strength first falls from above zero to zero, between two strengths on a line."""
    gain = gain.sort_index()
    points = zip(gain.index.astype(float), gain, strict=True)
    for (x, y), (beyond, below) in pairwise(points):
        if y > 0 >= below:
            return x + (beyond - x) * y / (y - below)
    return None


def _selected(runs: pd.DataFrame, column: str, what: str) -> pd.DataFrame:
    """The runs at the rates that each value of the column selects; raises UserError if it has but one."""
    runs = runs[runs[column].notna()] if column in runs else runs.iloc[:0]
    if runs.empty or runs[column].nunique() < 2:
        found = 0 if runs.empty else runs[column].nunique()
        raise UserError(f"runs have {found} different {what}; the picture needs two or more")
    ignored = ["bn_shift", "config.dataset.train.images", SETTING]
    same = runs.drop(
        columns=ignored, errors="ignore"
    )  # lists and the setting itself are no setting to compare
    chosen = pd.concat([selection.select(group) for _, group in same.groupby(column)])
    return runs.loc[chosen.index]


def _metrics(runs: pd.DataFrame) -> list[str]:
    return [metric for metric in ACCURACIES if metric in runs and runs[metric].notna().any()]


def _panels(runs: pd.DataFrame) -> tuple[Figure, Sequence[Axes]]:
    figure, (panels,) = style.canvas(1, len(_metrics(runs)), 3.5)
    return figure, panels


def _curves(axes: Axes, chosen: pd.DataFrame, column: str, metric: str) -> None:
    """Each method's runs, means and standard deviations over a column."""
    methods = in_order(chosen[frames.METHOD])
    for method, offset in zip(methods, _offsets(axes, len(methods)), strict=True):
        cell = chosen[chosen[frames.METHOD] == method]
        _line(axes, cell.groupby(column)[metric], style.label(method), method, offset)
        dots: dict[str, Any] = {"s": 9, "alpha": 0.5, "linewidths": 0, "transform": offset}
        axes.scatter(cell[column], cell[metric], **dots, **style.mark(method))
        axes.update_datalim(cell[[column, metric]].to_numpy(float))
    axes.grid(visible=True, axis="y")


def _offsets(axes: Axes, count: int) -> list[Transform]:
    """Places side by side for what stands at the same x, so that bars do not cover each other."""
    scale = axes.figure.dpi_scale_trans
    shifts = [(i - (count - 1) / 2) * APART / 72 for i in range(count)]
    return [axes.transData + ScaledTranslation(shift, 0, scale) for shift in shifts]


def _line(axes: Axes, over: Any, label: str, method: str, offset: Transform) -> None:
    """Means of a grouped column with their sample standard deviations, in a method's colour."""
    means, stds = over.mean(), over.std(ddof=1).fillna(0)
    bars: dict[str, Any] = {"yerr": stds, "capsize": 2, "markersize": 5, "transform": offset}
    axes.errorbar(means.index, means, **bars, label=label, **style.mark(method))
    for ends in (means - stds, means + stds):  # what is moved aside does not count for the axes by itself
        axes.update_datalim(list(ends.items()))


def _percent(share: float) -> str:
    """Two digits, and 100 as it is."""
    return f"{100 * share:.0f}" if share >= 0.0995 else f"{100 * share:.2g}"


def _log_ticks(axes: Axes, values: Iterable[float], text: Callable[[float], str]) -> None:
    """A tick per value, on a log axis."""
    ticks = sorted(set(values))
    axes.set_xscale("log")
    axes.set_xticks(ticks, [text(tick) for tick in ticks], fontsize=8)
    axes.minorticks_off()


def _finished(
    figure: Figure, panels: Sequence[Axes], runs: pd.DataFrame, by: list[str], more: str = ""
) -> Figure:
    entries = {
        name: handle
        for axes in panels
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(entries.values(), entries.keys(), loc="outside upper center", ncols=len(entries))
    cell = runs.iloc[0]
    where = f"{cell[frames.DATASET]}, {cell[frames.BACKBONE]}"
    spread = style.seeds(runs.groupby(by)[frames.SEED].nunique())
    style.note(figure, "; ".join(filter(None, [f"{where}: {spread}", more])))
    return figure


def _annotate(axes: Axes, values: np.ndarray, image: Any, form: str) -> None:
    """The number in each cell, black or white by what is under it."""
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            red, green, blue, _ = image.cmap(image.norm(value))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            axes.text(
                column,
                row,
                format(value, form),
                ha="center",
                va="center",
                fontsize=8,
                color="white" if dark else "black",
            )
