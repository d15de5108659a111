"""A confusion matrix as a picture: how each class is taken for others."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from daft.common.numbers import fixed
from daft.report.figures import style
from daft.training.predictions import balanced_accuracy

LETTERS = 14
"""Of a class's name on an axis, or below an image."""

NAMED = 40
"""Classes that a picture of its own names, at most."""

WRITTEN = 25
"""Classes up to which the shares are written into the cells."""


def short(name: str) -> str:
    """The name of a class, cut to fit."""
    return name if len(name) <= LETTERS else f"{name[: LETTERS - 1]}…"


def panel(axes: Axes, counts: Tensor, classes: Sequence[str], named: int) -> None:
    """Draw images [K, K], labels in rows, as percent of the images of each class.

    named: classes on an axis, at most. Of more every second, third, … is named, and no cell has its number.
    """
    total = counts.double().sum(1, keepdim=True)
    shares = (100 * counts / total).where(total > 0, float("nan")).numpy()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    axes.set_xlabel("taken for")
    axes.set_ylabel("is")
    axes.spines[:].set_visible(False)
    every = -(-len(classes) // named)
    places, names = range(0, len(classes), every), [short(name) for name in classes[::every]]
    axes.set_xticks(places, names, rotation=90, fontsize=7.5)
    axes.set_yticks(places, names, fontsize=7.5)
    if every > 1:
        axes.set_ylabel(f"is, of {len(classes)} classes in label order")
    if len(classes) > min(named, WRITTEN):
        return
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.5:
            colour = "white" if share > 55 else style.INK
            text: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 7, "color": colour}
            axes.text(column, row, f"{share:.0f}", **text)


def figure(counts: Tensor, classes: Sequence[str]) -> Figure:
    """The same as a picture of its own, with accuracy and balanced accuracy."""
    side = min(max(3.5, 1.5 + 0.35 * len(classes)), 12)
    drawn, panels = style.canvas(1, 1, side + 0.3, side)
    panel(panels[0, 0], counts, classes, NAMED)
    images, right = int(counts.sum()), int(counts.diagonal().sum())
    scores = f"accuracy {fixed(100 * right / images)} %, balanced {fixed(balanced_accuracy(counts))} %"
    style.note(drawn, f"percent of a class's images\nn = {images:,}, {scores}")
    return drawn
