"""Batched image operations on uint8 tensors; randomness comes in as a table, one row per image.

Because row i belongs to image i of an epoch, the pixels of an epoch depend neither on the batch size nor
on whether images are resident, streamed, or read by one worker or eight.
"""

from collections.abc import Sequence
from functools import singledispatch

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from daft.config import (
    CenterCrop,
    Flip,
    Grayscale,
    Operation,
    RandomCrop,
    RandomResizedCrop,
    Resize,
)

CROP_ATTEMPTS = 10
"""Draws of a random box before falling back to the centre, as in torchvision's RandomResizedCrop."""

DRAWS = {Flip: 1, RandomCrop: 2, RandomResizedCrop: 2 * CROP_ATTEMPTS + 2}
"""Uniform numbers that an operation consumes per image."""

NO_DRAWS = torch.empty(1, 0)
"""The table of uniform numbers of operations that consume none."""


def draws(operations: Sequence[Operation]) -> int:
    """Width of the table of uniform numbers that these operations need."""
    return sum(DRAWS.get(type(op), 0) for op in operations)


def transform(images: Tensor, operations: Sequence[Operation], uniforms: Tensor) -> Tensor:
    """Apply operations in order to uint8 images [B, C, H, W].

    uniforms: [B, draws(operations)] in [0, 1), on the CPU. Raises ValueError for a crop larger than the
    image.
    """
    start = 0
    for op in operations:
        width = DRAWS.get(type(op), 0)
        images = apply(op, images, uniforms[:, start : start + width])
        start += width
    return images


def fixed_prefix(operations: Sequence[Operation]) -> list[Operation]:
    """The operations before the first random one: the same every epoch, so worth doing once."""
    prefix: list[Operation] = []
    for op in operations:
        if op.random:
            break
        prefix.append(op)
    return prefix


def least_side(operations: Sequence[Operation]) -> int:
    """Shorter side in pixels that images must have for every crop to fit.

    Raises ValueError for a crop larger than what the operations before it leave.
    """
    least, side = 1, None
    for op in operations:
        if isinstance(op, CenterCrop | RandomCrop):
            if side is None:
                least = op.size
            elif op.size > side:
                raise ValueError(f"a crop of {op.size} pixels does not fit the {side} pixels left before it")
        if not isinstance(op, Flip | Grayscale):
            side = op.size if isinstance(op.size, int) else min(op.size)
    return least


def one_shape(operations: Sequence[Operation]) -> bool:
    """Whether images of any size come out in the same shape."""
    return any(
        isinstance(op, CenterCrop | RandomCrop | RandomResizedCrop)
        or (isinstance(op, Resize) and not isinstance(op.size, int))
        for op in operations
    )


@singledispatch
def apply(op: object, images: Tensor, uniforms: Tensor) -> Tensor:
    """One operation on uint8 images [B, C, H, W] with its own uniform numbers [B, k]."""
    raise TypeError(f"no implementation for {op}")


@apply.register
def _(op: Resize, images: Tensor, uniforms: Tensor) -> Tensor:
    size = [op.size] if isinstance(op.size, int) else list(op.size)
    return F.resize(images, size, InterpolationMode(op.interpolation), antialias=True)


@apply.register
def _(op: CenterCrop, images: Tensor, uniforms: Tensor) -> Tensor:
    _require_fits(op.size, images)
    return F.center_crop(images, [op.size, op.size])


@apply.register
def _(op: Grayscale, images: Tensor, uniforms: Tensor) -> Tensor:
    return F.rgb_to_grayscale(images, num_output_channels=3)


@apply.register
def _(op: Flip, images: Tensor, uniforms: Tensor) -> Tensor:
    mirrored = (uniforms[:, 0] < op.probability).to(images.device)
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


@apply.register
def _(op: RandomCrop, images: Tensor, uniforms: Tensor) -> Tensor:
    _require_fits(op.size, images)
    room = torch.tensor([images.shape[-2] - op.size + 1, images.shape[-1] - op.size + 1])
    corners = (uniforms * room).long().tolist()
    # Slices are views: one copy in all, where gathering by index would touch every pixel's address.
    crops = [
        image[:, top : top + op.size, left : left + op.size]
        for image, (top, left) in zip(images, corners, strict=True)
    ]
    return torch.stack(crops)


@apply.register
def _(op: RandomResizedCrop, images: Tensor, uniforms: Tensor) -> Tensor:
    size = [op.size, op.size]
    boxes = _random_boxes(op, images.shape[-2], images.shape[-1], uniforms)
    crops = [
        F.resized_crop(image, top, left, height, width, size, antialias=True)
        for image, (top, left, height, width) in zip(images, boxes, strict=True)
    ]
    return torch.stack(crops)


def _random_boxes(
    op: RandomResizedCrop, height: int, width: int, uniforms: Tensor
) -> list[tuple[int, int, int, int]]:
    """(top, left, height, width) per row: the first of ten draws that fits, else the centre."""
    u = uniforms.double()
    area, log_ratio = u[:, :CROP_ATTEMPTS], u[:, CROP_ATTEMPTS : 2 * CROP_ATTEMPTS]
    area = height * width * (op.scale[0] + area * (op.scale[1] - op.scale[0]))
    low, high = torch.tensor(op.ratio, dtype=torch.float64).log()
    ratio = (low + log_ratio * (high - low)).exp()
    w, h = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.int().argmax(1, keepdim=True)
    # Fallback: the largest central box within the allowed aspect ratios.
    fallback_w = min(width, round(height * op.ratio[1]))
    fallback_h = min(height, round(width / op.ratio[0]))
    found = fits.any(1)
    w = torch.where(found, w.gather(1, first)[:, 0], fallback_w)
    h = torch.where(found, h.gather(1, first)[:, 0], fallback_h)
    top = torch.where(found, (u[:, -2] * (height - h + 1)).long(), (height - h) // 2)
    left = torch.where(found, (u[:, -1] * (width - w + 1)).long(), (width - w) // 2)
    return list(zip(top.tolist(), left.tolist(), h.tolist(), w.tolist(), strict=True))


def _require_fits(size: int, images: Tensor) -> None:
    height, width = images.shape[-2:]
    if size > min(height, width):
        raise ValueError(f"a crop of {size} pixels does not fit an image of {height} x {width}")
