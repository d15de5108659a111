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
from typing import Literal, NamedTuple

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

DRAWS: dict[type[Operation], int] = {
    Flip: 1,
    RandomCrop: 2,
    RandomResizedCrop: 2 * CROP_ATTEMPTS + 2,
    RandomScaleCrop: 3,
    ColorJitter: 4,
}
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


def transform_each(
    images: Sequence[Tensor], operations: Sequence[Operation], uniforms: Tensor
) -> list[Tensor]:
    """As `transform`, of uint8 images [C, H, W] that may differ in size, without a copy of whole batches."""
    start, each = 0, list(images)
    for op in operations:
        width = DRAWS.get(type(op), 0)
        each = apply_each(op, each, uniforms[:, start : start + width])
        start += width
    return each


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


@singledispatch
def apply_each(op: object, images: list[Tensor], uniforms: Tensor) -> list[Tensor]:
    """One operation on each of several uint8 images [C, H, W] with its own row of uniform numbers."""
    return [apply(op, image[None], row[None])[0] for image, row in zip(images, uniforms, strict=True)]


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


@apply_each.register
def _(op: Flip, images: list[Tensor], uniforms: Tensor) -> list[Tensor]:
    mirrored = (uniforms[:, 0] < op.probability).tolist()
    return [image.flip(-1) if flip else image for image, flip in zip(images, mirrored, strict=True)]


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
    if images.device.type == "cpu":  # and faster there
        return torch.stack(apply_each(op, list(images), uniforms))
    return resized_crops(op, images, uniforms)


def resized_crops(op: RandomResizedCrop, images: Tensor, uniforms: Tensor) -> Tensor:
    """The operation on all images at once, within one level of one after the other."""
    height, width = images.shape[-2:]
    boxes = torch.tensor(_random_boxes(op, height, width, uniforms))
    windows = Windows(boxes[:, :2], boxes[:, 2:], torch.full_like(boxes[:, 2:], op.size))
    return resampled(images, windows, op.size)


@apply_each.register
def _(op: RandomResizedCrop, images: list[Tensor], uniforms: Tensor) -> list[Tensor]:
    heights, widths = torch.tensor([image.shape[-2:] for image in images]).T
    boxes = _random_boxes(op, heights, widths, uniforms)
    return [
        _resize(F.crop(image, top, left, height, width), [op.size, op.size])
        for image, (top, left, height, width) in zip(images, boxes, strict=True)
    ]


@apply.register
def _(op: RandomScaleCrop, images: Tensor, uniforms: Tensor) -> Tensor:
    if images.device.type == "cpu":  # and faster there
        return torch.stack(apply_each(op, list(images), uniforms))
    return scaled_crops(op, images, uniforms)


def scaled_crops(op: RandomScaleCrop, images: Tensor, uniforms: Tensor) -> Tensor:
    """The operation on all images at once, within one level of one after the other."""
    plans = [_scale_plan(op, images.shape[-2:], row) for row in uniforms.tolist()]
    sizes, margins, corners = (torch.tensor(column) for column in zip(*plans, strict=True))
    whole = torch.tensor(images.shape[-2:]).expand_as(sizes)
    windows = Windows(torch.zeros_like(sizes), whole, sizes, corners - margins)
    return resampled(images, windows, op.size, op.label)


@apply_each.register
def _(op: RandomScaleCrop, images: list[Tensor], uniforms: Tensor) -> list[Tensor]:
    crops = []
    for image, row in zip(images, uniforms.tolist(), strict=True):
        size, margin, corner = _scale_plan(op, image.shape[-2:], row)
        scaled = _resize(image, size)
        canvas = scaled.new_zeros(len(scaled), *(max(op.size, side) for side in size))
        canvas[RGB:] = op.label
        (top, left), (height, width) = margin, size
        canvas[:, top : top + height, left : left + width] = scaled
        top, left = corner
        crops.append(canvas[:, top : top + op.size, left : left + op.size])
    return crops


def _scale_plan(
    op: RandomScaleCrop, sides: Sequence[int], row: Sequence[float]
) -> tuple[list[int], list[int], list[int]]:
    """Size to scale to, margin of black around it, and corner of the crop, each (vertical, horizontal)."""
    low, high = op.scale
    factor = low + row[0] * (high - low)
    size = [max(2, int(side * factor)) for side in sides]
    canvas = [max(op.size, side) for side in size]
    margin = [(large - side) // 2 for large, side in zip(canvas, size, strict=True)]
    corner = [int(x * (side - op.size + 1)) for x, side in zip(row[1:], canvas, strict=True)]
    return size, margin, corner


class Windows(NamedTuple):
    """What is cut out of each image and how it is scaled; int64 [B, 2], vertical and horizontal."""

    start: Tensor
    extent: Tensor
    """of the box in the image, in pixels"""
    size: Tensor
    """that the box is resized to"""
    offset: Tensor | None = None
    """of the result's first pixel in the resized box; None: 0"""


def resampled(images: Tensor, windows: Windows, side: int, label: int = 0) -> Tensor:
    """Boxes of uint8 images [B, C, H, W] resized, uint8 [B, C, side, side], all in one go.

    The antialiased bilinear resize of `_resize` as two products with matrices of weights, so that a batch
    takes as many launches as an image. Within one level of `_resize`: this rounds exact sums once, that does
    once, or once an axis; the two are then less than 2 apart, and whole. What is outside of a resized box is
    black, in masks it is `label`.
    """
    place = torch.arange(side) + (0 if windows.offset is None else windows.offset[..., None])  # [B, 2, side]
    start, extent, size = (each[..., None].float() for each in windows[:3])
    scale = extent / size
    inside = (place >= 0) & (place < windows.size[..., None])
    # One copy to the device, of both axes; a pixel outside is far from everything.
    centre = (start + (place + 0.5) * scale).masked_fill(~inside, torch.inf)
    nearest = start + torch.minimum(((place + 0.5) * scale).floor(), extent - 1)
    table = torch.cat(
        [centre, start, start + extent, scale.clamp(min=1), nearest.masked_fill(~inside, -1)], -1
    )
    table = table.to(images.device, non_blocking=True)
    lengths = images.shape[-2:]
    rows, columns = (_weights(table[:, axis], side, length) for axis, length in enumerate(lengths))
    with torch.autocast(images.device.type, enabled=False):
        rgb = torch.einsum("bchw,bxw->bchx", images[:, :RGB].float(), columns)
        rgb = torch.einsum("byh,bchx->bcyx", rows, rgb).round_().byte()
    if images.shape[1] == RGB:
        return rgb
    down, across = table[..., side + 3 :].long().unbind(1)
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    masks = images[batch, RGB, down[:, :, None].clamp(min=0), across[:, None].clamp(min=0)]
    masks = masks.masked_fill((down[:, :, None] < 0) | (across[:, None] < 0), label)
    return torch.cat([rgb, masks[:, None]], dim=1)


def _weights(table: Tensor, side: int, length: int) -> Tensor:
    """[B, side, length]: what each pixel of an axis adds to each of the result; 0 outside of the box."""
    centre, start, end, reach = (
        table[:, a:b, None] for a, b in ((0, side), *((side + i, side + i + 1) for i in range(3)))
    )
    pixel = torch.arange(length, device=table.device)
    weights = (1 - (pixel + 0.5 - centre).abs() / reach).clamp_(min=0)
    weights = weights * ((pixel >= start) & (pixel < end))
    return weights / weights.sum(-1, keepdim=True).clamp_(min=torch.finfo(torch.float32).tiny)


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
    op: RandomResizedCrop, height: int | Tensor, width: int | Tensor, uniforms: Tensor
) -> list[tuple[int, int, int, int]]:
    """(top, left, height, width) per row: the first of ten draws that fits, else the centre.

    height, width: of all images, or of each.
    """
    u = uniforms.double()
    height, width = (torch.as_tensor(side).expand(len(u)) for side in (height, width))
    area, log_ratio = u[:, :CROP_ATTEMPTS], u[:, CROP_ATTEMPTS : 2 * CROP_ATTEMPTS]
    area = (height * width)[:, None] * (op.scale[0] + area * (op.scale[1] - op.scale[0]))
    low, high = torch.tensor(op.ratio, dtype=torch.float64).log()
    ratio = (low + log_ratio * (high - low)).exp()
    w, h = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
    fits = (w > 0) & (w <= width[:, None]) & (h > 0) & (h <= height[:, None])
    first = fits.int().argmax(1, keepdim=True)
    # Fallback: the largest central box within the allowed aspect ratios.
    fallback_w = torch.minimum(width, (height.double() * op.ratio[1]).round().long())
    fallback_h = torch.minimum(height, (width.double() / op.ratio[0]).round().long())
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
