"""Decoded images on disk: every file is decoded and shrunk once; later epochs and runs map its pixels.

A shard holds SHARD images in order: their heights and widths, little-endian int32 [n, 2], both 0 for a file
that does not decode; then the pixels of one after the other, uint8 [H, W, 3], the layout that decoding
gives. Its name is a digest of its files' paths, sizes and times, so a file that changes costs one new
shard. Nothing is ever deleted: the folder can be, while no run reads it.
"""

import functools
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from daft.common import progress
from daft.common.errors import UserError
from daft.common.files import PARTIAL, discard, exclusive, is_damage, write_atomically
from daft.common.threads import parallel_map
from daft.data.decoding import image_size

SHARD = 2048
"""Images in a file: about half a gigabyte with a shorter side of 256 pixels."""

QUEUED = 256
"""Decoded images that wait to be written, at most."""

SAMPLED = 64
"""Files whose headers tell how much space all of them need."""

VERSION = 2
"""Raised when the same file and side give other bytes."""

SIZES = np.dtype("<i4")
GIB = 2**30


@dataclass(frozen=True)
class Cached:
    """Images that were decoded once, mapped from disk by each process that reads them."""

    paths: list[Path]
    """the files they were"""
    shards: list[Path]
    table: Tensor
    """int64 [N, 4]: number of the shard, first byte in it, height and width in pixels"""

    def read(self, index: int) -> Tensor:
        """One image as uint8 [3, H, W]; raises ValueError if its file did not decode."""
        shard, start, height, width = self.table[index].tolist()
        if not height:
            raise ValueError(f"{self.paths[index]} did not decode")
        pixels = _mapped(self.shards[shard])[start : start + 3 * height * width]
        return pixels.view(height, width, 3).permute(2, 0, 1)

    def size(self, index: int) -> tuple[int, int]:
        """Height and width in pixels."""
        _, _, height, width = self.table[index].tolist()
        return height, width

    def subset(self, indices: Tensor) -> "Cached":
        """These images only, int64 [n]."""
        return Cached([self.paths[i] for i in indices.tolist()], self.shards, self.table[indices])


def build(
    paths: list[Path],
    side: int,
    folder: Path,
    decode: Callable[[Path], Tensor],
    threads: int,
    name: str,
    key: str = "",
) -> Cached:
    """Images with a shorter side of at most `side` pixels from the shards in a folder; makes absent ones.

    decode: the file's image as uint8 [3, H, W]; a file for which it raises is one that does not decode.
    key: in the shards' names, what tells these images from others that are decoded from the same files.
    A build that was cut off goes on with the shard it was at, and processes build one at a time. Raises
    UserError if the disk has no room.
    """
    parts = [paths[start : start + SHARD] for start in range(0, len(paths), SHARD)]
    shards = [folder / f"{stat_digest(part)}-{side}-{VERSION}{key}.pixels" for part in parts]

    def missing() -> dict[Path, list[Path]]:
        pairs = zip(shards, parts, strict=True)
        return {shard: part for shard, part in pairs if _sizes(shard, len(part), side) is None}

    def small(path: Path) -> Tensor | None:
        try:
            return shrink(decode(path), side)
        except Exception as error:  # Pillow raises many kinds for damaged files
            if not is_damage(error):
                raise
            return None

    if missing():
        with _alone(folder):
            absent = missing()  # fewer, if another process was at it
            for shard in absent:
                if shard.is_symlink() or shard.exists():
                    progress.say(f"{shard}: damaged; it is made anew")
                    discard(shard)
            _require_space([path for part in absent.values() for path in part], side, folder, name)
            _make(absent, small, threads, f"caching {name}")
    rows = []
    for number, (shard, part) in enumerate(zip(shards, parts, strict=True)):
        sizes = _sizes(shard, len(part), side)
        assert sizes is not None
        lengths = 3 * sizes.prod(axis=1)
        starts = sizes.size * SIZES.itemsize + lengths.cumsum() - lengths
        rows.append(np.column_stack([np.full_like(starts, number), starts, sizes]))
    return Cached(paths, shards, torch.from_numpy(np.concatenate(rows)))


def shrink(images: Tensor, side: int) -> Tensor:
    """uint8 [..., 3, H, W] with the shorter side brought down to `side` pixels, antialiased bilinear.

    Images whose shorter side is no longer than that stay as they are.
    """
    return F.resize(images, [side], antialias=True) if min(images.shape[-2:]) > side else images


def stat_digest(paths: Iterable[Path]) -> str:
    """A hash of the paths, sizes and times of files; unlike a fingerprint it holds on this machine only."""
    digest = hashlib.sha256()
    for path in paths:
        stat = path.stat()
        digest.update(os.fsencode(f"{path.absolute()}\t{stat.st_size}\t{stat.st_mtime_ns}\n"))
    return digest.hexdigest()


def _sizes(shard: Path, images: int, side: int) -> np.ndarray | None:
    """Height and width of each, int64 [images, 2]; None if the shard is absent, or not what was written."""
    if not shard.is_file():
        return None
    sizes = np.fromfile(shard, SIZES, 2 * images).astype(np.int64)
    if sizes.size != 2 * images:
        return None
    sizes = sizes.reshape(images, 2)
    shorter, longer = sizes.min(axis=1), sizes.max(axis=1)
    if ((shorter < 0) | (shorter > side) | ((shorter == 0) != (longer == 0))).any():
        return None
    expected = sizes.size * SIZES.itemsize + 3 * int(sizes.prod(axis=1).sum())
    return sizes if shard.stat().st_size == expected else None


def _make(
    shards: dict[Path, list[Path]], read: Callable[[Path], Tensor | None], threads: int, what: str
) -> None:
    paths = [path for part in shards.values() for path in part]
    with closing(parallel_map(read, paths, threads, what, QUEUED)) as images:
        for shard, part in shards.items():
            write_atomically(shard, functools.partial(_write, islice(images, len(part)), len(part)))
    _mapped.cache_clear()  # a damaged shard that was replaced may still be mapped


def _write(images: Iterator[Tensor | None], count: int, file: Path) -> None:
    sizes = np.zeros((count, 2), SIZES)
    with open(file, "wb") as out:
        out.seek(sizes.nbytes)  # they are known at the end
        for i, image in enumerate(images):
            if image is not None:
                sizes[i] = image.shape[-2:]
                out.write(image.permute(1, 2, 0).contiguous().numpy().data)
        out.seek(0)
        out.write(sizes.data)


@functools.cache  # per process; a file descriptor is not kept
def _mapped(shard: Path) -> Tensor:
    """All bytes of a file; what is written to them stays in this process."""
    return torch.from_file(str(shard), shared=False, size=shard.stat().st_size, dtype=torch.uint8)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """The folder for this process to write to, tidied of what a kill may have left in it."""
    try:
        with exclusive(folder / ".lock", f"another process is filling {folder}; waiting for it"):
            for leftover in folder.glob(f".*{PARTIAL}"):
                leftover.unlink()
            yield
    except OSError as error:
        raise UserError(f"paths.cache: {folder} cannot be filled ({error.strerror or error})") from error


def _require_space(paths: list[Path], side: int, folder: Path, name: str) -> None:
    """Raise UserError if there is less space than the pixels of these files need, by the size of some."""
    sizes = []
    for path in paths[:: max(1, len(paths) // SAMPLED)]:
        try:
            height, width = image_size(path)
            sizes.append(3 * width * height * min(1, side / min(width, height)) ** 2)
        except Exception:  # decoding will find it
            sizes.append(0)
    needed = len(paths) * sum(sizes) / max(len(sizes), 1)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"dataset.cache_side={side}: the {len(paths):,} images of dataset.{name} need about "
            f"{needed / GIB:.1f} GiB in {folder}, where {free / GIB:.1f} GiB are free; free some, set "
            "paths.cache to a larger disk, or dataset.cache_side=null to decode them every time"
        )
