"""Shapes: reproducible, balanced, drawn in styles that differ, and learnable by its backbone."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from daft.common.errors import UserError
from daft.data import datasets
from daft.data.images import ImageStore, Resident
from daft.data.sources import shapes
from daft.data.sources.shapes import CLASSES, STYLES, generate

WEIGHTS = Path(shapes.__file__).parents[2] / "networks" / "weights" / "shapes_resnet10.safetensors"


@pytest.mark.parametrize("style", STYLES)
def test_images_are_a_pure_function_of_the_arguments(style: str) -> None:
    first, labels = generate(style, 140, seed=0, size=32)
    again, same_labels = generate(style, 140, seed=0, size=32)
    assert np.array_equal(first, again)
    assert np.array_equal(labels, same_labels)


@pytest.mark.parametrize(("style", "seed"), [("sketch", 1), ("photo", 0)])
def test_another_seed_or_style_gives_other_images(style: str, seed: int) -> None:
    images, labels = generate("sketch", 20, seed=0)
    others, other_labels = generate(style, 20, seed)
    assert all((a != b).any() for a, b in zip(images, others, strict=True))
    assert not np.array_equal(labels, other_labels)


def test_no_image_is_repeated_across_chunks() -> None:
    images, _ = generate("clipart", 2 * shapes.CHUNK + 1, seed=0, size=32)
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images)


@pytest.mark.parametrize("count", [1, 10, 137])
def test_shapes_types_and_balance(count: int) -> None:
    images, labels = generate("painting", count, seed=3, size=24)
    assert images.shape == (count, 3, 24, 24)
    assert images.dtype == np.uint8
    assert labels.shape == (count,)
    assert labels.dtype == np.int64
    assert np.ptp(np.bincount(labels, minlength=len(CLASSES))) <= 1


def test_between_two_styles_the_same_shapes_are_drawn_in_both_and_mixed() -> None:
    photos, labels = generate("photo", 130, seed=3, size=32)
    start, half, end = (generate(f"photo/sketch/{share}", 130, seed=3, size=32) for share in (0, 0.5, 1))
    for _, same in (start, half, end):
        assert np.array_equal(same, labels)
    assert np.array_equal(start[0], photos)
    ends = np.stack([start[0], end[0]]).astype(int)
    unclipped = ((ends > 0) & (ends < 255)).all(0)
    off = np.abs(half[0] - ends.mean(0))[unclipped]
    assert off.max() <= 1  # each end is rounded by at most half a level, and so is what is between
    # Paper is light and lines are thin: the ends are as far apart as the styles.
    sketches = generate("sketch", 130, seed=3, size=32)[0]
    assert abs(end[0].mean() - sketches.mean()) < 5 < abs(photos.mean() - sketches.mean())


@pytest.mark.parametrize(
    "style",
    ["photo/crayon/0.5", "photo/sketch", "photo/sketch/2", "photo/sketch/x", "photo/sketch/nan", "a/b/c/d"],
)
def test_what_is_between_no_two_styles_is_named(style: str) -> None:
    with pytest.raises(ValueError, match=rf"'{style}'.*photo/sketch/0\.25"):
        generate(style, 1, seed=0)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"'crayon'.*photo, sketch, clipart, painting, neon"):
        generate("crayon", 1, seed=0)
    with pytest.raises(ValueError, match=r"count.*0"):
        generate("photo", 0, seed=0)
    with pytest.raises(ValueError, match=r"seed.*-1"):
        generate("photo", 1, seed=-1)
    with pytest.raises(ValueError, match=r"size.*15"):
        generate("photo", 1, seed=0, size=15)


@pytest.mark.parametrize(
    ("name", "area"),
    [
        ("circle", np.pi * 0.9**2),
        ("ring", np.pi * (0.87**2 - 0.57**2)),
        ("triangle", 3 / 2 * 1.1**2 * np.sin(2 * np.pi / 3)),
        ("square", 1.6**2),
        ("pentagon", 5 / 2 * np.sin(2 * np.pi / 5)),
        ("star", 10 / 2 * 1.1 * 0.4 * np.sin(np.pi / 5)),
        ("cross", 2 * 2 * 0.44 - 0.44**2),
        ("heart", 1.6**2 * (1 / 2 + np.pi / 8)),
        ("arrow", 0.8 + 2 * 0.16),
    ],
)
def test_outlines_enclose_the_area_of_textbook_formulas(name: str, area: float) -> None:
    axis = (np.arange(400, dtype=np.float32) + 0.5) / 400 * 2.6 - 1.3
    x, y = (a[None] for a in np.meshgrid(axis, axis))
    inside = shapes._outline(name, x, y, np.zeros(1, np.float32)) < 0
    # The pixels that the outline crosses bound the error: perimeter / side, below 1 % in total.
    assert inside.mean() * 2.6**2 == pytest.approx(area, rel=0.01)


def test_styles_differ_in_colour_and_brightness() -> None:
    brightness, colourfulness = {}, {}
    for style in STYLES:
        images = generate(style, 100, seed=0, size=32)[0] / 255
        brightness[style] = images.mean()
        colourfulness[style] = np.ptp(images, axis=1).mean()
    assert (
        colourfulness["sketch"]
        < 0.08
        < 0.1
        < min(value for style, value in colourfulness.items() if style not in ("sketch", "neon"))
    )
    assert brightness["neon"] < 0.25 < brightness["photo"] < 0.7 < brightness["clipart"]
    assert 0.3 < brightness["painting"] < 0.7 < brightness["sketch"]


@pytest.fixture(scope="module")
def backbone() -> torch.nn.Module:
    model = timm.create_model("resnet18", layers=(1, 1, 1, 1), channels=(16, 32, 64, 128), num_classes=0)
    model.load_state_dict(load_file(WEIGHTS), strict=True)
    return model.eval()


def test_weights_are_small_and_say_where_they_come_from(backbone: torch.nn.Module) -> None:
    assert backbone.num_features == 128
    assert WEIGHTS.stat().st_size <= 2 * 2**20
    with safe_open(WEIGHTS, "pt") as file:
        facts = json.loads(file.metadata()["pretraining"])
    assert facts["source"].startswith("shapes style=photo")
    assert float(facts["held_out_accuracy"]) > 0.9


def test_features_separate_classes_on_photos_of_other_seeds(backbone: torch.nn.Module) -> None:
    (means, own), (features, labels) = (_features(backbone, seed) for seed in (97, 98))
    means = torch.stack([means[own == label].mean(0) for label in range(len(CLASSES))])
    nearest = torch.cdist(features, means).argmin(1)
    # Chance is 0.1 with a standard deviation of 0.02 over 200 images.
    assert (nearest == labels).float().mean() > 0.9


@torch.inference_mode()
def _features(backbone: torch.nn.Module, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = generate("photo", 200, seed)
    inputs = (torch.from_numpy(images).float() / 255 - 0.5) / 0.25
    return backbone(inputs), torch.from_numpy(labels)


def test_images_that_have_no_room_are_refused_before_one_is_drawn(configure, monkeypatch) -> None:
    monkeypatch.setattr(shapes, "generate", lambda *_: pytest.fail("drawn"))
    for overrides in (["dataset.image_size=60000"], ["dataset.train.images=2000000000"]):
        config = configure(*overrides)
        words = (
            rf"^dataset.image_size={config.dataset.image_size}: .* GiB of memory are needed, but .* make them"
        )
        with pytest.raises(UserError, match=words):
            datasets.listing(config)


def test_what_drawing_takes_is_what_is_asked_for() -> None:
    count, size = 2 * shapes.CHUNK, 32
    for style in (*STYLES, "photo/painting/0.5"):
        tracemalloc.start()
        images, _ = generate(style, count, seed=0, size=size)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        drawing = (peak - images.nbytes) / (shapes.CHUNK * size**2)
        assert shapes.BYTES_TO_DRAW_A_PIXEL / 2 < drawing < shapes.BYTES_TO_DRAW_A_PIXEL


def test_a_listing_draws_nothing_and_has_the_labels_of_what_is_drawn_later(monkeypatch) -> None:
    """A finished run is known by its listing: half of its time was drawing what nobody looked at."""
    with monkeypatch.context() as patch:
        patch.setattr(shapes, "generate", lambda *_: pytest.fail("drawn"))
        split = shapes._drawn("photo/sketch/0.25", 130, 7, 32, False)
        half = split.subset(torch.arange(0, 130, 2))
    pixels, labels = map(torch.from_numpy, generate("photo/sketch/0.25", 130, 7, 32))
    assert torch.equal(split.labels, labels)
    assert torch.equal(half.labels, labels[::2])
    assert isinstance(half.images, torch.Tensor)
    assert torch.equal(half.images, pixels[::2])


def test_what_one_run_has_drawn_others_read_and_what_is_damaged_is_drawn_anew(tmp_path, monkeypatch) -> None:
    def drawn(masks: bool = False) -> torch.Tensor:
        split = shapes._drawn.__wrapped__("neon", 20, 3, 32, masks)  # as in another process
        taken = split.subset(torch.arange(20))
        images, _ = ImageStore(1.0, 1, tmp_path, torch.device("cpu")).load(taken, [], "train")
        assert isinstance(images, Resident)
        return images.pixels

    expected = torch.from_numpy(generate("neon", 20, 3, 32)[0])
    assert torch.equal(drawn(), expected)
    assert drawn(masks=True).shape[1] == 4
    plain, _ = sorted((tmp_path / "drawn").glob("*.safetensors"), key=lambda file: file.stat().st_size)
    with monkeypatch.context() as patch:
        patch.setattr(shapes, "generate", lambda *_: pytest.fail("drawn"))
        assert torch.equal(drawn(), expected)
    content = bytearray(plain.read_bytes())
    content[-1] ^= 1
    for damage in (bytes(content), content[:-1], b""):
        plain.write_bytes(damage)
        assert torch.equal(drawn(), expected)
        assert torch.equal(load_file(plain)["pixels"], expected)
    for file in (tmp_path / "drawn").iterdir():
        file.unlink()
    (tmp_path / "drawn").rmdir()
    (tmp_path / "drawn").touch()  # a folder that cannot be made
    assert torch.equal(drawn(), expected)
