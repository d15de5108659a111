"""Batched image operations on uint8 tensors; randomness comes in as a table, one row per image.

A mask goes through them as its image's fourth channel: it moves along, its values are never mixed, and what
changes colours leaves it alone.

Because row i belongs to image i of an epoch, the pixels of an epoch depend neither on the batch size nor
on whether images are resident, streamed, or read by one worker or eight.
"""

import math
from collections.abc import Callable, Sequence
from functools import singledispatch
from itertools import permutations
from typing import Literal

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from daft.config.operations import (
    CenterCrop,
    ColorJitter,
    Darken,
    Flip,
    Grayscale,
    Operation,
    RandomCrop,
    RandomResizedCrop,
    RandomScaleCrop,
    Resize,
)

RGB = 3
"""Channels of an image; a further one is its mask."""

CROP_ATTEMPTS = 10
"""Draws of a random box before falling back to the centre, as in torchvision's RandomResizedCrop."""

DRAWS = {Flip: 1, RandomCrop: 2, RandomResizedCrop: 2 * CROP_ATTEMPTS + 2, RandomScaleCrop: 3, ColorJitter: 4}
"""Uniform numbers that an operation consumes per image."""

NO_UNIFORMS = torch.empty(1, 0)
"""The table of uniform numbers of operations that consume none."""


def num_uniforms(operations: Sequence[Operation]) -> int:
    """Width of the table of uniform numbers that these operations need."""
    return sum(DRAWS.get(type(op), 0) for op in operations)


def transform(images: Tensor, operations: Sequence[Operation], uniforms: Tensor) -> Tensor:
    """Apply operations in order to uint8 images [B, 3, H, W], or [B, 4, H, W] with masks.

    uniforms: [B, num_uniforms(operations)] in [0, 1), on the CPU. Raises ValueError for a crop that is larger
    than the image.
    """
    start = 0
    for op in operations:
        width = DRAWS.get(type(op), 0)
        images = apply(op, images, uniforms[:, start : start + width])
        start += width
    return images


def deterministic_prefix(operations: Sequence[Operation]) -> list[Operation]:
    """The operations before the first random one: the same every epoch, so worth doing once."""
    prefix: list[Operation] = []
    for op in operations:
        if op.random:
            break
        prefix.append(op)
    return prefix


def min_side(operations: Sequence[Operation]) -> int:
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
        if isinstance(op, Resize | CenterCrop | RandomCrop | RandomResizedCrop | RandomScaleCrop):
            side = op.size if isinstance(op.size, int) else min(op.size)
    return least


def largest_size(operations: Sequence[Operation]) -> tuple[int, int]:
    """Height and width in pixels of the largest image that an operation makes, whatever it is given."""
    made = [op.size for op in operations if isinstance(op, Resize | RandomResizedCrop | RandomScaleCrop)]
    sizes = [(size, size) if isinstance(size, int) else size for size in made]
    return max(sizes, key=math.prod, default=(1, 1))


def gives_one_shape(operations: Sequence[Operation]) -> bool:
    """Whether images of any size come out in the same shape."""
    return any(
        isinstance(op, CenterCrop | RandomCrop | RandomResizedCrop | RandomScaleCrop)
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
    return _resize(images, size, op.interpolation)


@apply.register
def _(op: CenterCrop, images: Tensor, uniforms: Tensor) -> Tensor:
    _require_fits(op.size, images)
    return F.center_crop(images, [op.size, op.size])


@apply.register
def _(op: Grayscale, images: Tensor, uniforms: Tensor) -> Tensor:
    return _recolour(images, lambda rgb: F.rgb_to_grayscale(rgb, num_output_channels=RGB))


@apply.register
def _(op: Darken, images: Tensor, uniforms: Tensor) -> Tensor:
    return _recolour(images, lambda rgb: (rgb * (1 - op.share)).round().byte())


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
        _resize(F.crop(image, top, left, height, width), size)
        for image, (top, left, height, width) in zip(images, boxes, strict=True)
    ]
    return torch.stack(crops)


@apply.register
def _(op: RandomScaleCrop, images: Tensor, uniforms: Tensor) -> Tensor:
    low, high = op.scale
    crops = []
    for image, (u, v, w) in zip(images, uniforms.tolist(), strict=True):
        factor = low + u * (high - low)
        size = [max(2, int(side * factor)) for side in image.shape[-2:]]
        scaled = _resize(image, size)
        sides = [max(op.size, side) for side in size]
        top, left = ((large - side) // 2 for large, side in zip(sides, size, strict=True))
        canvas = scaled.new_zeros(len(scaled), *sides)
        canvas[RGB:] = op.label
        canvas[:, top : top + size[0], left : left + size[1]] = scaled
        top, left = (int(x * (side - op.size + 1)) for x, side in zip((v, w), sides, strict=True))
        crops.append(canvas[:, top : top + op.size, left : left + op.size])
    return torch.stack(crops)


@apply.register
def _(op: ColorJitter, images: Tensor, uniforms: Tensor) -> Tensor:
    kinds = (
        (op.brightness, F.adjust_brightness),
        (op.contrast, F.adjust_contrast),
        (op.saturation, F.adjust_saturation),
    )
    orders = list(permutations(range(len(kinds))))

    def jitter(rgb: Tensor, row: list[float]) -> Tensor:
        for i in orders[int(row[-1] * len(orders))]:
            strength, adjust = kinds[i]
            rgb = adjust(rgb, 1 + strength * (2 * row[i] - 1))
        return rgb

    rows = zip(images, uniforms.tolist(), strict=True)
    return torch.stack([_recolour(image, lambda rgb, row=row: jitter(rgb, row)) for image, row in rows])


def _resize(
    images: Tensor, size: list[int], interpolation: Literal["bilinear", "bicubic", "nearest"] = "bilinear"
) -> Tensor:
    """uint8 [..., C, H, W] in another size, antialiased; masks take the nearest value."""
    rgb = F.resize(images[..., :RGB, :, :], size, InterpolationMode(interpolation), antialias=True)
    if images.shape[-3] == RGB:
        return rgb
    masks = F.resize(images[..., RGB:, :, :], size, InterpolationMode.NEAREST_EXACT)
    return torch.cat([rgb, masks], dim=-3)


def _recolour(images: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """uint8 [..., C, H, W] with other colours and the same masks."""
    rgb = change(images[..., :RGB, :, :])
    return rgb if images.shape[-3] == RGB else torch.cat([rgb, images[..., RGB:, :, :]], dim=-3)


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
