"""Batches of one split, the same ones whatever holds the images and however many workers read them."""

import math
import multiprocessing
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data import Dataset as TorchDataset

from daft.common import progress
from daft.common.errors import UserError, first_line
from daft.config.operations import Operation
from daft.data.cache import Cached
from daft.data.images import Resident, Streamed
from daft.data.transforms import RGB, num_uniforms, transform, transform_each

Batch = tuple[Tensor, Tensor]
"""uint8 images [B, 3, H, W] and int64 labels [B], or uint8 masks [B, H, W]"""

PREFETCHED = 2
"""Batches that a worker reads ahead."""

STALL_SECONDS = 60.0
"""Without a single image from any worker, after which the run ends."""

SHARED_MEMORY = Path("/dev/shm")
"""Where Linux keeps what a worker hands over; 64 MiB in a container, unless it is given more."""

MIB = 2**20


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

    @property
    def steps_per_pass(self) -> int:
        """Number of training steps in each epoch but epoch 0."""
        return self.num_batches

    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of an image after the operations."""
        held = self.images
        first = held.pixels[:1] if isinstance(held, Resident) else _read(held, 0)[None]
        shape = transform(first, self._operations, torch.full((1, num_uniforms(self._operations)), 0.5)).shape
        return RGB, shape[-2], shape[-1]

    def count(self, steps: range) -> int:
        """How many images there are in these steps of training, one that comes again included."""
        ends = batch_boundaries(len(self), self.batch_size)
        sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
        return sum(sizes[step % len(sizes)] for step in steps)

    def steps(self, steps: range) -> Iterator[Batch]:
        """The batches of these steps of training, counted from 0 through epoch 1, epoch 2, …"""
        for number in range(steps.start // self.steps_per_pass, -(-steps.stop // self.steps_per_pass)):
            before = number * self.steps_per_pass
            yield from self.epoch(number + 1, slice(max(steps.start - before, 0), steps.stop - before))

    def order(self, number: int = 0) -> Tensor:
        """Positions of the images in the order of an epoch, int64 [N]."""
        return self._sample(number)[0]

    def epoch(self, number: int = 0, steps: slice = slice(None)) -> Iterator[Batch]:
        """Batches of an epoch, or of some of its steps, on the device; epoch 0 is before training."""
        order, uniforms = self._sample(number)
        ends = self._ends(number)
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

    def _ends(self, number: int) -> list[int]:
        """End of each batch of an epoch in its order."""
        return batch_boundaries(len(self), self.batch_size)

    def _resident_batches(self, chunks: list[Tensor], uniforms: Tensor) -> Iterator[Batch]:
        for chunk in chunks:
            on_device = chunk.to(self.device, non_blocking=True)
            images = transform(self._pixels[on_device], self._operations, uniforms[chunk])
            yield images, self.labels[chunk].to(self.device, non_blocking=True)

    def _streamed_batches(self, chunks: list[Tensor], uniforms: Tensor) -> Iterator[Batch]:
        assert not isinstance(self.images, Resident)
        if self._stream is None:
            size = math.prod(self.shape()) * self.batch_size
            workers = _fitting_workers(self.workers, size * (PREFETCHED + 1)) if self.workers else 0
            self._files = _Files(self.images, self.labels, self._operations)
            self._sampler = _BatchSampler()
            self._stream = DataLoader(
                self._files,
                batch_sampler=self._sampler,
                collate_fn=_as_it_is,  # `_Files` gives whole batches
                num_workers=workers,
                # The platform's usual way, which in a process of joblib is not that of its children.
                multiprocessing_context=multiprocessing.get_all_start_methods()[0] if workers else None,
                prefetch_factor=PREFETCHED if workers else None,
                timeout=STALL_SECONDS if workers else 0,
                persistent_workers=workers > 0 and self.shuffle,  # training alone reads every epoch
                pin_memory=self.device.type == "cuda",
                generator=torch.Generator(),  # else each epoch would draw from the global one
            )
        self._sampler.chunks, self._sampler.uniforms = chunks, uniforms
        for images, labels in self._handed_over(self._stream):
            yield (
                images.to(self.device, non_blocking=True),
                labels.to(self.device, non_blocking=True),
            )

    def _handed_over(self, stream: DataLoader[Batch]) -> Iterator[Batch]:
        """What the workers give; raises UserError if one of them fails, dies or stalls."""
        batches = iter(stream)
        while True:
            images_read = self._files.images_read.item()
            try:
                batch = next(batches, None)
            except RuntimeError as error:  # torch's word for a worker that died, or a time-out
                if "timed out" in str(error) and self._files.images_read.item() != images_read:
                    continue  # slow, but at work
                _kill_workers(batches)
                raise UserError(
                    f"compute.workers={stream.num_workers}: one that reads dataset.{self.name} died or "
                    f"stalled ({first_line(error)}); use fewer if memory is short, or 0 to read in the run's "
                    "own process"
                ) from error
            if isinstance(batch, str):
                raise UserError(f"dataset.{self.name}: {batch}")
            if batch is None:
                return
            yield batch


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


def _as_it_is(batch: Any) -> Any:
    return batch


def _fitting_workers(workers: int, size: int) -> int:
    """As many workers as the shared memory has room for, if each keeps so many bytes there."""
    if not SHARED_MEMORY.is_dir():  # not on Linux
        return workers
    fitting = min(workers, shutil.disk_usage(SHARED_MEMORY).free // size)
    if fitting < workers:
        progress.say_once(
            f"compute.workers: {fitting} instead of {workers}, for each needs {size / MIB:,.0f} MiB of "
            f"{SHARED_MEMORY}, {_room()}"
        )
    return fitting


def _room() -> str:
    room = shutil.disk_usage(SHARED_MEMORY)
    return (
        f"where {room.free / MIB:,.0f} of {room.total / MIB:,.0f} MiB are free; a container gets more by "
        "docker run --shm-size=8g"
    )


def _read(files: Streamed | Cached, index: int) -> Tensor:
    try:
        return files.read(index)
    except UserError:
        raise
    except Exception as error:  # Pillow raises many kinds for what it could read before
        raise UserError(f"{files.paths[index]} cannot be read any more ({first_line(error)})") from error


def _kill_workers(batches: Any) -> None:
    """End the workers of torch's iterator; one that is stopped would not hear a gentler signal."""
    for worker in getattr(batches, "_workers", []):
        worker.kill()
    with suppress(RuntimeError):  # which says that they were killed
        batches._shutdown_workers()


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """To be filled; in a worker in shared memory, to which torch would else copy it in a thread.

    Raises UserError if there is no room, which in that thread would be lost.
    """
    if get_worker_info() is None:
        return torch.empty(shape, dtype=dtype)
    try:  # as torch's own collation does
        storage = torch.UntypedStorage._new_shared(math.prod(shape) * dtype.itemsize)
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"a worker cannot hand over a batch ({first_line(error)}) by {SHARED_MEMORY}, {_room()}; "
            "or use fewer compute.workers, 0 to read in the run's own process"
        ) from error
    return torch.empty(0, dtype=dtype).set_(storage).view(shape)


class _Files(TorchDataset[Batch]):
    def __init__(self, files: Streamed | Cached, labels: Tensor, operations: Sequence[Operation]) -> None:
        self.files, self.labels, self.operations = files, labels, operations
        self.images_read = torch.zeros((), dtype=torch.int64).share_memory_()
        """by all workers; two that count at once may lose one, but never stand still"""

    def __getitems__(self, items: list[tuple[int, list[float]]]) -> Batch | str:
        """A whole batch, or why there is none: what torch makes of an error in a worker has a traceback."""
        try:
            return self._batch(items)
        except UserError as error:
            return str(error)

    def _read(self, index: int) -> Tensor:
        self.images_read += 1
        return _read(self.files, index)

    def _batch(self, items: list[tuple[int, list[float]]]) -> Batch:
        """Each image goes straight into a batch that is channels last and, in a worker, in shared memory."""
        indices, rows = zip(*items, strict=True)
        images, uniforms = [self._read(i) for i in indices], torch.tensor(rows)
        each = transform_each(images, self.operations, uniforms)
        channels, height, width = each[0].shape
        batch = _empty((len(each), height, width, channels), torch.uint8).permute(0, 3, 1, 2)
        for pixels, image in zip(batch, each, strict=True):
            pixels.copy_(image)
        chosen = self.labels[list(indices)]
        return batch, _empty(tuple(chosen.shape), chosen.dtype).copy_(chosen)
