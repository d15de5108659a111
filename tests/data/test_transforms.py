"""Image operations against torchvision and PIL; random ones by exact windows and by distribution."""

from collections import Counter
from collections.abc import Sequence
from itertools import permutations
from math import prod

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter
from torch import Tensor
from torchvision import transforms as reference
from torchvision.transforms import v2

from daft.config.operations import (
    OPERATIONS,
    CenterCrop,
    ColorJitter,
    Flip,
    Grayscale,
    Interpolation,
    Operation,
    RandomCrop,
    RandomResizedCrop,
    RandomScaleCrop,
    Resize,
)
from daft.data.transforms import (
    CROP_ATTEMPTS,
    _random_boxes,
    apply,
    deterministic_prefix,
    min_side,
    num_uniforms,
    resized_crops,
    scaled_crops,
    transform,
    transform_each,
)

NO_UNIFORMS = torch.empty(1, 0)
ALMOST_ONE = 1 - 2**-24
"""The largest number that torch.rand yields in float32."""


def noise(batch: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (batch, 3, height, width), dtype=torch.uint8, generator=generator)


def grey_levels_apart(a: Tensor, b: Tensor) -> int:
    return int((a.int() - b.int()).abs().max())


def table(batch: int, operations: Sequence[Operation], seed: int = 0) -> Tensor:
    return torch.rand(batch, num_uniforms(operations), generator=torch.Generator().manual_seed(seed))


# --- fixed operations ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [20, 64, (24, 40), (70, 20)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_resize_is_torchvisions_and_antialiased_like_pils(
    size: int | tuple[int, int], interpolation: Interpolation
) -> None:
    images = noise(2, 37, 53)
    op = Resize(size=size, interpolation=interpolation)
    resized = apply(op, images, NO_UNIFORMS)
    mode = v2.InterpolationMode(interpolation)
    assert torch.equal(resized, v2.Resize(size, mode, antialias=True)(images))
    # PIL's filters are antialiased too. Both work in two passes in fixed point and round to 8 bits
    # after each: half a level after the first pass, half a level after the second, and the second
    # spreads the first's error with weights that add up to 1 in magnitude (bilinear), so results are
    # within 1 level; bicubic weights add up to less than 1.6 in magnitude: 0.8 + 0.5 + 0.5 < 2.
    # nearest picks one pixel: torchvision rounds its centre down, PIL to the nearest, so no comparison.
    if interpolation != "nearest":
        allowed = {"bilinear": 1, "bicubic": 2}[interpolation]
        filtered = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[interpolation]
        height, width = resized.shape[-2:]
        for image, ours in zip(images, resized, strict=True):
            array = image.permute(1, 2, 0).numpy()
            pil = np.array(Image.fromarray(array).resize((width, height), filtered))
            assert grey_levels_apart(torch.from_numpy(pil).permute(2, 0, 1), ours) <= allowed


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(40, 80, (20, 40)), (80, 40, (40, 20)), (50, 70, (20, 28))]
)
def test_one_number_sets_the_shorter_side_and_keeps_the_aspect(
    height: int, width: int, expected: tuple[int, int]
) -> None:
    assert apply(Resize(size=20), noise(1, height, width), NO_UNIFORMS).shape[-2:] == expected


def test_two_numbers_are_height_and_width() -> None:
    assert apply(Resize(size=(10, 30)), noise(1, 50, 50), NO_UNIFORMS).shape[-2:] == (10, 30)


def test_resize_to_the_same_size_changes_nothing() -> None:
    images = noise(2, 32, 32)
    assert torch.equal(apply(Resize(size=32), images, NO_UNIFORMS), images)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [16, 50])
def test_resize_gives_the_same_bits_alone_and_in_a_batch_in_any_memory_format(
    size: int, interpolation: Interpolation
) -> None:
    images = noise(5, 33, 41)
    op = Resize(size=size, interpolation=interpolation)
    together = apply(op, images, NO_UNIFORMS)
    for i, image in enumerate(images):
        decoded = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)[None]  # as it comes from a file
        assert torch.equal(apply(op, decoded, NO_UNIFORMS)[0], together[i])
    assert torch.equal(apply(op, images.contiguous(memory_format=torch.channels_last), NO_UNIFORMS), together)


@pytest.mark.parametrize("shape", [(20, 31), (31, 20), (16, 16), (17, 17)])
def test_center_crop_is_torchvisions_also_where_the_margin_is_odd(shape: tuple[int, int]) -> None:
    images = noise(2, *shape)
    assert torch.equal(apply(CenterCrop(size=16), images, NO_UNIFORMS), v2.CenterCrop(16)(images))


def test_grayscale_is_the_same_luma_in_three_channels() -> None:
    images = noise(2, 9, 9)
    grey = apply(Grayscale(), images, NO_UNIFORMS)
    assert torch.equal(grey, v2.Grayscale(3)(images))
    assert torch.equal(grey[:, 0], grey[:, 1])
    assert torch.equal(grey[:, 0], grey[:, 2])
    # PIL has the ITU-R 601 luma in fixed point, rounded; torchvision cuts it off: 1 level apart at most.
    array = np.array(Image.fromarray(images[0].permute(1, 2, 0).numpy()).convert("L"))
    assert grey_levels_apart(grey[0, 0], torch.from_numpy(array)) <= 1


# --- flip ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("luck", [0.0, 0.5, ALMOST_ONE])
def test_flip_with_probability_0_never_and_with_1_always_mirrors(luck: float) -> None:
    images, uniforms = noise(2, 5, 7), torch.full((2, 1), luck)
    assert torch.equal(apply(Flip(probability=0), images, uniforms), images)
    assert torch.equal(apply(Flip(probability=1), images, uniforms), images.flip(-1))


def test_flip_mirrors_exactly_the_images_whose_number_is_below_the_probability() -> None:
    images = noise(4, 5, 7)
    flipped = apply(Flip(probability=0.3), images, torch.tensor([[0.0], [0.29], [0.3], [0.9]]))
    assert torch.equal(flipped[:2], images[:2].flip(-1))
    assert torch.equal(flipped[2:], images[2:])


# --- random crop -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uniforms", "top", "left"),
    [
        ((0.0, 0.0), 0, 0),
        ((0.5, 0.5), 2, 4),  # 5 rows and 9 columns to choose from: floor(2.5), floor(4.5)
        ((0.2, 0.999), 1, 8),
        ((ALMOST_ONE, ALMOST_ONE), 4, 8),
    ],
)
def test_random_crop_is_the_window_its_numbers_say(
    uniforms: tuple[float, float], top: int, left: int
) -> None:
    images = noise(3, 20, 24)
    cropped = apply(RandomCrop(size=16), images, torch.tensor([uniforms] * 3))
    assert torch.equal(cropped, images[..., top : top + 16, left : left + 16])


def test_random_crop_gives_each_image_its_own_window() -> None:
    images = noise(2, 10, 10)
    cropped = apply(RandomCrop(size=8), images, torch.tensor([[0.0, 0.9], [0.9, 0.0]]))
    assert torch.equal(cropped[0], images[0, :, 0:8, 2:10])
    assert torch.equal(cropped[1], images[1, :, 2:10, 0:8])


def test_random_crop_takes_every_position_for_an_equal_share_of_the_numbers() -> None:
    # Pixel = its position, so that the crop's first pixel tells the corner. On a grid of 15 x 14
    # midpoints, every one of 5 x 7 corners gets exactly 3 x 2 grid cells.
    positions = torch.arange(8 * 10, dtype=torch.uint8).view(1, 1, 8, 10).expand(210, 3, 8, 10)
    grid = torch.cartesian_prod((torch.arange(15) + 0.5) / 15, (torch.arange(14) + 0.5) / 14)
    corners = apply(RandomCrop(size=4), positions, grid)[:, 0, 0, 0].tolist()
    assert Counter(corners) == {row * 10 + column: 6 for row in range(5) for column in range(7)}


@pytest.mark.parametrize("room", [1, 2, 3, 9, 127, 128, 129, 225, 1000])
def test_random_crop_stays_inside_for_the_largest_number_there_is(room: int) -> None:
    images = torch.arange(room).view(1, 1, 1, room).repeat(1, 1, room, 1)
    cropped = apply(RandomCrop(size=1), images, torch.full((1, 2), ALMOST_ONE))
    assert cropped.item() == room - 1


# --- random resized crop ---------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 90), (100, 40)])
def test_random_boxes_are_inside_with_area_and_aspect_in_bounds(height: int, width: int) -> None:
    op = RandomResizedCrop(size=32)
    boxes = torch.tensor(_random_boxes(op, height, width, table(5000, [op])))
    top, left, h, w = boxes.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + h <= height).all()
    assert (left + w <= width).all()
    # The real sides are within half a pixel of the whole ones, which bounds area and ratio.
    assert ((h + 0.5) * (w + 0.5) >= 0.08 * height * width).all()
    assert ((h - 0.5) * (w - 0.5) <= height * width).all()
    assert ((w + 0.5) / (h - 0.5) >= 3 / 4).all()
    assert ((w - 0.5) / (h + 0.5) <= 4 / 3).all()


@pytest.mark.parametrize("luck", [0.0, ALMOST_ONE])
def test_random_boxes_are_inside_at_the_ends_of_the_numbers(luck: float) -> None:
    for height, width in ((64, 64), (5, 7), (300, 20), (1, 1)):
        op = RandomResizedCrop(size=8)
        [(top, left, h, w)] = _random_boxes(op, height, width, torch.full((1, num_uniforms([op])), luck))
        assert 0 <= top <= top + h <= height
        assert 0 <= left <= left + w <= width
        assert h * w > 0


@pytest.mark.parametrize(("height", "width"), [(64, 64), (40, 80)])
def test_random_boxes_are_distributed_as_torchvisions(height: int, width: int) -> None:
    n, op = 4000, RandomResizedCrop(size=32)
    torch.manual_seed(1)
    image = torch.empty(3, height, width)
    params = reference.RandomResizedCrop.get_params
    theirs = np.array([params(image, list(op.scale), list(op.ratio)) for _ in range(n)])
    ours = np.array(_random_boxes(op, height, width, table(n, [op])))
    # Two-sample Kolmogorov-Smirnov: P(distance > c sqrt(2/n)) < 2 exp(-2 c^2). Ten distances are
    # measured (five here, two sizes); c = 2.6 makes a false alarm rarer than 10 * 2.7e-6. Seeds are fixed.
    allowed = 2.6 * (2 / n) ** 0.5
    for a, b in (*zip(ours.T, theirs.T, strict=True), (ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3])):
        points = np.union1d(a, b)
        distance = np.searchsorted(np.sort(a), points, "right") - np.searchsorted(np.sort(b), points, "right")
        assert np.abs(distance).max() / n < allowed


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [
        (10, 100, (0, 43, 10, 13)),  # width round(10 * 4/3) = 13, left (100 - 13) // 2
        (100, 10, (43, 0, 13, 10)),  # height round(10 / (3/4)) = 13
    ],
)
def test_extreme_images_fall_back_to_the_central_box_as_in_torchvision(
    height: int, width: int, box: tuple[int, int, int, int]
) -> None:
    op = RandomResizedCrop(size=8, scale=(0.9, 1.0))  # nine tenths of the area never fit in 3/4 … 4/3
    assert _random_boxes(op, height, width, table(20, [op])) == [box] * 20
    image = torch.empty(3, height, width)
    assert reference.RandomResizedCrop.get_params(image, list(op.scale), list(op.ratio)) == box


def test_the_first_attempt_that_fits_is_taken() -> None:
    # 30 x 60 pixels. Attempt 0: the whole area, square: 42 x 42 does not fit. Attempt 1: area 0.25 of
    # 1800 = 450, square: 21 x 21 fits. The position: floor(0.5 * (30 - 21 + 1)) = 5, floor(0.5 * 40) = 20.
    op = RandomResizedCrop(size=8, scale=(0.0, 1.0))
    uniforms = torch.full((1, num_uniforms([op])), 0.5)  # 0.5 of the log-ratio: exactly 1
    uniforms[0, 0], uniforms[0, 1] = ALMOST_ONE, 0.25
    uniforms[0, 2:CROP_ATTEMPTS] = 0.1
    assert _random_boxes(op, 30, 60, uniforms) == [(5, 20, 21, 21)]


def test_random_resized_crop_is_its_box_cut_out_and_resized() -> None:
    images, op = noise(6, 40, 50), RandomResizedCrop(size=16)
    uniforms = table(6, [op])
    for image, crop, (top, left, h, w) in zip(
        images, apply(op, images, uniforms), _random_boxes(op, 40, 50, uniforms), strict=True
    ):
        box = image[:, top : top + h, left : left + w]
        assert torch.equal(crop, v2.Resize((16, 16), antialias=True)(box))


# --- sequences -------------------------------------------------------------------------------------


def test_each_operation_consumes_its_own_columns() -> None:
    images, crop, flip = noise(8, 12, 12), RandomCrop(size=8), Flip()
    uniforms = table(8, [flip, crop])
    assert uniforms.shape[1] == 3
    by_hand = apply(crop, apply(flip, images, uniforms[:, :1]), uniforms[:, 1:])
    assert torch.equal(
        transform(images, [flip, Grayscale(), crop], uniforms), apply(Grayscale(), by_hand, NO_UNIFORMS)
    )


def test_an_image_comes_out_the_same_whatever_batch_it_is_in() -> None:
    operations = [Resize(size=20), RandomResizedCrop(size=16), RandomCrop(size=12), Flip()]
    images, uniforms = noise(9, 24, 30), table(9, operations)
    together = transform(images, operations, uniforms)
    alone = [transform(images[i : i + 1], operations, uniforms[i : i + 1])[0] for i in range(9)]
    assert torch.equal(together, torch.stack(alone))
    assert together.dtype == torch.uint8


def test_the_fixed_prefix_ends_at_the_first_random_operation() -> None:
    resize, grey, flip = Resize(size=8), Grayscale(), Flip()
    assert deterministic_prefix([resize, grey, flip, grey]) == [resize, grey]
    assert deterministic_prefix([flip, resize]) == []
    assert deterministic_prefix([]) == []


@pytest.mark.parametrize("op", [CenterCrop(size=21), RandomCrop(size=21)])
@pytest.mark.parametrize("shape", [(20, 40), (40, 20)])
def test_a_crop_larger_than_the_image_is_refused_not_padded(op: Operation, shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"crop of 21 .* {shape[0]} x {shape[1]}"):
        apply(op, noise(1, *shape), table(1, [op]))


@pytest.mark.parametrize(
    ("operations", "least"),
    [
        ([], 1),
        ([Grayscale(), Flip(), CenterCrop(size=24)], 24),
        ([RandomCrop(size=24), CenterCrop(size=16)], 24),
        ([Resize(size=24), CenterCrop(size=24)], 1),
        ([Resize(size=(64, 24)), RandomCrop(size=24)], 1),
        ([RandomResizedCrop(size=24), CenterCrop(size=20)], 1),
    ],
)
def test_least_side_is_the_smallest_image_that_goes_through(operations: list[Operation], least: int) -> None:
    assert min_side(operations) == least
    transform(noise(1, least, least + 3), operations, table(1, operations))
    if least > 1:
        with pytest.raises(ValueError, match="does not fit"):
            transform(noise(1, least - 1, least + 3), operations, table(1, operations))


@pytest.mark.parametrize("before", [Resize(size=(64, 20)), RandomResizedCrop(size=20), CenterCrop(size=20)])
def test_a_crop_that_no_image_can_satisfy_is_refused(before: Operation) -> None:
    with pytest.raises(ValueError, match=r"crop of 21 .* 20 pixels"):
        min_side([before, RandomCrop(size=21)])
    with pytest.raises(ValueError, match="does not fit"):
        transform(noise(1, 100, 100), [before, RandomCrop(size=21)], table(1, [before, RandomCrop(size=21)]))


# --- vocabulary ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("grayscale", Grayscale()),
        ("flip", Flip(probability=0.5)),
        ({"flip": 0.1}, Flip(probability=0.1)),
        ({"resize": 64}, Resize(size=64)),
        ({"resize": [64, 48]}, Resize(size=(64, 48))),
        ({"resize": {"size": 64, "interpolation": "bicubic"}}, Resize(size=64, interpolation="bicubic")),
        ({"center_crop": 8}, CenterCrop(size=8)),
        ({"random_crop": 8}, RandomCrop(size=8)),
        ({"random_resized_crop": {"size": 8, "scale": [0.5, 1]}}, RandomResizedCrop(size=8, scale=(0.5, 1))),
    ],
)
def test_operations_are_written_by_name(written: object, meant: Operation) -> None:
    assert TypeAdapter(Operation).validate_python(written) == meant


@pytest.mark.parametrize("written", ["blur", {"blur": 3}, {"resize": 64, "flip": 1}, 7])
def test_an_unknown_operation_is_named_with_the_allowed_ones(written: object) -> None:
    with pytest.raises(ValueError, match=", ".join(OPERATIONS)) as caught:
        TypeAdapter(Operation).validate_python(written)
    assert repr(written) in str(caught.value)


@pytest.mark.parametrize(
    ("written", "named"),
    [
        ("resize", "resize.size"),
        ({"center_crop": 0}, "center_crop.size"),
        ({"flip": 1.5}, "flip.probability"),
        ({"resize": {"size": 8, "interpolation": "lanczos"}}, "resize.interpolation"),
        ({"resize": {"size": 8, "mode": "bilinear"}}, "resize.mode"),
        ({"grayscale": 3}, "grayscale takes no value"),
        ({"darken": 1}, "darken.share.*less than 1"),
    ],
)
def test_a_bad_argument_of_an_operation_is_named(written: object, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        TypeAdapter(Operation).validate_python(written)


@pytest.mark.parametrize("share", [0, 0.25, 0.9])
def test_darkening_scales_every_pixel_and_leaves_masks_alone(share: float) -> None:
    images = noise(4, 9, 7)
    op: Operation = TypeAdapter(Operation).validate_python({"darken": share})
    darker = apply(op, torch.cat([images, images[:, :1]], 1), NO_UNIFORMS)
    assert darker.dtype == torch.uint8
    assert torch.equal(darker[:, 3:], images[:, :1])
    # Half a level of rounding, and half a millionth of float32.
    assert float((darker[:, :3].double() - images.double() * (1 - share)).abs().max()) <= 0.5 + 1e-4


def test_every_operation_of_the_vocabulary_is_implemented() -> None:
    smallest = {name: 4 for name in OPERATIONS if name == "resize" or name.endswith("crop")}
    values = smallest | {"darken": 0.5}
    for name in OPERATIONS:
        written = {name: values[name]} if name in values else name
        op: Operation = TypeAdapter(Operation).validate_python(written)
        transformed = transform(noise(2, 8, 8), [op], table(2, [op]))
        assert transformed.shape[:2] == (2, 3)
        assert prod(transformed.shape[2:]) == (16 if name in smallest else 64)
        assert op.random == (num_uniforms([op]) > 0)


# --- masks -----------------------------------------------------------------------------------------


def masked(batch: int, height: int, width: int) -> Tensor:
    """Images of two grey levels in blobs, 60 and 200, with masks that say 6 and 20 at the same places."""
    coarse = noise(batch, -(-height // 12), -(-width // 12))[:, :1] > 127
    fine = coarse.repeat_interleave(12, 2).repeat_interleave(12, 3)[..., :height, :width]
    return torch.cat([torch.where(fine, 200, 60).expand(-1, 3, -1, -1), torch.where(fine, 20, 6)], 1).byte()


@pytest.mark.parametrize(
    "op",
    [
        Resize(size=17),
        Resize(size=(90, 50), interpolation="bicubic"),
        CenterCrop(size=20),
        RandomCrop(size=20),
        RandomResizedCrop(size=24),
        Flip(),
        RandomScaleCrop(size=40, scale=(0.3, 2.0)),
    ],
    ids=lambda op: type(op).__name__,
)
def test_a_mask_moves_with_its_image_and_gets_no_new_values(op: Operation) -> None:
    moved = transform(masked(16, 60, 48), [op], table(16, [op]))
    image, mask = moved[:, 0], moved[:, 3]
    assert set(mask.unique().tolist()) <= {6, 20, 255}
    # Where a pixel has one level only that level went into it, and the nearest pixel has it too; a bicubic
    # one may overshoot and be clamped elsewhere, but is never the other level.
    assert torch.equal(mask[image == 200].unique(), torch.tensor([20], dtype=torch.uint8))
    assert torch.equal(mask[image == 60].unique(), torch.tensor([6], dtype=torch.uint8))
    assert ((mask == 255) == (image == 0)).all()  # black is beside the image
    alone = transform(masked(16, 60, 48)[:, :3], [op], table(16, [op]))
    assert torch.equal(alone, moved[:, :3])


def test_a_scaled_crop_scales_uniformly_and_fills_with_its_label() -> None:
    op = RandomScaleCrop(size=40, scale=(0.5, 2.0), label=7)
    images = torch.full((3000, 4, 20, 20), 9, dtype=torch.uint8)
    crops = transform(images, [op], table(3000, [op]))
    assert set(crops[:, 3].unique().tolist()) == {7, 9}
    sides = (crops[:, 3] == 9).sum((1, 2)).double().sqrt()
    factors = sides / 20
    # Uniform on [0.5, 2], rounded down to whole pixels: mean 1.25 - 0.025, four standard errors.
    assert float(factors.mean()) == pytest.approx(1.225, abs=4 * 1.5 / 12**0.5 / 3000**0.5)
    assert float(factors.min()) == 0.5
    assert float(factors.max()) == pytest.approx(1.95)
    assert (crops[:, :3][(crops[:, 3:] == 7).expand(-1, 3, -1, -1)] == 0).all()


def test_colour_jitter_is_torchvisions_in_a_random_order_and_leaves_masks_alone() -> None:
    op = ColorJitter(brightness=0.5, contrast=0.5, saturation=0.5)
    images = torch.cat([noise(6, 16, 16), noise(6, 16, 16, seed=1)[:, :1]], 1)
    luck = torch.tensor([0.9, 0.2, 0.6])
    uniforms = torch.cat([luck.expand(6, 3), (torch.arange(6)[:, None] + 0.5) / 6], 1)
    jittered = apply(op, images, uniforms)
    assert torch.equal(jittered[:, 3], images[:, 3])
    adjust = [v2.functional.adjust_brightness, v2.functional.adjust_contrast, v2.functional.adjust_saturation]
    seen = set()
    for image, result in zip(images[:, :3], jittered[:, :3], strict=True):
        for order in permutations(range(3)):
            expected = image
            for i in order:
                expected = adjust[i](expected, 1 + 0.5 * (2 * float(luck[i]) - 1))
            if torch.equal(expected, result):
                seen.add(order)
                break
    assert len(seen) == 6
    still = ColorJitter()
    assert torch.equal(apply(still, images, uniforms), images)


# --- batches on the device ---------------------------------------------------------------------------


def on_device(op: RandomResizedCrop | RandomScaleCrop, images: Tensor, uniforms: Tensor) -> Tensor:
    """What `apply` does where images are on a GPU."""
    if isinstance(op, RandomResizedCrop):
        return resized_crops(op, images, uniforms)
    return scaled_crops(op, images, uniforms)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (61, 90), (200, 75)])
@pytest.mark.parametrize(
    "op",
    [
        RandomResizedCrop(size=40),
        RandomResizedCrop(size=20, scale=(0.5, 1.0)),
        RandomResizedCrop(size=24, scale=(0.9, 1.0), ratio=(0.3, 3.0)),
        RandomScaleCrop(size=40, scale=(0.3, 2.0)),
        RandomScaleCrop(size=80, scale=(0.25, 1.5), label=9),
    ],
    ids=str,
)
def test_crops_of_a_whole_batch_are_those_of_single_images_within_a_level(
    op: RandomResizedCrop | RandomScaleCrop, height: int, width: int
) -> None:
    """The CPU's resize rounds once an axis, by 0.5 each, with weights of 15 bits (below 0.02 in all); the
    batch rounds exact sums once, by 0.5: less than 2 apart, so 1. Masks are equal.
    """
    images, uniforms = noise(24, height, width), table(24, [op])
    images = torch.cat([images, noise(24, height, width, seed=1)[:, :1]], 1)
    one_by_one, at_once = apply(op, images, uniforms), on_device(op, images, uniforms)
    assert at_once.dtype == torch.uint8
    assert grey_levels_apart(one_by_one[:, :3], at_once[:, :3]) <= 1
    assert torch.equal(one_by_one[:, 3], at_once[:, 3])
    assert torch.equal(on_device(op, images[:, :3], uniforms), at_once[:, :3])


@pytest.mark.parametrize("op", [RandomResizedCrop(size=20), RandomScaleCrop(size=20)], ids=str)
def test_a_batch_takes_as_many_launches_as_an_image(op: RandomResizedCrop | RandomScaleCrop) -> None:
    def launches(count: int) -> int:
        images, uniforms = noise(count, 30, 40), table(count, [op])
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            on_device(op, images, uniforms)
        return sum(event.count for event in profiler.key_averages() if event.key.startswith("aten::"))

    assert launches(32) == launches(2)


def test_images_of_any_size_come_out_as_each_does_alone() -> None:
    operations = [
        RandomScaleCrop(size=30),
        RandomResizedCrop(size=24),
        RandomCrop(size=20),
        Flip(),
        Grayscale(),
    ]
    sizes = [(24, 30), (40, 31), (100, 20), (24, 30)]
    images = [noise(1, *size, seed=i)[0] for i, size in enumerate(sizes)]
    interleaved = [image.permute(1, 2, 0).contiguous().permute(2, 0, 1) for image in images]  # as decoded
    uniforms = table(4, operations)
    together = transform_each(interleaved, operations, uniforms)
    for image, row, out in zip(images, uniforms, together, strict=True):
        assert torch.equal(transform(image[None], operations, row[None])[0], out)
