"""A finished run as an object: its network, its classes, what its images go through, its record."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from daft.common import devices
from daft.common.errors import UserError, first_line, join_first, shown
from daft.common.files import is_damage
from daft.common.threads import parallel_map
from daft.config.schema import selected_on
from daft.data.decoding import why_unreadable
from daft.networks.classifier import Classifier
from daft.runs import frames, records, reopened
from daft.runs.reopened import FinishedRun
from daft.sweep import selection
from daft.training import tasks
from daft.use.inputs import InputTransform

T = TypeVar("T")
Item = str | Path | Image.Image
"""An image: its file, or one of Pillow's."""

QUEUED = 256
"""Images that are decoded ahead of the network, at most."""


@dataclass(frozen=True)
class Predictions:
    """What a network of K classes says of N images."""

    classes: list[str]
    logits: Tensor
    """[N, K] float32, on the CPU"""

    def __len__(self) -> int:
        """Number of images."""
        return len(self.logits)

    @cached_property
    def probabilities(self) -> Tensor:
        """[N, K]: the softmax of the logits."""
        return self.logits.softmax(1)

    @property
    def indices(self) -> Tensor:
        """int64 [N]: of the likeliest class, the first of several."""
        return self.logits.argmax(1)

    @property
    def labels(self) -> list[str]:
        """The likeliest class of each image."""
        return [self.classes[index] for index in self.indices.tolist()]


@dataclass(frozen=True)
class PredictedMasks:
    """What a network of K classes says of the pixels of N images."""

    classes: list[str]
    masks: list[Tensor]
    """uint8 [H, W] of each image after the transform, on the CPU: the likeliest class of every pixel"""

    def __len__(self) -> int:
        """Number of images."""
        return len(self.masks)


@dataclass(frozen=True)
class LoadedRun:
    """A finished run that predicts."""

    run: FinishedRun
    model: Classifier
    """in test mode, normalisation inside: uint8 or floats in [0, 1], [B, 3, H, W] in RGB, to logits [B, K],
    or [B, K, H, W] of pixels"""
    device: torch.device
    """of the network"""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.run}: {join_first(self.classes)} on {self.device}>"

    @property
    def directory(self) -> Path:
        """Where the run is."""
        return self.run.directory

    @property
    def record(self) -> dict[str, Any]:
        """Its `record.json`."""
        return self.run.record

    @property
    def classes(self) -> list[str]:
        """Their names, in the order of the logits."""
        return self.run.classes

    @property
    def segments(self) -> bool:
        """Whether it classifies pixels."""
        return self.run.config.segmentation is not None

    @cached_property
    def transform(self) -> InputTransform:
        """From an image of Pillow's to the uint8 [3, H, W] that the network was evaluated on."""
        return InputTransform.of(self.run.config)

    @property
    def batch_size(self) -> int:
        """Images at a time in the run's own evaluation."""
        config = self.run.config
        return config.segmentation.eval_batch_size if config.segmentation else config.training.batch_size

    def predict(
        self, images: Item | Sequence[Item], batch_size: int | None = None
    ) -> Predictions | PredictedMasks:
        """Predict images of Pillow's, or files, in the run's own precision.

        batch_size: default: that of the run's own evaluation. Raises UserError, which says why, if some
        cannot be read.
        """
        items = [images] if isinstance(images, Item) else list(images)
        failures: dict[int, str] = {}
        batches = (part for _, batch in self.batches(items, failures, batch_size) for part in batch)
        if self.segments:
            masks = [mask for _, logits in batches for mask in logits.argmax(1).to(torch.uint8)]
            found = PredictedMasks(self.classes, masks)
        else:
            logits = [logits for _, logits in batches]
            found = Predictions(self.classes, torch.cat([torch.empty(0, len(self.classes)), *logits]))
        if failures:
            told = [*failures.values()]
            raise UserError(f"{len(told)} of {len(items)} image(s) cannot be used: {join_first(told)}")
        return found

    @torch.no_grad()
    def batches(
        self,
        items: Sequence[Item],
        failures: dict[int, str],
        batch_size: int | None = None,
        threads: int | None = None,
        first: int = 0,
    ) -> Iterator[tuple[int, list[tuple[list[int], Tensor]]]]:
        """Batch by batch the number of the image after it, and by shape numbers and logits on the CPU.

        failures: is given the numbers of images that cannot be used, each with the reason. first: the image
        to begin at; after a whole batch the others are the same. With the images of a split in its order
        these are the logits of the run's own evaluation, to the last bit on the same device.
        """
        task, cast = tasks.of(self.run.config, self.classes), self.run.autocast(self.device)
        readable = self._readable(items, failures, threads, first)
        for batch in batched(readable, batch_size or self.batch_size):
            done: list[tuple[list[int], Tensor]] = []
            for numbers, images in _by_shape(batch):
                pixels = images.to(self.device)
                if self._resizes_on_device(images[0]):
                    pixels = self.transform.transformed(pixels)
                pixels = pixels.contiguous(memory_format=torch.channels_last)
                logits = task.logits(self.model, pixels, cast).cpu()
                finite = logits.isfinite().flatten(1).all(1)
                for i in (~finite).nonzero().flatten().tolist():
                    number = numbers[i]
                    failures[number] = f"{_named(items[number], number)}: the network's answer is not finite"
                done.append(([numbers[i] for i in finite.nonzero().flatten().tolist()], logits[finite]))
            yield batch[-1][0] + 1, done

    def _readable(
        self, items: Sequence[Item], failures: dict[int, str], threads: int | None, first: int
    ) -> Iterator[tuple[int, Tensor]]:
        """Number and pixels [3, H, W] of each image that can be read, in order, decoded by threads."""
        alone = Lock()  # Pillow's images are not for several threads, and one may be there twice

        def read(number: int) -> Tensor | str:
            given = items[number]
            item = Path(given) if isinstance(given, str) else given
            try:
                with nullcontext() if isinstance(item, Path) else alone:
                    pixels = self.transform.pixels(item)
                return pixels if self._resizes_on_device(pixels) else self.transform.transformed(pixels)
            except Exception as error:  # Pillow raises many kinds for damaged files
                return _reason(item, number, error)

        found = parallel_map(read, range(first, len(items)), threads, "predicting", QUEUED)
        for number, pixels in enumerate(found, first):
            if isinstance(pixels, str):
                failures[number] = pixels
            else:
                yield number, pixels

    def _resizes_on_device(self, pixels: Tensor) -> bool:
        """Whether the run resized such an image [3, H, W] where it computes: GPUs round otherwise."""
        resident = "id" in self.record["data"].get("resident", [])
        return self.device.type == "cuda" and resident and self.transform.enlarges(tuple(pixels.shape))


def _named(item: Item, number: int) -> str:
    return f"image {number}" if isinstance(item, Image.Image) else shown(item)


def _reason(item: Path | Image.Image, number: int, error: Exception) -> str:
    """Why an image cannot be used; raises the error again if it is not the image's."""
    if not isinstance(item, Path):
        if not isinstance(item, Image.Image):
            kind = type(item).__name__
            return f"image {number}: of type {kind}; give paths, or images of Pillow's"
        return f"image {number}: {first_line(error)}"
    if isinstance(error, FileNotFoundError):
        return f"{shown(item)}: does not exist"
    if isinstance(error, IsADirectoryError | PermissionError):
        return f"{shown(item)}: {error.strerror}"
    if isinstance(error, UserError):
        return str(error) if str(error).startswith(shown(item)) else f"{shown(item)}: {error}"
    if not is_damage(error):
        raise error
    return f"{shown(item)}: {why_unreadable(item, error)}"


def batched(items: Iterator[T], size: int) -> Iterator[list[T]]:
    """The batches of `loader.batch_boundaries`, of items whose number is not known yet."""
    held: list[T] = []
    for item in items:
        held.append(item)
        if len(held) == size + 2:  # so many that none is left alone
            yield held[:size]
            held = held[size:]
    if len(held) > size > 1:
        yield held
    else:
        yield from (held[start : start + size] for start in range(0, len(held), size))


def _by_shape(batch: list[tuple[int, Tensor]]) -> Iterator[tuple[list[int], Tensor]]:
    """Neighbours of one shape together."""
    numbers: list[int] = []
    images: list[Tensor] = []
    for number, image in batch:
        if images and image.shape != images[0].shape:
            yield numbers, torch.stack(images)
            numbers, images = [], []
        numbers.append(number)
        images.append(image)
    if images:
        yield numbers, torch.stack(images)


def load_run(directory: str | Path, device: str | torch.device = "cpu") -> LoadedRun:
    """A finished run; a copy of its directory is enough, without images, pretrained weights or Hydra.

    Raises UserError if no such run is there, if it diverged, if its weights were not kept or are damaged, if
    it was trained on episodes, or if the device is not here.
    """
    place = devices.find(str(device), "device")
    run = reopened.open_run(Path(directory).expanduser())
    if run.config.fewshot is not None:
        raise UserError(f"{run}: it was trained on episodes, so its head is not one of classes")
    return LoadedRun(run, run.network(place), place)


def best_run(
    runs: str | Path,
    *,
    dataset: str | None = None,
    backbone: str | None = None,
    method: str | None = None,
    device: str | torch.device = "cpu",
) -> LoadedRun:
    """The run of a folder that is best by what its epoch was selected on, never by OOD images.

    dataset, backbone, method: names, as in the configuration; of several methods the best one wins. Per
    method learning rates are selected as in tables, then the best of their seeds counts. Raises UserError
    if no run fits, or if runs on several datasets or backbones do.
    """
    folder = Path(runs).expanduser()
    wanted = dict(zip(frames.CELL, (dataset, backbone, method), strict=True))
    found = [(d, record) for d in records.find_runs(folder) for record in records.load([d])]
    table = frames.from_records([record for _, record in found])
    if table.empty:
        raise UserError(f"{folder}: no records below this folder")
    table["directory"] = [str(directory) for directory, _ in found]
    for column, name in wanted.items():
        kind, names = column.split(".")[1], sorted(table[column].unique())
        if name is not None and name not in names:
            raise UserError(f"{kind}={name}: no run in {folder} has it; choose from {', '.join(names)}")
        if name is None and kind != "method" and len(names) > 1:
            raise UserError(f"{folder} has runs of several {kind}s; name one: {kind}={' or '.join(names)}")
        table = table if name is None else table[table[column] == name]
    chosen = selection.select(table)
    if chosen.empty:
        raise UserError(f"{folder}: all {len(table)} run(s) that fit have diverged")
    metrics = {
        selected_on(how, None if measure == "accuracy" else measure)
        for how, measure in zip(chosen["config.training.selection"], chosen["measure"], strict=True)
    }
    if len(metrics) > 1:
        raise UserError(f"{folder}: runs are selected on {' and '.join(sorted(metrics))}; name a method")
    best = chosen.sort_values(metrics.pop(), ascending=False, kind="stable").iloc[0]
    return load_run(best["directory"], device)
