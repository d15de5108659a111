"""Predictions of many images as tables and pictures, and how right they are where classes are known."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from daft.common.files import write_atomically
from daft.common.numbers import fixed
from daft.report.figures import confusion, sheets, style
from daft.training.predictions import balanced_accuracy
from daft.use.listing import Listed
from daft.use.loaded import LoadedRun

Row = list[str | float]


@dataclass
class Predicted:
    """What a run says of images, as far as they can be used."""

    classes: list[str]
    listed: list[Listed]
    header: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    failures: dict[int, str] = field(default_factory=dict)
    """why an image is left out, by its number"""
    confusion: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    """int64 [K, K]: images by class (rows) and predicted class, of those whose class is known"""


def predict(
    run: LoadedRun,
    listed: list[Listed],
    *,
    every_class: bool = False,
    batch_size: int | None = None,
    threads: int | None = None,
) -> Predicted:
    """Classify images: path, label if any is known, prediction and its probability; or those of all."""
    found = Predicted(run.classes, listed)
    known = any(image.label is not None for image in listed)
    found.header = ["path", *(["label"] if known else []), "prediction", "probability"]
    found.header += [f"p({name})" for name in run.classes] if every_class else []
    numbers = {name: number for number, name in enumerate(run.classes)}
    found.confusion = torch.zeros(len(numbers), len(numbers), dtype=torch.int64)
    for batch, logits in run.logits([image.file for image in listed], found.failures, batch_size, threads):
        likely, probabilities = logits.argmax(1).tolist(), logits.softmax(1).tolist()
        for number, likeliest, row in zip(batch, likely, probabilities, strict=True):
            image = listed[number]
            label: Row = [image.label or ""] if known else []
            every: Row = row if every_class else []
            found.rows.append([str(image.file), *label, run.classes[likeliest], row[likeliest], *every])
            if image.label is not None:
                found.confusion[numbers[image.label], likeliest] += 1
    return found


def segment(
    run: LoadedRun,
    listed: list[Listed],
    folder: Path,
    *,
    batch_size: int | None = None,
    threads: int | None = None,
) -> Predicted:
    """Classify pixels: path, mask, share of each class; masks are PNG files with a palette, in a folder."""
    found = Predicted(run.classes, listed)
    found.header = ["path", "mask", *(f"share({name})" for name in run.classes)]
    colours = sheets.palette(256).tobytes()
    for batch, logits in run.logits([image.file for image in listed], found.failures, batch_size, threads):
        for number, mask in zip(batch, logits.argmax(1), strict=True):
            file = listed[number].file
            picture = Image.fromarray(mask.to(torch.uint8).numpy())
            picture.putpalette(colours)
            to = folder / f"{number:06}-{file.stem}.png"  # folders may have files of one name
            write_atomically(to, lambda path, picture=picture: picture.save(path, "PNG"))
            pixels = torch.bincount(mask.flatten(), minlength=len(run.classes)).tolist()
            found.rows.append([str(file), str(to), *(count / mask.numel() for count in pixels)])
    return found


@dataclass(frozen=True)
class Score:
    """How right predictions are, of images whose class is known."""

    images: int
    accuracy: float
    """percent"""
    balanced_accuracy: float
    """percent: the mean over the classes that are there"""
    classes: int
    """that are there"""


def score(counts: Tensor) -> Score | None:
    """Of a confusion matrix; None if it is empty."""
    images, right = int(counts.sum()), counts.diagonal()
    if not images:
        return None
    there = int((counts.sum(1) > 0).sum())
    return Score(images, 100 * int(right.sum()) / images, balanced_accuracy(counts), there)


def write(predicted: Predicted, out: Path) -> list[Path]:
    """Write the rows and, with known classes, the confusion matrix beside, as CSV and PNG; the files."""
    _write_csv(out, [predicted.header, *predicted.rows])
    if not predicted.confusion.sum():
        return [out]
    table, picture = (out.with_name(f"{out.stem}-confusion.{kind}") for kind in ("csv", "png"))
    rows = [[n, *counts] for n, counts in zip(predicted.classes, predicted.confusion.tolist(), strict=True)]
    _write_csv(table, [["label", *predicted.classes], *rows])
    style.save(confusion.figure(predicted.confusion, predicted.classes), picture)
    return [out, table, picture]


def _write_csv(file: Path, rows: Sequence[Sequence[object]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_atomically(file, text.getvalue().encode("utf-8", "surrogateescape"))  # names may be no UTF-8


def write_and_tell(predicted: Predicted, out: Path) -> list[str]:
    """Write the predictions; what was written, and how right they are where classes are known, in lines."""
    files = write(predicted, out)
    lines = [f"{len(predicted.rows):,} of {len(predicted.listed):,} image(s) in {', '.join(map(str, files))}"]
    if found := score(predicted.confusion):
        lines.append(
            f"{found.images:,} images of {found.classes} class(es): accuracy {fixed(found.accuracy)} %, "
            f"balanced accuracy {fixed(found.balanced_accuracy)} %"
        )
    return lines


def failures(predicted: Predicted) -> list[str]:
    """The images that could not be used, a line each below a first one."""
    told = [predicted.failures[number] for number in sorted(predicted.failures)]
    return [f"{len(told):,} image(s) cannot be used:", *(f"  {reason}" for reason in told)]
