"""Labelled images: listed, decoded into memory where they fit, decoded on demand where they do not."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import scipy.io
import torch
from PIL import Image
from torch import Tensor

from daft.common import progress
from daft.common.errors import UserError, some
from daft.common.files import is_damage, write_atomically
from daft.config.operations import Operation
from daft.data.cache import GIB, Cached, build, shrink, state
from daft.data.transforms import NO_DRAWS, fixed_prefix, least_side, one_shape, transform

QUEUED = 4096
"""Images that wait for a thread at a time."""

FINGERPRINTED = 500
"""Files whose contents go into a split's fingerprint, at least, if there are as many."""

T = TypeVar("T")
R = TypeVar("R")


IGNORED = 255
"""In a mask: a pixel of no class, left out of loss and measure."""

FORBIDDEN = -1
"""In `Masks.meaning`: a value that must not occur."""


@dataclass(frozen=True)
class Masks:
    """Files with a class for every pixel of an image, one per image."""

    files: list[Path]
    meaning: Tensor
    """int16 [256]: the class of each value in a file, IGNORED or FORBIDDEN"""

    def read(self, index: int) -> Tensor:
        """One mask as uint8 [H, W]; raises UserError for a file that is no mask or has forbidden values."""
        file = self.files[index]
        values = _read_mask(file)
        classes = self.meaning[values.long()]
        if (classes == FORBIDDEN).any():
            found = some(sorted(set(values[classes == FORBIDDEN].tolist())))
            raise UserError(f"{file}: has pixels of value {found}, which is no class")
        return classes.to(torch.uint8)

    def subset(self, indices: Sequence[int]) -> "Masks":
        """Of these images only."""
        return Masks([self.files[i] for i in indices], self.meaning)


def _read_mask(file: Path) -> Tensor:
    """uint8 [H, W] from the indices of a palette, from greys, or from an SBD file."""
    if file.suffix == ".mat":
        return torch.from_numpy(scipy.io.loadmat(file)["GTcls"]["Segmentation"][0, 0].copy())
    with Image.open(file) as image:
        if image.mode not in ("P", "L"):
            raise UserError(f"{file}: a mask has one byte a pixel, not the mode {image.mode}")
        return torch.from_numpy(np.array(image))


@dataclass(frozen=True)
class Labelled:
    """Images and their classes, or masks, before decoding, ordered by class and path."""

    images: list[Path] | Tensor
    """files, or uint8 [N, 3, H, W]; [N, 4, H, W] with masks"""
    labels: Tensor
    """int64 [N]; 0 for images with masks"""
    fingerprint: str
    """of names, sizes and labels: two sets with the same one are taken for the same"""
    masks: Masks | None = None
    """of files"""

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def of_files(cls, listed: pd.DataFrame, classes: Sequence[Any], what: str) -> "Labelled":
        """The files of `what`, a table of path (its name, for order and identity), file (to open), label
        (class name); raises UserError naming the first of those that do not exist.
        """
        absent = [file for file in listed["file"] if not Path(file).is_file()]
        if absent:
            raise UserError(
                f"{len(absent)} of the {len(listed):,} file(s) of {what} do not exist: {some(absent)}"
            )
        numbers = {label: number for number, label in enumerate(classes)}
        listed = listed.assign(label=[numbers[label] for label in listed["label"]])
        listed = listed.sort_values(["label", "path"], kind="stable")
        files = [Path(file) for file in listed["file"]]
        digest = hashlib.sha256()
        for file, path, label in zip(files, listed["path"], listed["label"], strict=True):
            name = file.name if Path(path).is_absolute() else path  # where a disk is mounted is no fact
            digest.update(f"{name}\t{file.stat().st_size}\t{label}\n".encode())
        # Uncompressed images are all of one size: some contents, evenly spaced, tell two sets of them apart.
        for file in files[:: max(1, len(files) // FINGERPRINTED)]:
            digest.update(file.read_bytes())
        return cls(files, torch.tensor(listed["label"].to_numpy(np.int64)), digest.hexdigest())

    @classmethod
    def of_masks(cls, listed: pd.DataFrame, meaning: Tensor, what: str) -> "Labelled":
        """As `of_files`, a table of path, file and mask (to open), and what the values of masks mean."""
        image = cls.of_files(listed.assign(label=0), [0], what)
        mask = cls.of_files(listed.assign(file=listed["mask"], label=0), [0], f"the masks of {what}")
        assert isinstance(image.images, list)
        assert isinstance(mask.images, list)
        digest = hashlib.sha256(f"{image.fingerprint}\t{mask.fingerprint}".encode())
        digest.update(meaning.numpy().data)
        return cls(image.images, image.labels, digest.hexdigest(), Masks(mask.images, meaning))

    @classmethod
    def of_pixels(cls, pixels: np.ndarray, labels: np.ndarray) -> "Labelled":
        """Images uint8 [N, 3, H, W] and labels [N], in the order of their labels."""
        order = np.argsort(labels, kind="stable")
        pixels, labels = np.ascontiguousarray(pixels[order]), labels[order].astype(np.int64)
        digest = hashlib.sha256(str(pixels.shape).encode() + labels.tobytes())
        digest.update(pixels.data)
        return cls(torch.from_numpy(pixels), torch.from_numpy(labels), digest.hexdigest())

    def subset(self, indices: Tensor) -> "Labelled":
        """These images only, int64 [n]."""
        images = self.images
        images = images[indices] if isinstance(images, Tensor) else [images[i] for i in indices]
        digest = hashlib.sha256(self.fingerprint.encode() + indices.numpy().tobytes()).hexdigest()
        masks = self.masks.subset(indices.tolist()) if self.masks else None
        return Labelled(images, self.labels[indices], digest, masks)

    def every(self, n: int) -> tuple["Labelled", "Labelled"]:
        """(the others, every n-th image of each class in path order): a stratified division by rule."""
        rank = torch.zeros_like(self.labels)
        for label in self.labels.unique():
            of_class = (self.labels == label).nonzero()[:, 0]
            rank[of_class] = torch.arange(len(of_class))
        nth = rank % n == n - 1
        return self.subset((~nth).nonzero()[:, 0]), self.subset(nth.nonzero()[:, 0])

    def thinned(self, count: int) -> "Labelled":
        """`count` images, each class keeping its share, evenly spaced within the class; at most all."""
        labels, sizes = self.labels.unique(return_counts=True)
        # Whole numbers in proportion to the class sizes by largest remainder; ties to lower labels.
        quota = sizes * count // len(self)
        leftover = (sizes * count % len(self)).argsort(descending=True, stable=True)
        quota[leftover[: count - int(quota.sum())]] += 1
        kept = []
        for label, size, n in zip(labels, sizes, quota, strict=True):
            of_class = (self.labels == label).nonzero()[:, 0]
            kept.append(of_class[torch.arange(int(n)) * size // max(int(n), 1)])
        return self.subset(torch.cat(kept))


@dataclass(frozen=True)
class Resident:
    """Images in memory, uint8 [N, 3, H, W] or with masks [N, 4, H, W], after the first `done` operations."""

    pixels: Tensor
    done: int = 0

    def subset(self, kept: Tensor) -> "Resident":
        """The images that a mask, bool [N], keeps."""
        return replace(self, pixels=self.pixels[kept])


@dataclass(frozen=True)
class Streamed:
    """Files that are decoded each time, because they differ in size or do not fit."""

    paths: list[Path]
    masks: Masks | None = None

    def read(self, index: int) -> Tensor:
        """One image as uint8 [3, H, W], [4, H, W] with its mask; raises as Pillow if it does not decode."""
        image = read_image(self.paths[index])
        if self.masks is None:
            return image
        mask = self.masks.read(index)
        if mask.shape != image.shape[1:]:
            sizes = [f"{height} x {width}" for height, width in (mask.shape, image.shape[1:])]
            raise UserError(f"{self.masks.files[index]}: {sizes[0]} pixels, but its image has {sizes[1]}")
        return torch.cat([image, mask[None]])

    def size(self, index: int) -> tuple[int, int]:
        """Height and width in pixels, by the header."""
        with Image.open(self.paths[index]) as file:
            return file.height, file.width

    def subset(self, kept: Tensor) -> "Streamed":
        """The images that a mask, bool [N], keeps."""
        indices = kept.nonzero()[:, 0].tolist()
        masks = self.masks.subset(indices) if self.masks else None
        return Streamed([self.paths[i] for i in indices], masks)


def read_image(path: Path) -> Tensor:
    """One image file as uint8 [3, H, W] in RGB; raises whatever Pillow raises if it cannot."""
    with Image.open(path) as file:
        image: Image.Image = file
        if image.mode.startswith("I;16"):  # 16-bit grey: convert() would clip it to white
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        array = np.array(image.convert("RGB"))
    return torch.from_numpy(array).permute(2, 0, 1)


@dataclass
class ImageStore:
    """Decodes the splits of one dataset, each file once, and remembers which do not decode."""

    limit_gib: float
    """for all resident splits together"""
    threads: int
    cache: Path
    """where the verdict on streamed files is kept, and their pixels on request"""
    device: torch.device
    """where resident images live"""
    cache_side: int | None = None
    """decode each file once, and keep the pixels with a shorter side of at most so many"""
    unreadable: dict[str, list[Path]] = field(default_factory=dict)
    """per split the files that do not decode"""
    _resident: dict[tuple[str, tuple[Operation, ...]], tuple[Resident, list[int]]] = field(
        default_factory=dict
    )

    def load(
        self, split: Labelled, operations: Sequence[Operation], name: str, batched: bool = True
    ) -> tuple[Resident | Streamed | Cached, Labelled]:
        """The split's images, in memory if they share a size and fit, and the split as it was read.

        batched: whether several must have one shape.
        operations: all that the split goes through. Those before the first random one are applied once,
        unless images are smaller without them: CIFAR-10 stays at 32 pixels until it is on the device.
        Raises UserError for an image that is too small for a crop.
        """
        try:
            least = least_side(operations)
            if self.cache_side is not None:
                if least > self.cache_side:
                    raise ValueError(
                        f"dataset.cache_side={self.cache_side} is too small for a crop of {least}; raise it, "
                        "or put a resize before the crop"
                    )
                split = replace(split, fingerprint=f"{split.fingerprint}/{self.cache_side}")
            if isinstance(split.images, Tensor):
                pixels = split.images if self.cache_side is None else shrink(split.images, self.cache_side)
                _require_side(pixels, least, "images")
                return Resident(pixels.to(self.device)), split
            paths = split.images
            files = self._open(split, paths, name)
            key = state(paths if split.masks is None else [*paths, *split.masks.files])
            loaded = self._decode(files, key, least, tuple(fixed_prefix(operations)), name)
            images, bad = loaded or (files, self._verify(files, key, least, name))
            if bad:
                self.unreadable[name] = [paths[i] for i in bad]
                good = torch.ones(len(paths), dtype=torch.bool)
                good[bad] = False
                split, images = split.subset(good.nonzero()[:, 0]), images.subset(good)
            if batched and not isinstance(images, Resident) and not one_shape(operations):
                _require_equal_sizes(images)
        except ValueError as error:
            raise UserError(f"dataset.{name}: {error}") from error
        return images, split

    def _open(self, split: Labelled, paths: list[Path], name: str) -> Streamed | Cached:
        if self.cache_side is None:
            return Streamed(paths, split.masks)
        return build(paths, self.cache_side, self.cache / "pixels", read_image, self.threads, name)

    def _decode(
        self,
        files: Streamed | Cached,
        state: str,
        least: int,
        operations: tuple[Operation, ...],
        name: str,
    ) -> tuple[Resident, list[int]] | None:
        count = len(files.paths)
        first = next((image for i in range(count) if (image := _try_read(files, i, least)) is not None), None)
        if first is None:
            return None
        shapes = {0: first.shape[-2:]}
        shapes[len(operations)] = transform(first[None], operations, NO_DRAWS).shape[-2:]
        for done, (height, width) in sorted(shapes.items(), key=lambda s: s[1].numel()):
            key = (state, operations[:done])
            if key in self._resident:
                return self._resident[key]
            size = count * len(first) * height * width
            used = sum(resident.pixels.numel() for resident, _ in self._resident.values())
            if used + size > self.limit_gib * GIB:
                continue
            pixels = torch.empty(count, len(first), height, width, dtype=torch.uint8)
            bad = _fill(pixels, files, least, operations[:done], self.threads, f"reading {name}")
            if bad is not None:
                self._resident[key] = Resident(pixels.to(self.device), done), bad
                return self._resident[key]
        return None

    def _verify(self, files: Streamed | Cached, state: str, least: int, name: str) -> list[int]:
        """Indices of the files that do not decode; reads them all, the first time."""
        verdict = self.cache / "verified" / f"{state}-{least}.json"
        if verdict.exists():
            return json.loads(verdict.read_text())
        with ThreadPoolExecutor(self.threads) as pool:
            indices = range(len(files.paths))
            failed = _bounded(pool, lambda i: _try_read(files, i, least) is None, indices)
            failed = progress.track(failed, f"checking {name}", len(indices))
            bad = [i for i, no in enumerate(failed) if no]
        write_atomically(verdict, json.dumps(bad))
        return bad


def _require_equal_sizes(images: Streamed | Cached) -> None:
    """Raise ValueError unless all have one size: a batch has one shape."""
    sizes: dict[tuple[int, int], Path] = {}
    for i, path in enumerate(images.paths):
        sizes.setdefault(images.size(i), path)
        if len(sizes) > 1:
            (one, a), (other, b) = sizes.items()
            raise ValueError(
                f"images differ in size ({a}: {one[1]} x {one[0]} pixels, {b}: {other[1]} x {other[0]}) and "
                "nothing in the transform gives them one shape; add a crop, or resize: [height, width]"
            )


def _bounded(pool: ThreadPoolExecutor, work: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """`pool.map` that does not queue a million items at once."""
    for start in range(0, len(items), QUEUED):
        yield from pool.map(work, items[start : start + QUEUED])


def _try_read(files: Streamed | Cached, index: int, least: int) -> Tensor | None:
    """The image, None if it does not decode; raises ValueError if its shorter side is below `least`."""
    try:
        image = files.read(index)
    except Exception as error:  # Pillow raises many kinds for damaged files
        if not is_damage(error):
            raise
        return None
    _require_side(image, least, str(files.paths[index]))
    return image


def _require_side(images: Tensor, least: int, what: str) -> None:
    height, width = images.shape[-2:]
    if min(height, width) < least:
        raise ValueError(
            f"{what} of {height} x {width} pixels: too small for a crop of {least}; put a resize before it"
        )


def _fill(
    pixels: Tensor,
    files: Streamed | Cached,
    least: int,
    operations: Sequence[Operation],
    threads: int,
    what: str,
) -> list[int] | None:
    """Decode into `pixels`; the indices that do not decode, or None if an image has another size."""

    def decode(i: int) -> str:
        image = _try_read(files, i, least)
        if image is None:
            return "unreadable"
        image = transform(image[None], operations, NO_DRAWS)[0]
        if image.shape != pixels.shape[1:]:
            return "other size"
        pixels[i] = image
        return "ok"

    bad = []
    with ThreadPoolExecutor(threads) as pool:
        for i, outcome in enumerate(
            progress.track(_bounded(pool, decode, range(len(pixels))), what, len(pixels))
        ):
            if outcome == "other size":
                pool.shutdown(cancel_futures=True)
                return None
            if outcome == "unreadable":
                bad.append(i)
    return bad
