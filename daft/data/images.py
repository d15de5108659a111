"""Decoded images: held in memory where they fit, read from files each time where they do not."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import TypeAdapter
from torch import Tensor

from daft.common.errors import UserError, shown
from daft.common.files import cached, is_damage, read_json
from daft.common.threads import parallel_map
from daft.config.operations import Operation
from daft.data.cache import GIB, VERSION, Cached, build, shrink, stat_digest
from daft.data.decoding import USUAL, Decoding, image_size, read_image, why_unreadable
from daft.data.labelled import Drawn, Labelled, Masks
from daft.data.transforms import NO_UNIFORMS, deterministic_prefix, gives_one_shape, min_side, transform


@dataclass(frozen=True)
class Resident:
    """Images in memory."""

    pixels: Tensor
    """uint8 [N, 3, H, W], or [N, 4, H, W] with masks"""
    applied: int = 0
    """how many of the split's operations, from the first, the pixels have been through"""

    def subset(self, indices: Tensor) -> "Resident":
        """These images only, int64 [n]."""
        return replace(self, pixels=self.pixels[indices])


@dataclass(frozen=True)
class Streamed:
    """Files that are decoded each time they are read, because they differ in size or do not fit."""

    paths: list[Path]
    masks: Masks | None = None
    decoding: Decoding = USUAL

    @classmethod
    def of(cls, split: Labelled) -> "Streamed":
        """The files of a split that has files."""
        assert isinstance(split.images, list)
        return cls(split.images, split.masks, split.decoding)

    def read(self, index: int) -> Tensor:
        """One image as uint8 [3, H, W], [4, H, W] with its mask; raises as `read_image` if it cannot."""
        image = read_image(self.paths[index], self.decoding)
        if self.masks is None:
            return image
        mask = self.masks.read(index, self.decoding)
        if mask.shape != image.shape[1:]:
            sizes = [f"{height} x {width}" for height, width in (mask.shape, image.shape[1:])]
            raise UserError(f"{self.masks.files[index]}: {sizes[0]} pixels, but its image has {sizes[1]}")
        return torch.cat([image, mask[None]])

    def size(self, index: int) -> tuple[int, int]:
        """Height and width in pixels, by the header."""
        return image_size(self.paths[index], self.decoding)

    def subset(self, indices: Tensor) -> "Streamed":
        """These images only, int64 [n]."""
        masks = self.masks.subset(indices) if self.masks else None
        return replace(self, paths=[self.paths[i] for i in indices.tolist()], masks=masks)

    def problem(self, index: int) -> str:
        """Of an image that does not decode: which file it is, what is wrong with it, and what mends it."""
        file = self.paths[index]
        try:
            read_image(file, self.decoding)
            if self.masks is not None:
                file = self.masks.files[index]
                self.masks.read(index, self.decoding)
        except Exception as error:  # Pillow raises many kinds for damaged files
            return f"{shown(file)}: {why_unreadable(file, error)}"
        return f"{shown(file)}: can be read now; try again"


class _Key(NamedTuple):
    """What decides which pixels a split has in memory, and where."""

    files: str
    """a digest of names, sizes and times"""
    least: int
    """that a shorter side must have"""
    cache_side: int | None
    device: torch.device
    operations: tuple[Operation, ...]


_InMemory = dict[_Key, tuple[Resident, list[int]]]
"""Images, and the indices of those that do not decode."""

_latest: _InMemory = {}
"""Of the last `ImageStore`: a process of a sweep runs one after the other on the same images."""


@dataclass
class ImageStore:
    """Decodes the splits of one dataset, each file once, and remembers which do not decode.

    What the store before it has in memory is not decoded again; the first split that differs frees it.
    """

    limit_gib: float
    """for all resident splits together"""
    threads: int
    cache: Path
    """where drawn images are kept, the verdict on streamed files, and their pixels on request"""
    device: torch.device
    """where resident images live"""
    cache_side: int | None = None
    """decode each file once, and keep the pixels with a shorter side of at most so many"""
    unreadable: dict[str, Streamed] = field(default_factory=dict)
    """per split the files that do not decode"""
    _resident: _InMemory = field(default_factory=dict)
    _before: _InMemory = field(default_factory=dict)

    def __post_init__(self) -> None:
        global _latest
        self._before, _latest = _latest, self._resident

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
            least = min_side(operations)
            if self.cache_side is not None:
                if least > self.cache_side:
                    raise ValueError(
                        f"dataset.cache_side={self.cache_side} is too small for a crop of {least}; raise it, "
                        "or put a resize before the crop"
                    )
                split = replace(split, fingerprint=f"{split.fingerprint}/{self.cache_side}")
            if isinstance(split.held, Drawn):
                split.held.pixels(self.cache / "drawn")
            if isinstance(split.images, Tensor):
                pixels = split.images if self.cache_side is None else shrink(split.images, self.cache_side)
                _require_side(pixels, least, "images")
                return Resident(pixels.to(self.device)), split
            if split.decoding.key:
                split = replace(split, fingerprint=f"{split.fingerprint}/{split.decoding.key}")
            files = self._open(split, name)
            paths = files.paths
            digest = stat_digest(paths if split.masks is None else [*paths, *split.masks.files])
            digest = f"{digest}-{VERSION}{split.decoding.cache_key}"
            loaded = self._decode(files, digest, least, tuple(deterministic_prefix(operations)), name)
            images, bad = loaded or (files, self._verify(files, digest, least, name))
            if bad:
                self.unreadable[name] = Streamed.of(split).subset(torch.tensor(bad))
                good = torch.tensor(sorted(set(range(len(paths))) - set(bad)), dtype=torch.int64)
                split, images = split.subset(good), images.subset(good)
            if batched and not isinstance(images, Resident) and not gives_one_shape(operations):
                _require_equal_sizes(images)
        except ValueError as error:
            raise UserError(f"dataset.{name}: {error}") from error
        return images, split

    def _open(self, split: Labelled, name: str) -> Streamed | Cached:
        files = Streamed.of(split)
        if self.cache_side is None:
            return files
        return build(
            files.paths,
            self.cache_side,
            self.cache / "pixels",
            lambda path: read_image(path, split.decoding),
            self.threads,
            name,
            split.decoding.cache_key,
        )

    def _decode(
        self,
        files: Streamed | Cached,
        digest: str,
        least: int,
        operations: tuple[Operation, ...],
        name: str,
    ) -> tuple[Resident, list[int]] | None:
        count = len(files.paths)
        first = next((image for i in range(count) if (image := _try_read(files, i, least)) is not None), None)
        if first is None:
            return None
        shapes = {0: first.shape[-2:]}
        shapes[len(operations)] = transform(first[None], operations, NO_UNIFORMS).shape[-2:]
        sizes = {
            _Key(digest, least, self.cache_side, self.device, operations[:applied]): (height, width)
            for applied, (height, width) in sorted(shapes.items(), key=lambda shape: shape[1].numel())
        }
        for key in sizes:
            if key in self._resident:
                return self._resident[key]
        room = self.limit_gib * GIB - sum(images.pixels.numel() for images, _ in self._resident.values())
        fitting = [key for key, size in sizes.items() if count * len(first) * math.prod(size) <= room]
        if fitting and fitting[0] in self._before:  # with another, random operations could see other pixels
            return self._resident.setdefault(fitting[0], self._before[fitting[0]])
        self._before.clear()
        for key in fitting:
            pixels = torch.empty(count, len(first), *sizes[key], dtype=torch.uint8)
            bad = _fill(pixels, files, least, key.operations, self.threads, f"reading {name}")
            if bad is not None:
                images = Resident(pixels.to(self.device), len(key.operations))
                return self._resident.setdefault(key, (images, bad))
        return None

    def _verify(self, files: Streamed | Cached, digest: str, least: int, name: str) -> list[int]:
        """Indices of the files that do not decode; reads them all, the first time."""

        def undecodable() -> str:
            indices = range(len(files.paths))
            images = parallel_map(
                lambda i: _try_read(files, i, least) is None, indices, self.threads, f"checking {name}"
            )
            return json.dumps([i for i, failed in enumerate(images) if failed])

        def kept(file: Path) -> list[int]:
            found = TypeAdapter(list[int]).validate_python(read_json(file), strict=True)
            if sorted({*range(len(files.paths))}.intersection(found)) != found:
                raise ValueError("not numbers of these images")
            return found

        return cached(self.cache / "verified" / f"{digest}-{least}.json", undecodable, kept)


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
        image = transform(image[None], operations, NO_UNIFORMS)[0]
        if image.shape != pixels.shape[1:]:
            return "other size"
        pixels[i] = image
        return "ok"

    bad = []
    outcomes = parallel_map(decode, range(len(pixels)), threads, what)
    for i, outcome in enumerate(outcomes):
        if outcome == "other size":
            outcomes.close()
            return None
        if outcome == "unreadable":
            bad.append(i)
    return bad
