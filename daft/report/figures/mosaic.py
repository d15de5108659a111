"""Many small images in rows and blocks of columns, with a line of text below each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from torch import Tensor

from daft.report.figures import style

GAP, BETWEEN, LINE, LEFT = 0.04, 0.14, 0.15, 1.0
"""Inches between images, between blocks, of a line of text, and of the names of rows."""

LISTED = 7
"""Entries of a legend in a line."""


@dataclass(frozen=True)
class ColumnGroup:
    """Columns that belong together."""

    title: str
    images: Tensor
    """uint8 [rows, columns, 3, h, w]"""
    texts: Sequence[Sequence[str]] | None = None
    """below each image, of one or several lines; an empty one where there is no image"""
    colour: str = style.INK
    """of the title"""


def draw(
    blocks: Sequence[ColumnGroup],
    rows: Sequence[str],
    title: str = "",
    note: str = "",
    legend: Mapping[str, Any] | None = None,
) -> Figure:
    """A row of images per name, a group of columns per block; legend: colours by name, below them."""
    columns = sum(block.images.shape[1] for block in blocks)
    room = style.WIDTH - LEFT - BETWEEN * len(blocks) - GAP * columns
    height, width = blocks[0].images.shape[-2:]
    side = min(room / columns, 1.1)
    tall = side * height / width
    texts = [text for block in blocks for row in block.texts or () for text in row]
    line = LINE * max((text.count("\n") + 1 for text in texts), default=0)
    lines = max(block.title.count("\n") + bool(block.title) for block in blocks)
    top, bottom = 0.42 + LINE * lines, 0.3 if note else 0.08
    listed = LINE * 1.3 * -(-len(legend) // LISTED) if legend else 0.0
    bottom += listed
    whole = (
        LEFT + side * columns + GAP * columns + BETWEEN * len(blocks),
        top + len(rows) * (tall + line + GAP) + bottom,
    )
    figure = style.Photographs(whole)
    # One panel with inches for units: a panel per image would take a second per hundred.
    page = figure.add_axes((0, 0, 1, 1))
    below = [whole[1] - top - row * (tall + line + GAP) - tall for row in range(len(rows))]
    x = LEFT
    for block in blocks:
        start = x
        for column in range(block.images.shape[1]):
            for row, y in enumerate(below):
                text = block.texts[row][column] if block.texts else None
                if text == "":
                    continue
                pixels = block.images[row, column].permute(1, 2, 0).numpy()
                page.imshow(pixels, extent=(x, x + side, y, y + tall), aspect="auto")
                # A sketch on white has no edges of its own.
                page.add_patch(Rectangle((x, y), side, tall, fill=False, edgecolor="#cccccc", linewidth=0.5))
                page.text(x + side / 2, y - 0.02, text or "", ha="center", va="top", fontsize=7.5)
            x += side + GAP
        words = {"ha": "center", "va": "bottom", "color": block.colour, "fontsize": 8.5}
        page.text((start + x - GAP) / 2, whole[1] - top + 0.06, block.title, **words)
        x += BETWEEN
    for name, y in zip(rows, below, strict=True):
        page.text(LEFT - 0.1, y + tall / 2, wrapped(name), ha="right", va="center")
    page.text(whole[0] / 2, whole[1] - 0.1, title, ha="center", va="top", fontsize=11)
    page.text(whole[0] / 2, listed + 0.08, note, ha="center", va="bottom", fontsize=8, color=style.FAINT)
    if legend:
        handles = [Patch(facecolor=colour, edgecolor="#cccccc") for colour in legend.values()]
        figure.legend(
            handles, list(legend), loc="lower center", bbox_to_anchor=(0.5, 0), ncols=LISTED, fontsize=8
        )
    page.set(xlim=(0, whole[0]), ylim=(0, whole[1]))
    page.axis("off")
    return figure


def wrapped(name: str, most: int = 13) -> str:
    """A long name on several lines, of `most` letters where its spaces and underscores allow."""
    words, lines = name.replace("_", " ").split(), [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + len(word) >= most:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
