"""Per class the images whose features moved least and most (Figures 6 to 9)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from matplotlib.figure import Figure
from torch import Tensor

from daft import tables
from daft.figures import mosaic, style

FILE = "similarity.safetensors"
"""Beside the record: of every evaluation image its similarity, and the pixels of the extreme ones."""

KEPT = 5
"""Images of each end that are kept per class."""

SHOWN = 3
"""Images of each end in a picture."""

ROWS = 20
"""Classes in a picture, at most."""

PAPER = ("ft", "daft")
NUMBERS = {"ft": (6, 7), "daft": (8, 9)}
"""The paper's figures: highest, lowest."""


@dataclass(frozen=True)
class Similarity:
    """How far a run moved the features of each image of one split."""

    cosine: Tensor
    """float32 [N], of an image's features before and after"""
    labels: Tensor
    """int64 [N]"""
    ranked: Tensor
    """int64 [classes, 2, KEPT]: per class the images of highest, and of lowest, similarity, the extreme one
    first; -1 where a class has no more"""
    images: Tensor
    """uint8 [classes, 2, KEPT, 3, h, w]: those, as the network sees them"""


Similarities = dict[str, Similarity]
"""By evaluation split."""


def read(directory: Path) -> Similarities:
    """What is kept beside a run's record; nothing if nothing is."""
    file = directory / FILE
    if not file.exists():
        return {}
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in safetensors.torch.load_file(file).items():
        split, _, key = name.rpartition("/")
        found.setdefault(split, {})[key] = tensor
    return {split: Similarity(**tensors) for split, tensors in found.items()}


def extremes(cosine: Tensor, labels: Tensor, classes: int) -> Tensor:
    """`Similarity.ranked` of similarities and labels [N]; of equal ones the earlier image stands first."""
    ranked = torch.full((classes, 2, KEPT), -1)
    for label in range(classes):
        of_class = (labels == label).nonzero()[:, 0]
        for end, descending in enumerate((True, False)):
            order = cosine[of_class].argsort(descending=descending, stable=True)[:KEPT]
            ranked[label, end, : len(order)] = of_class[order]
    return ranked


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
