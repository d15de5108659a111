"""Per class the images whose features moved least and most (Figures 6 to 9)."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from daft.report import tables
from daft.report.figures import mosaic, style
from daft.runs.similarity import Similarity

SHOWN = 3
"""Images of each end in a picture."""

ROWS = 20
"""Classes in a picture, at most."""

PAPER = ("ft", "daft")
NUMBERS = {"ft": (6, 7), "daft": (8, 9)}
"""The paper's figures: highest, lowest."""


def picture(split: str, found: Mapping[str, Similarity], classes: Sequence[str], title: str) -> Figure:
    """Figures 6 to 9 of one split: a row per class, per method the most and the least similar images.

    found: by method.
    """
    shown = np.linspace(0, len(classes) - 1, min(len(classes), ROWS)).round().astype(int)
    blocks = []
    for method, similarity in found.items():
        for end, word in enumerate(("highest", "lowest")):
            ranked = similarity.ranked[shown, end, :SHOWN]
            number = f" (Figure {NUMBERS[method][end]})" if method in NUMBERS else ""
            values = [
                [f"{float(similarity.cosine[i]):.2f}" if i >= 0 else "" for i in row.tolist()]
                for row in ranked
            ]
            blocks.append(
                mosaic.Block(
                    f"{style.label(method)}: {word}{number}",
                    similarity.images[shown, end, :SHOWN],
                    values,
                    style.COLOURS.get(method, style.INK),
                )
            )
    part = "" if len(shown) == len(classes) else f"; {len(shown)} of {len(classes)} classes, evenly spaced"
    return mosaic.draw(
        blocks,
        [classes[int(i)] for i in shown],
        title=f"{title}: {tables.split_name(f'{split}/')} images by how far their features moved{part}",
        note="below each image: cosine similarity of its features before and after fine-tuning",
    )
