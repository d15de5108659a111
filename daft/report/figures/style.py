"""What all pictures share: marks of methods, fonts, sizes, notes, and how a figure becomes a file."""

from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from daft.common.errors import UserError
from daft.common.files import write_atomically
from daft.config.parts import target_mark
from daft.report.methods import describe
from daft.runs import frames

INK, FAINT = "#1b1b1b", "#666666"

WIDTH = 8.5
"""Inches; a README shows them at some 830 pixels, where 9 points are 12 pixels high."""

DPI, PHOTOGRAPHS_DPI = 160, 100
"""Per inch, of drawings and of photographs, which do not compress like lines: a README is no wider."""

FORMATS = {"png": "", "pdf": "CreationDate", "svg": "Date"}
"""And what would make two files of the same figure different."""

FORMULAS = (r"\eta", r"\widetilde", r"\mathdefault")
"""What is in texts that have formulas; dollars in users' names are none."""

PHOTOGRAPHIC = 2**14
"""Colours that only photographs have."""

LARGEST = 300_000
"""Bytes of a PNG, so that a repository can hold it."""

matplotlib.rcParams.update(
    {
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.labelsize": 9,
        "figure.titlesize": 11,
        "legend.fontsize": 8.5,
        "legend.frameon": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "grid.alpha": 0.3,
        "pdf.fonttype": 42,  # text stays text
        "svg.fonttype": "none",
        "svg.hashsalt": "daft",  # the same figure is the same bytes
    }
)


class Photographs(Figure):
    """A figure of images: it is embedded as a PNG, and keeps its own `dpi` when it is saved."""

    def __init__(self, size: tuple[float, float]) -> None:
        super().__init__(size, dpi=PHOTOGRAPHS_DPI)


def label(method: str) -> str:
    """The title of a method, marked if it saw target images."""
    return describe(method).title + target_mark(method)


def colour(method: str) -> str:
    """The colour of a method."""
    return describe(method).colour


def mark(method: str) -> dict[str, Any]:
    """Colour and marker of a method, as keywords of matplotlib's plots."""
    return {"color": colour(method), "marker": describe(method).marker}


def metric_label(runs: pd.DataFrame) -> str:
    """What the runs of one dataset are judged by: accuracy or mIoU."""
    return {"miou": "mIoU"}.get(frames.cell_metric(runs), frames.cell_metric(runs))


def canvas(
    rows: int, columns: int, height: float, width: float = WIDTH, **keywords: Any
) -> tuple[Figure, Any]:
    """A figure, in inches, and its panels [rows, columns]."""
    figure = Figure((width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **keywords)


def note(figure: Figure, text: str) -> None:
    """A line below the panels: what is shown, over how many runs, what the bars mean."""
    figure.supxlabel(text, fontsize=8, color=FAINT)


def seeds(counts: "pd.Series[int]") -> str:
    """What a mean and its bars are, from the number of runs of each mean."""
    if counts.max() == 1:
        return "one seed"
    return f"mean over {count(counts)}, bars ± sample standard deviation (ddof = 1)"


def count(counts: "pd.Series[int]") -> str:
    """`n = 1 to 3 seeds`, from the number of runs of each mean."""
    low, high = int(counts.min()), int(counts.max())
    return f"n = {low}{'' if low == high else f' to {high}'} seed{'' if high == 1 else 's'}"


def save(figure: Figure, file: Path) -> None:
    """Write a .png, .pdf or .svg, whole or not at all; the same figure is the same bytes."""
    kind = file.suffix[1:]
    if kind not in FORMATS:
        raise UserError(f"{file}: a picture is one of {', '.join(f'*.{known}' for known in FORMATS)}")
    write_atomically(file, rendered(figure, kind))


def embedded(figure: Figure) -> tuple[str, bytes]:
    """Media type and content for a page: drawings as SVG, photographs as PNG."""
    kind = "png" if isinstance(figure, Photographs) else "svg"
    return {"png": "image/png", "svg": "image/svg+xml"}[kind], rendered(figure, kind)


def pixels(figure: Figure) -> Image.Image:
    """As its PNG."""
    return Image.open(BytesIO(rendered(figure, "png")))


def rendered(figure: Figure, kind: str) -> bytes:
    """The figure in one of FORMATS."""
    for text in figure.findobj(Text):
        # Not of an empty text: a tick gets its formula when it is drawn.
        if (
            isinstance(text, Text)
            and "$" in (said := text.get_text())
            and not any(f in said for f in FORMULAS)
        ):
            text.set_parse_math(False)
    content = BytesIO()
    metadata = {FORMATS[kind]: None} if FORMATS[kind] else {}
    dpi = figure.dpi if isinstance(figure, Photographs) else DPI
    figure.savefig(content, format=kind, dpi=dpi, metadata=metadata)
    return _small(content.getvalue()) if kind == "png" else content.getvalue()


def _small(png: bytes) -> bytes:
    """The picture in fewer bytes: lines in 256 colours, photographs in as many as fit into LARGEST."""
    image = Image.open(BytesIO(png)).convert("RGB")
    if image.getcolors(PHOTOGRAPHIC) is None:
        pixels = np.asarray(image)
        for bits in (8, 6, 5):
            levels = 2**bits - 1
            fewer = (np.round(pixels / 255 * levels) * 255 / levels).round().astype(np.uint8)
            if len(content := _png(Image.fromarray(fewer))) <= LARGEST:
                return content
    return _png(image.quantize(256))


def _png(image: Image.Image) -> bytes:
    content = BytesIO()
    image.save(content, "PNG")
    return content.getvalue()
