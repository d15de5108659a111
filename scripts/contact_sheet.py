"""Draw a contact sheet of the shapes dataset: one row per style, one block of columns per class.

python scripts/contact_sheet.py --out sheet.png --seed 0 --size 64 --per-class 2
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from daft.data.shapes import CLASSES, STYLES, generate


def main() -> None:
    """Generate just enough of each style and write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=64, help="side of an image, in pixels")
    parser.add_argument("--per-class", type=int, default=2)
    args = parser.parse_args()

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


if __name__ == "__main__":
    main()
