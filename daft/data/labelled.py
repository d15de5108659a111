"""Images and their labels as a source lists them, before any is decoded."""

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from daft.common import progress
from daft.common.errors import UserError, join_first, shown
from daft.data.decoding import USUAL, Decoding, opened

MIN_HASHED_FILES = 500
"""Files whose contents go into a split's fingerprint, at least, if there are as many."""

IGNORED = 255
"""In a mask: a pixel of no class, left out of loss and measure."""

INVALID = -1
"""In `Masks.class_of_value`: a value that must not occur."""


@dataclass(frozen=True)
class Masks:
    """Files with a class for every pixel of an image, one per image."""

    files: list[Path]
    class_of_value: Tensor
    """int16 [256]: the class of each value in a file, or IGNORED, or INVALID"""

    def read(self, index: int, decoding: Decoding = USUAL) -> Tensor:
        """One mask as uint8 [H, W]; raises UserError for a file that is no mask or has an INVALID value."""
        file = self.files[index]
        values = _read_mask(file, decoding)
        classes = self.class_of_value[values.long()]
        if (classes == INVALID).any():
            found = join_first(sorted(set(values[classes == INVALID].tolist())))
            raise UserError(f"{file}: has pixels of value {found}, which is no class; correct the mask")
        return classes.to(torch.uint8)

    def subset(self, indices: Tensor) -> "Masks":
        """The masks of these images, int64 [n]."""
        return Masks([self.files[i] for i in indices.tolist()], self.class_of_value)


def _read_mask(file: Path, decoding: Decoding) -> Tensor:
    """uint8 [H, W] from the indices of a palette, from greys, or from an SBD file."""
    if file.suffix == ".mat":
        import scipy.io  # of one dataset alone

        return torch.from_numpy(scipy.io.loadmat(file)["GTcls"]["Segmentation"][0, 0].copy())
    with opened(file, decoding) as image:
        if image.format == "JPEG":
            raise UserError(f"{file}: a JPEG does not keep the values of a mask; save it as PNG")
        if image.mode not in ("P", "L"):
            raise UserError(
                f"{file}: a mask has one byte a pixel, not the mode {image.mode}; save it with a palette, or "
                "as greys"
            )
        if image.mode == "L" and ";" in (stored := _stored_as(image)):  # Pillow would make 85 or 17 of a 1
            raise UserError(
                f"{file}: a mask of greys has one byte a pixel, not {stored}; save it with 8 bits"
            )
        return torch.from_numpy(np.array(image))


def _stored_as(image: Image.Image) -> str:
    """How a file keeps its pixels, in Pillow's words: `L;4` are greys of four bits."""
    arguments = [tile.args for tile in getattr(image, "tile", [])] or [""]
    return str(arguments[0][0] if isinstance(arguments[0], tuple) else arguments[0])


class ImageFile(NamedTuple):
    """A file of a split."""

    path: str
    """names it, for order and identity"""
    file: Path
    """to open"""
    label: str


@dataclass(frozen=True, eq=False)
class Drawn:
    """Images that are drawn when somebody looks, once: to know which run it is nobody does."""

    draw: Callable[[Path | None], Tensor]
    """takes them from a folder, and leaves them there, if one is given"""
    _held: list[Tensor] = field(default_factory=list)

    def pixels(self, folder: Path | None = None) -> Tensor:
        """The images, uint8 [N, 3, H, W], or [N, 4, H, W] with masks; `folder` keeps them for other runs."""
        if not self._held:
            self._held.append(self.draw(folder))
        return self._held[0]


@dataclass(frozen=True)
class Labelled:
    """Images with their classes or masks, ordered by class and path; files are not decoded yet."""

    held: list[Path] | Tensor | Drawn
    """what `images` gives"""
    labels: Tensor
    """int64 [N]; 0 for images with masks"""
    fingerprint: str
    """a hash of names, sizes and labels: two sets with the same one are taken for the same"""
    masks: Masks | None = None
    """if the labels are masks in files"""
    decoding: Decoding = USUAL
    """what the dataset says of how files are read"""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def images(self) -> list[Path] | Tensor:
        """Files, or uint8 [N, 3, H, W]; [N, 4, H, W] with masks."""
        return self.held.pixels() if isinstance(self.held, Drawn) else self.held

    @property
    def files(self) -> list[Path]:
        """The files, none for images in memory."""
        return self.held if isinstance(self.held, list) else []

    @classmethod
    def of_files(cls, listed: Sequence[ImageFile], classes: Sequence[str], what: str) -> "Labelled":
        """From files and their classes, in any order.

        Raises UserError, which calls them the files of `what`, if some do not exist or are in two classes.
        """
        numbers = {label: number for number, label in enumerate(classes)}
        listed = sorted(listed, key=lambda image: (numbers[image.label], image.path))
        stats = _stats([image.file for image in listed], what)
        _require_one_class(listed, stats, what)
        return cls._of_files(listed, stats, [numbers[image.label] for image in listed])

    @classmethod
    def of_masks(
        cls, listed: Sequence[tuple[ImageFile, Path]], class_of_value: Tensor, what: str
    ) -> "Labelled":
        """As `of_files`, from images of any label, each with the file of its mask."""
        listed = sorted(listed, key=lambda pair: pair[0].path)
        files = [image for image, _ in listed], [image._replace(file=mask) for image, mask in listed]
        image, mask = (
            cls._of_files(each, _stats([one.file for one in each], name), [0] * len(each))
            for each, name in zip(files, (what, f"the masks of {what}"), strict=True)
        )
        assert isinstance(image.images, list)
        assert isinstance(mask.images, list)
        digest = hashlib.sha256(f"{image.fingerprint}\t{mask.fingerprint}".encode())
        digest.update(class_of_value.numpy().data)
        return cls(image.images, image.labels, digest.hexdigest(), Masks(mask.images, class_of_value))

    @classmethod
    def _of_files(
        cls, listed: Sequence[ImageFile], stats: Sequence[os.stat_result], labels: list[int]
    ) -> "Labelled":
        files = [image.file for image in listed]
        digest = hashlib.sha256()
        for (path, file, _), stat_, label in zip(listed, stats, labels, strict=True):
            name = file.name if Path(path).is_absolute() else path  # where a disk is mounted is no fact
            digest.update(os.fsencode(f"{name}\t{stat_.st_size}\t{label}\n"))
        # Uncompressed images are all of one size: some contents, evenly spaced, tell two sets of them apart.
        for file in files[:: max(1, len(files) // MIN_HASHED_FILES)]:
            digest.update(file.read_bytes())
        return cls(files, torch.tensor(labels, dtype=torch.int64), digest.hexdigest())

    @classmethod
    def of_pixels(cls, pixels: np.ndarray, labels: np.ndarray) -> "Labelled":
        """From images uint8 [N, 3, H, W] and labels [N] in memory, which are sorted by label."""
        order = np.argsort(labels, kind="stable")
        pixels, labels = np.ascontiguousarray(pixels[order]), labels[order].astype(np.int64)
        digest = hashlib.sha256(str(pixels.shape).encode() + labels.tobytes())
        digest.update(pixels.data)
        return cls(torch.from_numpy(pixels), torch.from_numpy(labels), digest.hexdigest())

    def without_labels(self) -> "Labelled":
        """The same images, all of class 0."""
        digest = hashlib.sha256(f"unlabelled\t{self.fingerprint}".encode()).hexdigest()
        return replace(self, labels=torch.zeros_like(self.labels), fingerprint=digest)

    @classmethod
    def joined(cls, splits: Sequence["Labelled"]) -> "Labelled":
        """Several splits of one dataset as one; raises ValueError for images in memory of several sizes."""
        if len(splits) == 1:
            return splits[0]
        tensors = [split.images for split in splits if isinstance(split.images, Tensor)]
        if len({images.shape[1:] for images in tensors}) > 1:
            raise ValueError(
                f"images of {' and '.join(f'{i.shape[2]} x {i.shape[3]}' for i in tensors)} pixels"
            )
        images = [file for split in splits if isinstance(split.images, list) for file in split.images]
        digest = hashlib.sha256("\t".join(split.fingerprint for split in splits).encode()).hexdigest()
        labels = torch.cat([split.labels for split in splits])
        return replace(
            splits[0], held=torch.cat(tensors) if tensors else images, labels=labels, fingerprint=digest
        )

    def subset(self, indices: Tensor) -> "Labelled":
        """These images only, int64 [n]."""
        images = self.held
        if isinstance(images, Drawn):
            held = Drawn(lambda folder: images.pixels(folder)[indices])
        else:
            held = images[indices] if isinstance(images, Tensor) else [images[i] for i in indices]
        digest = hashlib.sha256(self.fingerprint.encode() + indices.numpy().tobytes()).hexdigest()
        masks = self.masks.subset(indices) if self.masks else None
        return replace(self, held=held, labels=self.labels[indices], fingerprint=digest, masks=masks)

    def split_every_nth(self, n: int) -> tuple["Labelled", "Labelled"]:
        """(the other images, every n-th image of each class in path order)."""
        rank = torch.empty_like(self.labels)
        for label in self.labels.unique():
            of_class = self.labels == label
            rank[of_class] = torch.arange(int(of_class.sum()))
        nth = rank % n == n - 1
        return self.subset((~nth).nonzero()[:, 0]), self.subset(nth.nonzero()[:, 0])

    def stratified_subset(self, count: int) -> "Labelled":
        """`count` images, at most all: each class keeps its share, evenly spaced within the class."""
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


def _stats(files: Sequence[Path], what: str) -> list[os.stat_result]:
    """Of each file; raises UserError if some are none."""

    def found(file: Path) -> os.stat_result | None:
        try:
            return file.stat()
        except ValueError:  # a null byte in its name
            return None
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
                return None
            raise

    stats = [found(file) for file in files]
    if absent := [file for file, status in zip(files, stats, strict=True) if status is None]:
        raise UserError(
            f"{len(absent)} of the {len(files):,} file(s) of {what} do not exist: {join_first(absent)}"
        )
    known = [status for status in stats if status is not None]
    other = [file for file, status in zip(files, known, strict=True) if not stat.S_ISREG(status.st_mode)]
    if other:
        raise UserError(f"{join_first(other)}: named as an image of {what}, but no file")
    return known


def _require_one_class(listed: Sequence[ImageFile], stats: Sequence[os.stat_result], what: str) -> None:
    """Raise UserError for a file in two classes; say it if one is there several times in the same."""
    first: dict[tuple[int, int], ImageFile] = {}
    again = []
    for image, found in zip(listed, stats, strict=True):
        other = first.setdefault((found.st_dev, found.st_ino), image)
        if other.label != image.label:
            raise UserError(
                f"{what}: {shown(image.path)} is in two classes, {other.label!r} and {image.label!r}"
                + ("" if other.path == image.path else f" ({shown(other.path)} is the same file)")
            )
        if other is not image:
            again.append(image)
    if again:
        progress.say_once(
            f"{what}: {len(again):,} image(s) are there more than once, and count as often: "
            f"{join_first([image.path for image in again])}"
        )
