"""Draw a contact sheet of the shapes dataset, or of an image under every corruption.

python scripts/contact_sheet.py --out sheet.png --seed 0 --size 64 --per-class 2
python scripts/contact_sheet.py --corruptions --out corruptions.png --size 64 [--image photo.jpg]

Of the shapes: a row per style, a block of columns per class. Of the corruptions: a row per severity.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from torchvision.transforms.v2 import functional as F

from daft.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from daft.data.images import read_image
from daft.data.shapes import CLASSES, STYLES, generate


def main() -> None:
    """Generate just enough images and write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=64, help="side of an image, in pixels")
    parser.add_argument("--per-class", type=int, default=2)
    parser.add_argument("--corruptions", action="store_true", help="of one image, by severity")
    parser.add_argument("--image", type=Path, help="the image; default: a drawn one")
    args = parser.parse_args()
    draw_corruptions(args) if args.corruptions else draw_shapes(args)


def draw_shapes(args: argparse.Namespace) -> None:
    """A row per style."""
    figure, rows = plt.subplots(
        len(STYLES), 1, figsize=(args.per_class * len(CLASSES) + 1, 1.1 * len(STYLES))
    )
    for style, axes in zip(STYLES, rows, strict=True):
        images, labels = generate(style, args.per_class * len(CLASSES), args.seed, args.size)
        strip = np.concatenate(images[np.argsort(labels, kind="stable")], axis=-1)
        axes.imshow(strip.transpose(1, 2, 0), interpolation="nearest")
        axes.set_ylabel(style)
        axes.set_yticks([])
        axes.set_xticks([])
    rows[0].xaxis.tick_top()
    middles = (np.arange(len(CLASSES)) + 0.5) * args.per_class * args.size - 0.5
    rows[0].set_xticks(middles, CLASSES)
    rows[0].tick_params(length=0)
    figure.tight_layout(pad=0.3)
    figure.savefig(args.out, dpi=100)


def draw_corruptions(args: argparse.Namespace) -> None:
    """The image itself, then a row per severity and a column per corruption, pixel by pixel."""
    if args.image:
        square = F.center_crop(image := read_image(args.image), [min(image.shape[1:])] * 2)
        clean = F.resize(square, [args.size, args.size], antialias=True)
    else:
        clean = torch.from_numpy(generate("photo", 1, args.seed, args.size)[0][0])
    rows = [clean.expand(len(CORRUPTIONS), -1, -1, -1)]
    for severity in SEVERITIES:
        rows.append(torch.cat([corrupt(clean[None], name, severity, [args.seed]) for name in CORRUPTIONS]))
    sheet = torch.stack(rows).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    dpi, left, top = 100, 20, 20  # pixels of margin for the names
    figure = plt.figure(figsize=((sheet.shape[1] + left) / dpi, (sheet.shape[0] + top) / dpi), dpi=dpi)
    figure.figimage(sheet.numpy(), left, 0)
    for i, name in enumerate(CORRUPTIONS):
        x = (left + (i + 0.5) * args.size) / dpi / figure.get_figwidth()
        figure.text(x, 0.998, name.replace("_", "\n"), ha="center", va="top", fontsize=5)
    for i in range(len(rows)):
        y = 1 - (top + (i + 0.5) * args.size) / dpi / figure.get_figheight()
        figure.text(0.002, y, str(i), va="center", fontsize=7)
    figure.savefig(args.out, dpi=dpi)


if __name__ == "__main__":
    main()
