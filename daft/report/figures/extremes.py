"""Per class the images whose features moved least and most (Figures 6 to 9)."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from daft.report import tables
from daft.report.figures import mosaic, style
from daft.report.methods import describe
from daft.runs.similarity import Similarity

FIGURES = (6, 7, 8, 9)
"""Of the paper: the highest and the lowest, first of FT, then of DAFT."""

SHOWN = 3
"""Images of each end in a picture."""

ROWS = 20
"""Classes in a picture, at most."""


def picture(split: str, found: Mapping[str, Similarity], classes: Sequence[str], title: str) -> Figure:
    """Figures 6 to 9 of one split: a row per class, per method the most and the least similar images.

    found: by method.
    """
    shown = np.linspace(0, len(classes) - 1, min(len(classes), ROWS)).round().astype(int)
    blocks = []
    for method, similarity in found.items():
        numbers = [number for number in describe(method).figures if number in FIGURES]
        for end, word in enumerate(("highest", "lowest")):
            ranked = similarity.ranked[shown, end, :SHOWN]
            number = f" (Figure {numbers[end]})" if numbers else ""
            values = [
                [f"{float(similarity.cosine[i]):.2f}" if i >= 0 else "" for i in row.tolist()]
                for row in ranked
            ]
            blocks.append(
                mosaic.ColumnGroup(
                    f"{style.label(method)}: {word}{number}",
                    similarity.images[shown, end, :SHOWN],
                    values,
                    style.colour(method),
                )
            )
    part = "" if len(shown) == len(classes) else f"; {len(shown)} of {len(classes)} classes, evenly spaced"
    return mosaic.draw(
        blocks,
        [classes[int(i)] for i in shown],
        title=f"{title}: {tables.split_name(split)} images by how far their features moved{part}",
        note="below each image: cosine similarity of its features before and after fine-tuning",
    )
