"""Images and their labels as a source lists them, before any is decoded."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.io
import torch
from PIL import Image
from torch import Tensor

from daft.common.errors import UserError, join_first

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

    def read(self, index: int) -> Tensor:
        """One mask as uint8 [H, W]; raises UserError for a file that is no mask or has an INVALID value."""
        file = self.files[index]
        values = _read_mask(file)
        classes = self.class_of_value[values.long()]
        if (classes == INVALID).any():
            found = join_first(sorted(set(values[classes == INVALID].tolist())))
            raise UserError(f"{file}: has pixels of value {found}, which is no class")
        return classes.to(torch.uint8)

    def subset(self, indices: Tensor) -> "Masks":
        """The masks of these images, int64 [n]."""
        return Masks([self.files[i] for i in indices.tolist()], self.class_of_value)


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
    """Images with their classes or masks, ordered by class and path; files are not decoded yet."""

    images: list[Path] | Tensor
    """files, or uint8 [N, 3, H, W]; [N, 4, H, W] with masks"""
    labels: Tensor
    """int64 [N]; 0 for images with masks"""
    fingerprint: str
    """a hash of names, sizes and labels: two sets with the same one are taken for the same"""
    masks: Masks | None = None
    """if the labels are masks in files"""

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def of_files(cls, listed: pd.DataFrame, classes: Sequence[Any], what: str) -> "Labelled":
        """From a table of files: path (names it, for order and identity), file (to open), label (its class).

        Raises UserError, which calls them the files of `what`, if some do not exist.
        """
        absent = [file for file in listed["file"] if not Path(file).is_file()]
        if absent:
            raise UserError(
                f"{len(absent)} of the {len(listed):,} file(s) of {what} do not exist: {join_first(absent)}"
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
        for file in files[:: max(1, len(files) // MIN_HASHED_FILES)]:
            digest.update(file.read_bytes())
        return cls(files, torch.tensor(listed["label"].to_numpy(np.int64)), digest.hexdigest())

    @classmethod
    def of_masks(cls, listed: pd.DataFrame, class_of_value: Tensor, what: str) -> "Labelled":
        """As `of_files`, from a table of path, file and mask (a file too)."""
        image = cls.of_files(listed.assign(label=0), [0], what)
        mask = cls.of_files(listed.assign(file=listed["mask"], label=0), [0], f"the masks of {what}")
        assert isinstance(image.images, list)
        assert isinstance(mask.images, list)
        digest = hashlib.sha256(f"{image.fingerprint}\t{mask.fingerprint}".encode())
        digest.update(class_of_value.numpy().data)
        return cls(image.images, image.labels, digest.hexdigest(), Masks(mask.images, class_of_value))

    @classmethod
    def of_pixels(cls, pixels: np.ndarray, labels: np.ndarray) -> "Labelled":
        """From images uint8 [N, 3, H, W] and labels [N] in memory, which are sorted by label."""
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
        masks = self.masks.subset(indices) if self.masks else None
        return Labelled(images, self.labels[indices], digest, masks)

    def split_every_nth(self, n: int) -> tuple["Labelled", "Labelled"]:
        """(the other images, every n-th image of each class in path order)."""
        labels = pd.Series(self.labels.numpy())
        rank = torch.tensor(labels.groupby(labels).cumcount().tolist())
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
