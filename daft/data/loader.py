"""Batches of one split, the same ones whatever holds the images and however many workers read them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from daft.config.operations import Operation
from daft.data.cache import Cached
from daft.data.images import Resident, Streamed
from daft.data.transforms import RGB, num_uniforms, transform

Batch = tuple[Tensor, Tensor]
"""uint8 images [B, 3, H, W] and int64 labels [B], or uint8 masks [B, H, W]"""


@dataclass
class Loader:
    """One split as epochs of batches; an epoch's order and crops are a function of (seed, epoch)."""

    name: str
    images: Resident | Streamed | Cached
    labels: Tensor
    fingerprint: str
    """of the images and labels"""
    operations: Sequence[Operation]
    batch_size: int
    seed: int
    shuffle: bool
    device: torch.device
    workers: int

    def __post_init__(self) -> None:
        self._stream: DataLoader[Batch] | None = None
        self._operations = self.operations
        if isinstance(self.images, Resident):
            self._operations = self.operations[self.images.applied :]
            self._pixels = self.images.pixels.to(self.device)

    @property
    def identity(self) -> list[Any]:
        """Plain data that differs from any loader whose pixels differ."""
        sampling = [self.seed, self.batch_size] if self.shuffle or num_uniforms(self.operations) else []
        return [self.fingerprint, [repr(op) for op in self.operations], sampling]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    @property
    def num_batches(self) -> int:
        """Number of batches in an epoch."""
        return len(batch_boundaries(len(self), self.batch_size))

    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of an image after the operations."""
        held = self.images
        first = held.pixels[:1] if isinstance(held, Resident) else held.read(0)[None]
        shape = transform(first, self._operations, torch.full((1, num_uniforms(self._operations)), 0.5)).shape
        return RGB, shape[-2], shape[-1]

    def steps(self, steps: range) -> Iterator[Batch]:
        """The batches of these steps of training, counted from 0 through epoch 1, epoch 2, …"""
        for number in range(steps.start // self.num_batches, -(-steps.stop // self.num_batches)):
            before = number * self.num_batches
            yield from self.epoch(number + 1, slice(max(steps.start - before, 0), steps.stop - before))

    def order(self, number: int = 0) -> Tensor:
        """Positions of the images in the order of an epoch, int64 [N]."""
        return self._sample(number)[0]

    def epoch(self, number: int = 0, steps: slice = slice(None)) -> Iterator[Batch]:
        """Batches of an epoch, or of some of its steps, on the device; epoch 0 is before training."""
        order, uniforms = self._sample(number)
        ends = batch_boundaries(len(self), self.batch_size)
        chunks = [order[start:end] for start, end in zip([0, *ends], ends, strict=False)][steps]
        batches = (
            self._resident_batches(chunks, uniforms)
            if isinstance(self.images, Resident)
            else self._streamed_batches(chunks, uniforms)
        )
        for images, labels in batches:
            if images.shape[1] > RGB:
                images, labels = images[:, :RGB], images[:, RGB]
            yield images.contiguous(memory_format=torch.channels_last), labels

    def _sample(self, number: int) -> tuple[Tensor, Tensor]:
        """An epoch's order, and in row i the uniform numbers of image i, whatever batch it comes in."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, number))
        n = len(self)
        order = torch.randperm(n, generator=generator) if self.shuffle else torch.arange(n)
        return order, torch.rand(n, num_uniforms(self._operations), generator=generator)

    def _resident_batches(self, chunks: list[Tensor], uniforms: Tensor) -> Iterator[Batch]:
        for chunk in chunks:
            on_device = chunk.to(self.device, non_blocking=True)
            images = transform(self._pixels[on_device], self._operations, uniforms[chunk])
            yield images, self.labels[chunk].to(self.device, non_blocking=True)

    def _streamed_batches(self, chunks: list[Tensor], uniforms: Tensor) -> Iterator[Batch]:
        assert not isinstance(self.images, Resident)
        if self._stream is None:
            self._sampler = _BatchSampler()
            self._stream = DataLoader(
                _Files(self.images, self.labels, self._operations),
                batch_sampler=self._sampler,
                collate_fn=tuple,  # `_Files` gives whole batches
                num_workers=self.workers,
                persistent_workers=self.workers > 0 and self.shuffle,  # training alone reads every epoch
                pin_memory=self.device.type == "cuda",
                generator=torch.Generator(),  # else each epoch would draw from the global one
            )
        self._sampler.chunks, self._sampler.uniforms = chunks, uniforms
        for images, labels in self._stream:
            yield (
                images.to(self.device, non_blocking=True),
                labels.to(self.device, non_blocking=True),
            )


def derive_seed(*numbers: int) -> int:
    """A seed from several numbers; seeds from other numbers give independent streams."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def batch_boundaries(images: int, batch_size: int) -> list[int]:
    """End index of each batch; a last batch of one image is joined to the batch before.

    One value per channel has no variance, in training and in conversion alike. Batches of one, for
    evaluation, stay as they are.
    """
    ends = [*range(batch_size, images, batch_size), images]
    if len(ends) > 1 and images - ends[-2] == 1 < batch_size:
        del ends[-2]
    return ends


class _BatchSampler:
    """The batch sampler: the current epoch as lists of (index, uniform numbers)."""

    chunks: list[Tensor]
    uniforms: Tensor

    def __iter__(self) -> Iterator[list[tuple[int, list[float]]]]:
        for chunk in self.chunks:  # plain numbers: a tensor per image is slow to send to a worker
            yield list(zip(chunk.tolist(), self.uniforms[chunk].tolist(), strict=True))


class _Files(TorchDataset[Batch]):
    def __init__(self, files: Streamed | Cached, labels: Tensor, operations: Sequence[Operation]) -> None:
        self.files, self.labels, self.operations = files, labels, operations

    def __getitems__(self, items: list[tuple[int, list[float]]]) -> Batch:
        """A whole batch: images of one size, the usual case, are transformed together."""
        indices, rows = zip(*items, strict=True)
        images, uniforms = [self.files.read(i) for i in indices], torch.tensor(rows)
        if len({image.shape for image in images}) == 1:
            batch = transform(torch.stack(images), self.operations, uniforms)
        else:
            each = zip(images, uniforms, strict=True)
            batch = torch.cat([transform(image[None], self.operations, row[None]) for image, row in each])
        return batch, self.labels[list(indices)]
