"""What a network gets wrong, per split: which classes, how sure of it, and the images themselves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import binomtest
from torch import Tensor

from daft.common.numbers import fixed
from daft.report import tables
from daft.report.figures import confusion, mosaic, style
from daft.report.figures.confusion import short
from daft.training.predictions import BINS, Predictions

CONFIDENCE = 0.95
"""Of the intervals, which are Wilson's."""

NAMED = 12
"""Classes that a confusion matrix names, at most."""

LOWEST = 16
"""Classes whose accuracies are shown: of more, those that are lowest."""

MISTAKES = 8
"""Images of a split."""


@dataclass(frozen=True)
class Mistakes:
    """The wrong images of a split that the network is surest of."""

    images: Tensor
    """uint8 [n, 3, h, w]"""
    texts: list[str]
    """what each is, and what it is taken for"""


def interval(right: int, count: int) -> tuple[float, float]:
    """Wilson's interval of a share, in percent."""
    found = binomtest(right, count).proportion_ci(CONFIDENCE, "wilson")
    return 100 * found.low, 100 * found.high


def matrices(found: Mapping[str, Predictions], classes: Sequence[str], title: str) -> Figure:
    """Per split confusion matrix, reliability curve with ECE, and accuracy by class.

    found: by split, of one network.
    """
    tall = 0.6 + 0.13 * min(len(classes), LOWEST)
    figure, panels = style.canvas(len(found), 3, 0.7 + len(found) * max(tall, 2.5), width=10.5)
    for (split, of), (left, middle, right) in zip(found.items(), panels, strict=True):
        measures = of.measures(len(classes))
        accuracy = 100 * float(of.correct.double().mean())
        name = tables.split_name(split)
        left.set_title(f"{name}: {fixed(accuracy)} % of {len(of.labels):,}")
        middle.set_title(f"{name}: ECE {fixed(measures['ece'])} %, NLL {fixed(measures['nll'], 3)}")
        right.set_title(f"{name}: balanced {fixed(measures['balanced_accuracy'])} %")
        confusion.panel(left, of.confusion(len(classes)), classes, NAMED)
        _reliability(middle, of)
        _by_class(right, of, classes)
    figure.suptitle(title)
    whiskers = f"whiskers: {100 * CONFIDENCE:.0f} % intervals (Wilson)"
    style.note(figure, f"confusion: percent of a class's images; {whiskers}; grey: share of images in a bin")
    return figure


def ious(found: Mapping[str, Mapping[str, float | None]], title: str) -> Figure:
    """Per split the IoU of each class: all that a record has of masks, whose pixels are no sample.

    found: percent by split and class; None for a class that is neither there nor predicted.
    """
    most = max(len(of) for of in found.values())
    figure, panels = style.canvas(1, len(found), 1.4 + 0.17 * min(most, LOWEST), width=3.5 * len(found))
    for (split, of), axes in zip(found.items(), panels[0], strict=True):
        known = [(value, name) for name, value in of.items() if value is not None and np.isfinite(value)]
        rows = sorted(known, key=lambda row: row[0])[:LOWEST] if len(known) > LOWEST else known
        mean = float(np.mean([value for value, _ in known])) if known else float("nan")
        axes.set_title(f"{tables.split_name(split)}: mIoU {fixed(mean)} %")
        axes.barh(range(len(rows)), [value for value, _ in rows], 0.7, color="#9ecae1")
        for place, (value, _) in enumerate(rows):
            inside = value > 85
            side = {"ha": "right" if inside else "left", "va": "center", "fontsize": 7.5}
            axes.text(value + (-1 if inside else 1), place, fixed(value, 1), **side)
        axes.set_yticks(range(len(rows)), [short(name) for _, name in rows], fontsize=7.5)
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        more = f", the lowest of {len(known)} classes" if len(rows) < len(known) else ""
        absent = f", {len(of) - len(known)} not there" if len(known) < len(of) else ""
        axes.set_xlabel(f"IoU (%) by class{more}{absent}")
    figure.suptitle(title)
    style.note(figure, "of all pixels of a split together; scripts/predict.py writes the masks themselves")
    return figure


def pictured(found: Mapping[str, Mistakes], title: str) -> Figure:
    """Per split a row of the wrong images of highest confidence, the surest first."""
    most = max(len(of.images) for of in found.values())
    height, width = next(iter(found.values())).images.shape[-2:]
    shape = (len(found), most, 3, height, width)
    images = next(iter(found.values())).images.new_full(shape, 255)
    texts = [[""] * most for _ in found]
    for row, of in enumerate(found.values()):
        images[row, : len(of.images)] = of.images
        texts[row][: len(of.texts)] = of.texts
    return mosaic.draw(
        [mosaic.ColumnGroup("", images, texts)],
        [tables.split_name(split) for split in found],
        title=title,
        note="wrong images of highest confidence; below each: its class, what it is taken for, how surely",
    )


def text_of(label: str, predicted: str, confidence: float) -> str:
    """What is said below a wrong image."""
    return f"{short(label)}\nas {short(predicted)}\n{100 * confidence:.0f} %"


def _reliability(axes: Axes, of: Predictions) -> None:
    count, right, confidence = (part.numpy() for part in of.reliability())
    there = count > 0
    edges = np.linspace(0, 1, BINS + 1)
    axes.bar(
        100 * edges[:-1],
        100 * count / count.sum(),
        100 / BINS,
        align="edge",
        color="#dddddd",
        edgecolor="white",
    )
    axes.plot([0, 100], [0, 100], color=style.FAINT, linewidth=0.8, linestyle="--")
    x, y = 100 * confidence[there] / count[there], 100 * right[there] / count[there]
    ends = [interval(int(k), int(n)) for k, n in zip(right[there], count[there], strict=True)]
    low, high = np.array(ends).T
    bars = {"elinewidth": 0.8, "markersize": 4, "color": "#0072b2"}
    axes.errorbar(x, y, yerr=[np.maximum(y - low, 0), np.maximum(high - y, 0)], fmt="o-", **bars)
    axes.set(xlim=(-2, 102), ylim=(0, 103))
    axes.set_xlabel("confidence (%)")
    axes.set_ylabel("accuracy (%)")


def _by_class(axes: Axes, of: Predictions, classes: Sequence[str]) -> None:
    by_class = of.per_class(len(classes))
    rows = [
        (accuracy, count, name)
        for accuracy, count, name in zip(by_class["accuracy"], by_class["images"], classes, strict=True)
        if accuracy is not None
    ]
    left_out = len(rows) - LOWEST
    if left_out > 0:
        rows = sorted(rows, key=lambda row: row[0])[:LOWEST]
    places = range(len(rows))
    values = np.array([accuracy for accuracy, *_ in rows])
    ends = np.array([interval(round(accuracy * count / 100), count) for accuracy, count, _ in rows]).T
    axes.barh(places, values, 0.7, color="#9ecae1")
    errors = [np.maximum(values - ends[0], 0), np.maximum(ends[1] - values, 0)]
    axes.errorbar(values, [*places], xerr=errors, fmt="none", ecolor=style.INK, elinewidth=0.8, capsize=1.5)
    axes.set_yticks(places, [f"{short(name)} ({count:,})" for _, count, name in rows], fontsize=7.5)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    more = f", the lowest of {len(rows) + left_out} classes" if left_out > 0 else ""
    axes.set_xlabel(f"accuracy (%) by class (images){more}")
