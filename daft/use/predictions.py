"""Predictions of many images as tables and pictures, and how right they are where classes are known."""

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from daft.common import progress
from daft.common.files import write_atomically
from daft.common.numbers import fixed
from daft.report.figures import confusion, sheets, style
from daft.training.predictions import balanced_accuracy
from daft.use.listing import Listed
from daft.use.loaded import LoadedRun
from daft.use.partial import Partial, Row


@dataclass
class Predicted:
    """What a run says of images, as far as they can be used."""

    classes: list[str]
    listed: list[Listed]
    header: list[str]
    rows: list[Row] = field(default_factory=list)
    failures: dict[int, str] = field(default_factory=dict)
    """why an image is left out, by its number"""

    @property
    def confusion(self) -> Tensor:
        """int64 [K, K]: images by class (rows) and predicted class, of those whose class is known."""
        numbers = {name: number for number, name in enumerate(self.classes)}
        counts = torch.zeros(len(numbers), len(numbers), dtype=torch.int64)
        if "label" in self.header[:2]:
            for _, label, prediction, *_ in self.rows:
                if label:
                    counts[numbers[str(label)], numbers[str(prediction)]] += 1
        return counts


def predict(
    run: LoadedRun,
    listed: list[Listed],
    partial: Partial | None = None,
    *,
    every_class: bool = False,
    batch_size: int | None = None,
    threads: int | None = None,
) -> Predicted:
    """Classify images: path, label if any is known, prediction and its probability; or those of all.

    partial: keeps what is done, and has what the same call did before it was interrupted.
    """
    known = any(image.label is not None for image in listed)
    every = [f"p({name})" for name in run.classes] if every_class else []
    header = ["path", *(["label"] if known else []), "prediction", "probability", *every]

    def rows(batch: list[int], logits: Tensor) -> Iterator[Row]:
        likely, probabilities = logits.argmax(1).tolist(), logits.softmax(1).tolist()
        for number, likeliest, row in zip(batch, likely, probabilities, strict=True):
            image = listed[number]
            label: Row = [image.label or ""] if known else []
            every: Row = row if every_class else []
            yield [str(image.file), *label, run.classes[likeliest], row[likeliest], *every]

    return _predicted(run, Predicted(run.classes, listed, header), rows, partial, batch_size, threads)


def segment(
    run: LoadedRun,
    listed: list[Listed],
    folder: Path,
    partial: Partial | None = None,
    *,
    batch_size: int | None = None,
    threads: int | None = None,
) -> Predicted:
    """Classify pixels: path, mask, share of each class; masks are PNG files with a palette, in a folder.

    partial: as `predict`.
    """
    header = ["path", "mask", *(f"share({name})" for name in run.classes)]
    colours = sheets.palette(256).tobytes()

    def rows(batch: list[int], logits: Tensor) -> Iterator[Row]:
        for number, mask in zip(batch, logits.argmax(1), strict=True):
            file = listed[number].file
            picture = Image.fromarray(mask.to(torch.uint8).numpy())
            picture.putpalette(colours)
            to = folder / f"{number:06}-{file.stem}.png"  # folders may have files of one name
            write_atomically(to, lambda path, picture=picture: picture.save(path, "PNG"))
            pixels = torch.bincount(mask.flatten(), minlength=len(run.classes)).tolist()
            yield [str(file), str(to), *(count / mask.numel() for count in pixels)]

    return _predicted(run, Predicted(run.classes, listed, header), rows, partial, batch_size, threads)


def _predicted(
    run: LoadedRun,
    found: Predicted,
    rows: Callable[[list[int], Tensor], Iterator[Row]],
    partial: Partial | None,
    batch_size: int | None,
    threads: int | None,
) -> Predicted:
    """With the rows of all images; rows: of some, by their numbers and logits."""
    first, batch_size = 0, batch_size or run.batch_size
    if partial:
        files = [(str(image.file), image.label, _state(image.file)) for image in found.listed]
        of = [run.record["run"], run.device.type, batch_size, found.header, files]
        for batch in partial.start(of):
            found.rows += batch.rows
            found.failures |= batch.failures
        if first := partial.done:
            progress.note(f"{first:,} of {len(found.listed):,} image(s) are there")
    files = [image.file for image in found.listed]
    for after, parts in run.batches(files, found.failures, batch_size, threads, first):
        new = [row for part in parts for row in rows(*part)]
        found.rows += new
        if partial:
            partial.add(after, new, found.failures)
    return found


def _state(file: Path) -> list[int]:
    """What tells a file from another of its name."""
    try:
        found = file.stat()
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns]


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
    counts = predicted.confusion
    if not counts.sum():
        return [out]
    table, picture = (out.with_name(f"{out.stem}-confusion.{kind}") for kind in ("csv", "png"))
    rows = [[n, *counts] for n, counts in zip(predicted.classes, counts.tolist(), strict=True)]
    _write_csv(table, [["label", *predicted.classes], *rows])
    style.save(confusion.figure(counts, predicted.classes), picture)
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
