"""Samples of a dataset: a row per split, a few images per class (Figures 3 to 5)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from daft.common.errors import UserError
from daft.config.operations import CenterCrop, Operation, Resize
from daft.config.schema import Config
from daft.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from daft.data.datasets import Listing
from daft.data.decoding import read_image
from daft.data.images import Streamed
from daft.data.labelled import IGNORED, Labelled
from daft.data.sources import shapes
from daft.data.transforms import NO_UNIFORMS, RGB, transform
from daft.report.figures import mosaic, style

SIDE = 96
"""Pixels of an image in a sheet."""

CLASSES = 10
"""Columns, unless classes are named."""

SQUARE = [Resize(size=SIDE), CenterCrop(size=SIDE)]
"""The middle of an image, whatever its shape."""


def classification(
    config: Config, listed: Listing, per_class: int = 1, classes: Sequence[str] = ()
) -> Figure:
    """Evenly spaced images of each class, by class and path, as the evaluation splits have them.

    classes: which, in this order; none: all, or ten of them, evenly spaced. Raises UserError if one is
    unknown.
    """
    chosen = _chosen(listed.classes, classes)
    shifts = {name: split.shift for name, split in config.dataset.ood.items()}
    names = {"id": f"ID ({config.dataset.id.path})"} | {name: name for name in config.dataset.ood}
    rows = {
        title: [_samples(listed.evaluation[name], label, per_class, shifts.get(name, [])) for label in chosen]
        for name, title in names.items()
    }
    blocks = [
        mosaic.ColumnGroup(
            mosaic.wrapped(listed.classes[label], most=10 * per_class),
            torch.stack([samples[i] for samples in rows.values()]),
        )
        for i, label in enumerate(chosen)
    ]
    part = (
        "" if len(chosen) == len(listed.classes) else f", {len(chosen)} of its {len(listed.classes)} classes"
    )
    counts = ", ".join(f"{names[name]} {len(listed.evaluation[name]):,}" for name in names)
    return mosaic.draw(blocks, list(rows), f"{config.dataset.name}{part}", f"evaluation images: {counts}")


def segmentation(config: Config, listed: Listing, count: int = 6) -> Figure:
    """Evenly spaced images of each evaluation split above their masks, with the classes' colours.

    White in a mask does not count. Raises UserError if an image and its mask do not fit.
    """
    colours = np.full((IGNORED + 1, 3), 255, np.uint8)
    colours[: len(listed.classes)] = palette(len(listed.classes))
    shifts = {name: split.shift for name, split in config.dataset.ood.items()}
    names = {"id": f"ID ({config.dataset.id.path})"} | {name: name for name in config.dataset.ood}
    lines, rows, seen = [], [], set()
    for name, title in names.items():
        split = listed.evaluation[name]
        places = torch.arange(min(count, len(split))) * len(split) // min(count, len(split))
        samples = torch.full((count, RGB + 1, SIDE, SIDE), IGNORED, dtype=torch.uint8)
        for n, place in enumerate(places.tolist()):
            samples[n] = _middle(split, place, shifts.get(name, []))
        masks = samples[:, RGB]
        seen |= set(masks.unique().tolist()) - {IGNORED}
        painted = torch.from_numpy(colours[masks.numpy()]).permute(0, 3, 1, 2)
        lines += [samples[:, :RGB], painted]
        rows += [title, "classes"]
    counts = ", ".join(f"{title} {len(listed.evaluation[name]):,}" for name, title in names.items())
    return mosaic.draw(
        [mosaic.ColumnGroup("", torch.stack(lines))],
        rows,
        config.dataset.name,
        f"evaluation images: {counts}",
        legend={listed.classes[label]: colours[label] / 255 for label in sorted(seen)},
    )


def corruptions(file: Path | None = None, side: int = 64) -> Figure:
    """One image (None: a drawn one) as it is, then a row per severity and a column per corruption."""
    if file is None:
        clean = torch.from_numpy(shapes.generate("photo", 1, 0, side)[0])
    else:
        clean = transform(read_image(file)[None], [Resize(size=side), CenterCrop(size=side)], NO_UNIFORMS)
    columns = [
        torch.cat([clean, *(corrupt(clean, name, severity, [0]) for severity in SEVERITIES)])
        for name in CORRUPTIONS
    ]
    sheet = torch.stack(columns).permute(1, 3, 0, 4, 2).flatten(2, 3).flatten(0, 1).numpy()
    left, top = 24, 24  # pixels of margin for the names
    width, height = sheet.shape[1] + left, sheet.shape[0] + top
    dpi = style.PHOTOGRAPHS_DPI
    figure = style.Photographs((width / dpi, height / dpi))
    figure.figimage(sheet, left, 0)
    for i, name in enumerate(CORRUPTIONS):
        x, text = left + (i + 0.5) * side, name.replace("_", "\n")
        figure.text(x / width, 1 - top / height / 2, text, ha="center", va="center", fontsize=6.5)
    for severity in range(len(SEVERITIES) + 1):
        y = 1 - (top + (severity + 0.5) * side) / height
        figure.text(left / width / 2, y, str(severity or "-"), ha="center", va="center", fontsize=8)
    return figure


def palette(classes: int) -> np.ndarray:
    """Pascal VOC's colours, uint8 [classes, 3]: the bits of a label, spread over the channels' high bits."""
    colours = np.zeros((classes, 3), np.uint8)
    for label in range(classes):
        for bit in range(8):
            for channel in range(3):
                colours[label, channel] |= ((label >> (3 * bit + channel)) & 1) << (7 - bit)
    return colours


def _chosen(known: Sequence[str], wanted: Sequence[str]) -> list[int]:
    if unknown := [name for name in wanted if name not in known]:
        raise UserError(f"{', '.join(unknown)}: no such class; choose from {', '.join(known)}")
    if wanted:
        return [known.index(name) for name in wanted]
    return np.linspace(0, len(known) - 1, min(len(known), CLASSES)).round().astype(int).tolist()


def _samples(split: Labelled, label: int, count: int, shift: Sequence[Operation]) -> Tensor:
    """uint8 [count, 3, SIDE, SIDE], white where the class has no more."""
    of_class = (split.labels == label).nonzero()[:, 0]
    places = of_class[
        torch.arange(min(count, len(of_class))) * len(of_class) // max(min(count, len(of_class)), 1)
    ]
    images = torch.full((count, RGB, SIDE, SIDE), 255, dtype=torch.uint8)
    for n, place in enumerate(places.tolist()):
        images[n] = _middle(split, place, shift)
    return images


def _middle(split: Labelled, place: int, shift: Sequence[Operation]) -> Tensor:
    """One image, and its mask if it has one, as uint8 [3 or 4, SIDE, SIDE]."""
    held = split.images
    image = held[place] if isinstance(held, Tensor) else Streamed.of(split).read(place)
    return transform(image[None], [*shift, *SQUARE], NO_UNIFORMS)[0]
