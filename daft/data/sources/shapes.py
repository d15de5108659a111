"""Shapes: ten classes drawn in five styles, generated from a seed, to study transfer in minutes.

The miniature of "pretrain on photographs, fine-tune on sketches, test on what neither is": `photo`
is the source style, `sketch` the one to fine-tune on, the other styles shift away from it as
DomainNet's domains do. Styles were settled by eye, before any method was run on them.

Lengths are fractions of the image side throughout, so a picture looks alike at every size.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from daft.common import memory
from daft.common.errors import UserError
from daft.common.files import Content, cached, digest
from daft.config.schema import DatasetConfig, SplitConfig
from daft.data.labelled import IGNORED, Drawn, Labelled

Floats = NDArray[np.floating]

CLASSES = (
    "circle",
    "ring",
    "crescent",
    "triangle",
    "square",
    "pentagon",
    "star",
    "cross",
    "heart",
    "arrow",
)
STYLES = ("photo", "sketch", "clipart", "painting", "neon")

VERSION = 1
"""Raised when the same seed draws other pixels."""

# Bounds memory, and is part of the definition of the dataset: every chunk has its own generator.
CHUNK = 128

BYTES_TO_DRAW_A_PIXEL = 130
"""Of the images that are drawn together; measured, at most."""


def classes(cfg: DatasetConfig) -> list[str]:
    """The ten; a split whose classes have the background before them has masks."""
    return [*CLASSES]


def read_split(cfg: DatasetConfig, split: SplitConfig, name: str, classes: list[str]) -> Labelled:
    """path a style, or one between two; raises UserError for another, and unless `images` says how many."""
    try:
        between(split.path)
    except ValueError as error:
        raise UserError(f"dataset.{name}.path: {error}") from None
    if split.images is None:
        raise UserError(f"dataset.{name}.images: shapes are generated; say how many")
    assert cfg.image_size is not None
    with_masks = len(classes) > len(CLASSES)
    _require_memory(sum(each.images or 0 for each in cfg.splits().values()), cfg.image_size, with_masks)
    return _drawn(split.path, split.images, split.seed, cfg.image_size, with_masks)


@cache  # before the first is drawn: then there is less
def _require_memory(images: int, side: int, with_masks: bool) -> None:
    """Raise UserError if so many images, with what it takes to draw a chunk of them, have no room."""
    needed = images * (3 + with_masks) + min(images, CHUNK) * BYTES_TO_DRAW_A_PIXEL
    what = f"dataset.image_size={side}: {images:,} images of {side} x {side} pixels"
    memory.require(
        needed * side**2, what, "make them smaller, or fewer by dataset.train.images and the others"
    )


@cache  # a sweep in one process draws them once
def _drawn(style: str, count: int, seed: int, size: int, with_masks: bool) -> Labelled:
    def draw() -> Tensor:
        pixels = torch.from_numpy(generate(style, count, seed, size)[0])
        if not with_masks:
            return pixels
        return torch.cat([pixels, torch.from_numpy(masks(style, count, seed, size))[:, None]], 1)

    labels = torch.from_numpy(_labels(between(style)[0], count, seed))
    fingerprint = f"{style}/{count}/{seed}/{size}/{VERSION}"
    if with_masks:
        labels, fingerprint = torch.zeros_like(labels), f"{fingerprint}/masks"

    def kept(folder: Path | None) -> Tensor:
        return draw() if folder is None else _kept(folder / f"{digest(fingerprint)}.safetensors", draw)

    return Labelled(Drawn(kept), labels, fingerprint)


def _kept(file: Path, draw: Callable[[], Tensor]) -> Tensor:
    """What `draw` gives, from the file that keeps it if that is whole; `draw` takes many times as long."""

    def checksum(pixels: Tensor) -> str:
        return hashlib.sha256(pixels.numpy().data).hexdigest()

    def content() -> Content:
        pixels = draw()
        return lambda path: save_file({"pixels": pixels}, path, {"sha256": checksum(pixels)})

    def read(path: Path) -> Tensor:
        with safe_open(path, "pt") as opened:
            pixels, expected = opened.get_tensor("pixels"), opened.metadata()["sha256"]
        if checksum(pixels) != expected:
            raise ValueError("other pixels than were drawn")
        return pixels

    try:
        return cached(file, content, read)
    except OSError:  # a cache that takes nothing costs time, not the images
        return draw()


def generate(
    style: str, count: int, seed: int, size: int = 64
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draw `count` images [count, 3, size, size] and labels [count] indexing `CLASSES`.

    A pure function of its arguments: classes are balanced to within one image and shuffled.
    style: one of `STYLES`, or between two of them as `photo/sketch/0.25`, where the same shapes are drawn in
    both and mixed pixel by pixel; at 0 that is the first style itself.

    Raises:
        ValueError: if the style is unknown, the count below 1, the seed negative or the size
            below 16 pixels.
    """
    images = np.empty((count, 3, size, size), np.uint8)
    labels = np.empty(count, np.int64)
    first, second, share = between(style)
    for part, scene in _scenes(first, count, seed, size):
        canvas = _DRAW[first](scene)
        if share:
            canvas = canvas + share * (_DRAW[second](scene) - canvas)
        images[part] = np.clip(canvas * 255 + 0.5, 0, 255)
        labels[part] = scene.labels
    return images, labels


def masks(style: str, count: int, seed: int, size: int = 64) -> NDArray[np.uint8]:
    """Where the shapes of `generate` are, [count, size, size]: 0 is background, 1 the first class.

    The outline, two pixels wide, is IGNORED. Raises as `generate` does.
    """
    drawn = np.empty((count, size, size), np.uint8)
    for part, scene in _scenes(between(style)[0], count, seed, size):
        distance = scene.distance()
        inside = np.where(distance < 0, scene.labels[:, None, None] + 1, 0)
        drawn[part] = np.where(np.abs(distance) < 1 / size, IGNORED, inside)
    return drawn


def between(style: str) -> tuple[str, str, float]:
    """The two styles that a style is between, and how far from the first; raises ValueError if it is none."""
    first, *rest = style.split("/")
    second, share = rest if len(rest) == 2 else (first, "0" if not rest else "")
    try:
        if {first, second} <= {*STYLES} and 0 <= float(share) <= 1:
            return first, second, float(share)
    except ValueError:
        pass
    raise ValueError(
        f"no style {style!r}; choose from {', '.join(STYLES)}, or between two: photo/sketch/0.25"
    )


def _labels(style: str, count: int, seed: int) -> NDArray[np.int64]:
    """The classes of the images of a style, balanced to within one and shuffled."""
    (order,) = np.random.SeedSequence((seed, STYLES.index(style))).spawn(1)
    return np.random.default_rng(order).permutation(np.arange(count) % len(CLASSES))


def _scenes(style: str, count: int, seed: int, size: int) -> Iterator[tuple[slice, "Scene"]]:
    """The scenes to draw, a chunk at a time, and which images they are."""
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if size < 16:
        raise ValueError(f"size must be at least 16 pixels, got {size}")
    _, *chunks = np.random.SeedSequence((seed, STYLES.index(style))).spawn(1 + -(-count // CHUNK))
    labels = _labels(style, count, seed)
    for index, chunk in enumerate(chunks):
        part = slice(index * CHUNK, (index + 1) * CHUNK)
        yield part, Scene.sample(np.random.default_rng(chunk), labels[part], size)


# --- Outlines: signed distances, negative inside, of shapes that fill the square [-1, 1]^2 ---


def _polygon(x: Floats, y: Floats, corners: Floats) -> Floats:
    """Signed distance of points [n, h, w] to closed polygons [n, corners, 2]."""
    nearest = np.full_like(x, np.inf)
    inside = np.zeros(x.shape, bool)
    for k in range(corners.shape[1]):
        start, end = corners[:, k - 1], corners[:, k]
        nearest = np.minimum(nearest, _segment(x, y, start, end))
        ax, ay, bx, by = (value[:, None, None] for value in (*start.T, *end.T))
        # A ray towards +x toggles at every edge it meets: even-odd rule.
        left = (bx - ax) * (y - ay) > (by - ay) * (x - ax)
        inside ^= ((ay <= y) & (y < by) & left) | ((by <= y) & (y < ay) & ~left)
    return np.where(inside, -nearest, nearest)


def _norm(x: Floats, y: Floats) -> Floats:
    """Euclidean length; `np.hypot` is several times slower."""
    return np.sqrt(x * x + y * y)


def _segment(x: Floats, y: Floats, start: Floats, end: Floats) -> Floats:
    """Distance of points [n, h, w] to the segments between start [n, 2] and end [n, 2]."""
    ax, ay, bx, by = (value[:, None, None] for value in (*start.T, *(end - start).T))
    px, py = x - ax, y - ay
    along = np.clip((px * bx + py * by) / (bx * bx + by * by + 1e-12), 0, 1)
    return _norm(px - along * bx, py - along * by)


def _regular(corners: int, radii: Floats) -> Floats:
    """Corners [n, corners, 2] of upright polygons whose radii [n, k] repeat around the centre."""
    angles = 2 * np.pi * np.arange(corners) / corners - np.pi / 2
    directions = np.stack([np.cos(angles), np.sin(angles)], -1).astype(np.float32)
    return directions * np.tile(radii, corners // radii.shape[1])[..., None]


def _outline(name: str, x: Floats, y: Floats, shape: Floats) -> Floats:
    """Signed distance of points [n, h, w] to one class, its proportions set by shape [n] in [0, 1).

    The y axis points down, as in an image. Outside convex corners of the square and the cross, and
    at the horns of the crescent, the value is a lower bound of the distance.
    """
    one, s = np.ones_like(shape), shape[:, None, None]
    if name == "circle":
        return _norm(x, y) - 0.9
    if name == "ring":
        return np.abs(_norm(x, y) - 0.72) - (0.15 + 0.12 * s)
    if name == "crescent":
        bite = _norm(x - 0.45 - 0.15 * s, y) - 0.75
        return np.maximum(_norm(x, y) - 0.95, -bite)
    if name == "triangle":
        return _polygon(x, y - 0.2, _regular(3, 1.1 * one[:, None]))
    if name == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.8
    if name == "pentagon":
        return _polygon(x, y, _regular(5, one[:, None]))
    if name == "star":
        return _polygon(x, y, _regular(10, np.stack([1.1 * one, 0.4 + 0.12 * shape], -1)))
    if name == "cross":
        width, u, v = 0.22 + 0.14 * s, np.abs(x), np.abs(y)
        return np.minimum(np.maximum(u - 1, v - width), np.maximum(u - width, v - 1))
    if name == "heart":
        # Two half discs on a tilted square; in units of 1.6, tip at the origin, y up.
        u, v = np.abs(x) / 1.6, (0.95 - y) / 1.6
        lobe = _norm(u - 0.25, v - 0.75) - np.float32(np.sqrt(0.125))
        foot = np.maximum(u + v, 0) / 2
        wedge = np.minimum(_norm(u, v - 1), _norm(u - foot, v - foot)) * np.sign(u - v)
        return 1.6 * np.where(u + v > 1, lobe, wedge)
    neck, shaft, head = 0.3 * shape, 0.16 + 0.1 * shape, 0.8 - 0.15 * shape
    upper = [(one, 0 * one), (neck, head), (neck, shaft), (-one, shaft)]
    lower = [(u, -v) for u, v in reversed(upper[1:])]
    return _polygon(x, y, np.stack([np.stack(corner, -1) for corner in upper + lower], 1))


# --- Scenes: posed shapes, and the noise, colours and marks that styles are made of ---


@dataclass(frozen=True)
class Scene:
    """A chunk of n posed shapes on a pixel grid, and the generator every style draws from."""

    rng: np.random.Generator
    labels: NDArray[np.int64]
    shape: Floats  # [n] proportions within the class
    centre: Floats  # [n, 2]
    radius: Floats  # [n]
    inverse: Floats  # [n, 2, 2] from the image to the square the outlines fill
    x: Floats  # [n, size, size] pixel centres in [0, 1]
    y: Floats

    @classmethod
    def sample(cls, rng: np.random.Generator, labels: NDArray[np.int64], size: int) -> "Scene":
        """Pose one shape per label [n]: place, size, turn, mirror, stretch and shear."""

        def uniform(low: float, high: float) -> Floats:
            return rng.uniform(low, high, len(labels)).astype(np.float32)

        # Uniform in the logarithm: small shapes as often as large ones.
        radius = np.exp(uniform(np.log(0.17), np.log(0.38)))
        turn, stretch, shear = uniform(-0.7, 0.7), np.exp(uniform(-0.2, 0.2)), uniform(-0.2, 0.2)
        mirror = rng.choice(np.array([-1, 1], np.float32), len(labels))
        rotate = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        squeeze = np.array([[mirror * stretch, shear], [0 * shear, 1 / stretch]])
        pose = np.einsum("ijn,jkn->nik", rotate, squeeze) * radius[:, None, None]
        room = np.maximum(0.5 - 1.15 * radius, 0.05)[:, None]
        axis = (np.arange(size, dtype=np.float32) + 0.5) / size
        x, y = (np.broadcast_to(a, (len(labels), size, size)) for a in np.meshgrid(axis, axis))
        return cls(
            rng=rng,
            labels=labels,
            shape=uniform(0, 1),
            centre=(0.5 + room * rng.uniform(-1, 1, (len(labels), 2))).astype(np.float32),
            radius=radius,
            inverse=np.linalg.inv(pose).astype(np.float32),
            x=x,
            y=y,
        )

    @property
    def size(self) -> int:
        """Side of the images in pixels."""
        return self.x.shape[-1]

    def distance(self, dx: Floats | float = 0.0, dy: Floats | float = 0.0) -> Floats:
        """Signed distance [n, h, w] to the shapes, moved or warped by dx, dy."""
        u = self.x - dx - self.centre[:, 0, None, None]
        v = self.y - dy - self.centre[:, 1, None, None]
        m = self.inverse[..., None, None]
        u, v = m[:, 0, 0] * u + m[:, 0, 1] * v, m[:, 1, 0] * u + m[:, 1, 1] * v
        result = np.empty_like(u)
        for label in np.unique(self.labels):
            own = self.labels == label
            result[own] = _outline(CLASSES[label], u[own], v[own], self.shape[own])
        return result * self.radius[:, None, None]

    def uniform(self, low: float, high: float) -> Floats:
        """One number per image [n, 1, 1]."""
        return self.rng.uniform(low, high, (len(self.labels), 1, 1)).astype(np.float32)

    def chance(self, probability: float) -> Floats:
        """One or zero per image [n, 1, 1]."""
        return (self.uniform(0, 1) < probability).astype(np.float32)

    def colour(
        self, saturation: tuple[float, float], value: tuple[float, float], hue: Floats | None = None
    ) -> Floats:
        """One RGB colour per image [n, 3, 1, 1], of any hue unless given [n, 1, 1]."""
        hue = self.uniform(0, 1) if hue is None else hue
        s, v = self.uniform(*saturation)[:, None], self.uniform(*value)[:, None]
        k = (np.array([5, 3, 1], np.float32)[:, None, None] + 6 * hue[:, None]) % 6
        return v * (1 - s * np.clip(np.minimum(k, 4 - k), 0, 1))

    def grain(self) -> Floats:
        """White noise [n, h, w] of unit variance."""
        return self.rng.standard_normal(self.x.shape, dtype=np.float32)

    def noise(self, cells: int, rows: int | None = None) -> Floats:
        """Smooth noise [n, h, w] of unit variance, `cells` features across and `rows` down."""
        across, down = _spread(cells, self.size), _spread(rows or cells, self.size)
        knots = (len(self.labels), down.shape[1], across.shape[1])
        return down @ self.rng.standard_normal(knots, dtype=np.float32) @ across.T

    def fractal(self, cells: int) -> Floats:
        """Three octaves of smooth noise [n, h, w], as in clouds, bark or stone."""
        return self.noise(cells) + self.noise(2 * cells) / 2 + self.noise(4 * cells) / 4

    def axes(self) -> tuple[Floats, Floats]:
        """Coordinates [n, h, w] along and across a random direction, zero at the image centre."""
        angle, u, v = self.uniform(0, 2 * np.pi), self.x - 0.5, self.y - 0.5
        cos, sin = np.cos(angle), np.sin(angle)
        return u * cos + v * sin, v * cos - u * sin

    def stripes(self, period: Floats, warp: float = 0.0) -> Floats:
        """Distance [n, h, w] to the nearest of parallel lines in a random direction."""
        across = self.axes()[1] / period + warp * self.noise(4)
        return np.abs(across - np.round(across)) * period

    def dabs(self, width: Floats, length: Floats) -> Floats:
        """Tones [n, h, w] in [0, 1), constant within each of the brush dabs that tile the image."""
        along, across = self.axes()
        row = np.floor(across / width + self.noise(3)).astype(np.intp) % 61
        image = np.arange(len(self.labels))[:, None, None]
        start = self.rng.random((len(image), 61), np.float32)[image, row]
        column = np.floor(along / length + 7 * start).astype(np.intp) % 61
        tones = self.rng.random((len(image), 61, 61), np.float32)[image, row, column]
        for axis in (1, 2):
            tones = (np.roll(tones, 1, axis) + 2 * tones + np.roll(tones, -1, axis)) / 4
        return tones

    def strokes(self, count: int, length: tuple[float, float], spread: float) -> Floats:
        """Distance [n, h, w] to at most `count` stray segments within `spread` of the shape."""
        nearest = np.full_like(self.x, np.inf)
        for _ in range(count):
            angle, half = self.uniform(0, np.pi)[:, 0], self.uniform(*length)[:, 0] / 2
            reach = np.concatenate([np.cos(angle), np.sin(angle)], -1) * half
            middle = self.centre + self.rng.uniform(-spread, spread, reach.shape).astype(np.float32)
            absent = 9 * self.chance(0.4)
            segment = _segment(self.x, self.y, middle - reach, middle + reach)
            nearest = np.minimum(nearest, segment + absent)
        return nearest

    def ink(self, distance: Floats, softness: Floats | float = 0.0) -> Floats:
        """Coverage [n, h, w] in [0, 1] where distance is negative, blurred over `softness`."""
        return np.clip(0.5 - distance / (1 / self.size + softness), 0, 1)


def _spread(cells: int, size: int) -> Floats:
    """Matrix [size, cells + 1] that interpolates knots smoothly and keeps unit variance."""
    position = (np.arange(size) + 0.5) / size * cells
    knot = np.floor(position).astype(int)
    ease = position - knot
    ease = ease * ease * (3 - 2 * ease)
    matrix = np.zeros((size, cells + 1))
    matrix[np.arange(size), knot] = 1 - ease
    matrix[np.arange(size), knot + 1] = ease
    return (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float32)


def _over(canvas: Floats, paint: Floats, alpha: Floats) -> Floats:
    """Lay paint [n, 3, h, w] or [n, 3, 1, 1] over the canvas where alpha [n, h, w] says."""
    return canvas + alpha[:, None] * (paint - canvas)


# --- Styles: scene -> canvas [n, 3, size, size], about in [0, 1] ---


def _photo(scene: Scene) -> Floats:
    """A solid object, lit from one side, casting a shadow on a cluttered, out-of-focus ground."""

    def natural() -> Floats:
        # Soil, leaves and sky: no purple.
        return scene.colour((0.05, 0.45), (0.25, 0.9), hue=scene.uniform(0.05, 0.62))

    horizon = scene.axes()[0] / scene.uniform(0.05, 0.8) + 0.5 + 0.2 * scene.fractal(3)
    canvas = _over(natural(), natural(), np.clip(horizon, 0, 1))
    for _ in range(3):
        blob = scene.strokes(1, (0.0, 0.5), 0.6) - scene.uniform(0.03, 0.15)
        blob = scene.ink(blob + 0.02 * scene.noise(5), scene.uniform(0.02, 0.12))
        canvas = _over(canvas, natural(), 0.8 * blob)
    canvas = canvas * (1 + scene.uniform(0.02, 0.12) * scene.fractal(8))[:, None]

    angle, height = scene.uniform(0, 2 * np.pi), scene.uniform(0.03, 0.1)
    light_x, light_y = np.cos(angle), np.sin(angle)
    shadow = scene.ink(scene.distance(-height * light_x, -height * light_y), height)
    canvas = canvas * (1 - scene.uniform(0.3, 0.7) * shadow)[:, None]

    outline, bevel = scene.distance(), scene.uniform(0.04, 0.15)
    relief = bevel * np.sqrt(1 - np.clip(1 + outline / bevel, 0, 1) ** 2)
    relief = relief + scene.uniform(0.0, 0.003) * scene.fractal(10)
    slope_y, slope_x = np.gradient(relief, 1 / scene.size, axis=(1, 2))
    # Lambert's law for a light 50 degrees above the ground: tan 50 is about 1.2.
    facing = 1.2 - slope_x * light_x - slope_y * light_y
    facing = np.maximum(facing, 0) / np.sqrt(2.44 * (1 + slope_x**2 + slope_y**2))
    bands = scene.ink(scene.stripes(scene.uniform(0.06, 0.12)) - 0.02) * scene.chance(0.3)
    surface = scene.colour((0.3, 0.9), (0.5, 1.0))
    surface = _over(surface, scene.colour((0.0, 0.6), (0.2, 0.9)), bands)
    marbling = 1 + scene.uniform(0.0, 0.2) * scene.fractal(6)
    surface = surface * (marbling * (0.25 + 0.9 * facing))[:, None]
    surface = surface + (scene.uniform(0.0, 0.7) * facing**12)[:, None]
    canvas = _over(canvas, surface, scene.ink(outline, scene.uniform(0.0, 0.02)))

    twig = scene.ink(scene.strokes(2, (0.2, 0.6), 0.25) - scene.uniform(0.004, 0.016), 0.01)
    bark = scene.colour((0.2, 0.6), (0.1, 0.5), hue=scene.uniform(0.05, 0.3))
    canvas = _over(canvas, bark, twig * scene.chance(0.6))
    vignette = 1 - 0.4 * ((scene.x - 0.5) ** 2 + (scene.y - 0.5) ** 2)
    canvas = canvas * (scene.uniform(0.85, 1.15) * vignette)[:, None]
    return canvas + (scene.uniform(0.005, 0.03) * scene.grain())[:, None]


def _sketch(scene: Scene) -> Floats:
    """Wobbly, restated pencil lines with hatching and stray marks on grainy paper."""
    paper = scene.colour((0.0, 0.08), (0.86, 0.98), hue=scene.uniform(0.08, 0.16))
    tooth = 0.6 * scene.grain() + 0.8 * scene.noise(scene.size // 3)
    graphite = np.zeros_like(scene.x)
    weight = scene.uniform(0.004, 0.012)
    for restated in (1.0, scene.chance(0.6), scene.chance(0.3)):
        slip = scene.uniform(0.004, 0.014)
        line = scene.distance(slip * scene.noise(4), slip * scene.noise(4))
        pressure = restated * np.clip(0.75 + 0.3 * scene.noise(5), 0, 1)
        graphite = np.maximum(graphite, pressure * scene.ink(np.abs(line) - weight, 0.01))
    hatch = scene.ink(scene.stripes(scene.uniform(0.03, 0.06), warp=0.15) - 0.004, 0.01)
    side = np.clip(0.5 + 6 * (scene.axes()[0] + scene.uniform(-0.2, 0.2)), 0, 1)
    hatch = hatch * side * scene.ink(line + 0.01 * scene.noise(12), 0.01)
    graphite = np.maximum(graphite, scene.chance(0.6) * scene.uniform(0.3, 0.8) * hatch)
    stray = scene.ink(scene.strokes(4, (0.1, 0.7), 0.4) + 0.008 * scene.noise(6) - 0.003, 0.01)
    graphite = np.maximum(graphite, scene.uniform(0.2, 0.7) * stray)
    smudge = scene.uniform(0.0, 0.15) * np.clip(scene.fractal(2), 0, 1)
    graphite = graphite * np.clip(0.85 + 0.3 * tooth, 0, 1) + smudge
    canvas = paper * (1 + 0.025 * tooth)[:, None]
    return _over(canvas, scene.colour((0.0, 0.15), (0.1, 0.35)), np.clip(graphite, 0, 1))


def _clipart(scene: Scene) -> Floats:
    """A flat, saturated fill within a thick dark outline on a pastel, sometimes patterned, page."""
    canvas = scene.colour((0.05, 0.35), (0.88, 1.0))
    period = scene.uniform(0.1, 0.25)
    pattern = scene.ink(scene.stripes(period) - period / 4) * scene.chance(0.4)
    canvas = _over(canvas, scene.colour((0.05, 0.35), (0.88, 1.0)), pattern)
    for _ in range(3):
        confetti = scene.strokes(1, (0.0, 0.12), 0.45) - scene.uniform(0.012, 0.035)
        canvas = _over(canvas, scene.colour((0.5, 1.0), (0.6, 1.0)), scene.ink(confetti))
    outline, width = scene.distance(), scene.uniform(0.012, 0.032)
    sticker = scene.ink(outline - width - 0.03) * scene.chance(0.3)
    canvas = _over(canvas, np.ones_like(canvas), sticker)
    canvas = _over(canvas, scene.colour((0.0, 0.6), (0.0, 0.25)), scene.ink(outline - width))
    hue = scene.uniform(0, 1)
    fill = scene.colour((0.7, 1.0), (0.75, 1.0), hue)
    canvas = _over(canvas, fill, scene.ink(outline + width / 2))
    # Cel shading: the fill again, darker, outside a shifted copy of the shape.
    shift = scene.uniform(-0.06, 0.06), scene.uniform(-0.06, 0.06)
    shade = scene.ink(outline + width / 2) * (1 - scene.ink(scene.distance(*shift) + width / 2))
    return _over(canvas, 0.7 * fill, scene.chance(0.6) * shade)


def _painting(scene: Scene) -> Floats:
    """Muted dabs of a brush on canvas: edges are where strokes happen to end."""
    muted, dark, light = (0.15, 0.55), (0.2, 0.5), (0.6, 0.95)
    # Chiaroscuro: a pale subject on a dark ground, or the reverse.
    pale = scene.chance(0.5)[:, None]

    def pigment(bright: Floats, hue: Floats | None = None) -> Floats:
        hue = scene.uniform(0, 1) if hue is None else hue
        choices = scene.colour(muted, dark, hue), scene.colour(muted, light, hue)
        return choices[0] + bright * (choices[1] - choices[0])

    ground = scene.dabs(scene.uniform(0.04, 0.08), scene.uniform(0.15, 0.4))
    blend = np.clip(0.5 + scene.axes()[0] + 0.4 * scene.noise(2) + 0.8 * (ground - 0.5), 0, 1)
    canvas = _over(pigment(1 - pale), pigment(1 - pale), blend) * (0.85 + 0.3 * ground)[:, None]
    for _ in range(2):
        touch = scene.strokes(1, (0.1, 0.3), 0.35) + 0.03 * (ground - 0.5) - 0.018
        canvas = _over(canvas, pigment(scene.chance(0.5)[:, None]), scene.ink(touch, 0.02))

    brush = scene.dabs(scene.uniform(0.03, 0.05), scene.uniform(0.1, 0.2))
    slip = scene.uniform(0.002, 0.008)
    edge = scene.distance(slip * scene.noise(6), slip * scene.noise(6))
    edge = edge + scene.uniform(0.01, 0.04) * (brush - 0.5)
    lit = np.clip(0.5 + 2 * scene.axes()[0] + 0.8 * (brush - 0.5), 0, 1)
    hue = scene.uniform(0, 1)
    body = _over(pigment(pale, hue), pigment(pale, hue + 0.08), lit) * (0.85 + 0.3 * brush)[:, None]
    canvas = _over(canvas, body, scene.ink(edge, 0.03))
    weave = np.sin(125 * scene.x) * np.sin(125 * scene.y)
    bristles = scene.chance(0.5)
    bristles = bristles * scene.noise(30, 5) + (1 - bristles) * scene.noise(5, 30)
    return canvas * (1 + 0.04 * weave + 0.06 * bristles)[:, None]


def _neon(scene: Scene) -> Floats:
    """A glowing, unevenly lit tube on a dark wall."""
    canvas = scene.colour((0.3, 0.9), (0.03, 0.16)) * np.ones_like(scene.x)[:, None]
    course, brick = scene.y * 12, scene.x * 6
    brick = brick + 0.5 * (np.floor(course) % 2)
    joint = np.minimum(np.abs(course - np.round(course)) / 2, np.abs(brick - np.round(brick)))
    wall = 0.25 * scene.fractal(6) - 0.6 * (joint < 0.08)
    canvas = canvas * (1 + scene.chance(0.5) * wall)[:, None]
    hue = scene.uniform(0, 1)
    tube = np.abs(scene.distance(0.004 * scene.noise(3), 0.004 * scene.noise(3)))
    lamps = [(tube, hue, np.clip(0.9 + 0.25 * scene.noise(3), 0.15, 1.2))]
    for _ in range(2):
        stray = scene.strokes(1, (0.05, 0.5), 0.45)
        lamps.append((stray, scene.uniform(0, 1), scene.uniform(0.3, 0.8)))
    for distance, tint, power in lamps:
        width = scene.uniform(0.005, 0.012)
        glow = np.exp(-distance / 0.02) + 0.5 * np.exp(-distance / scene.uniform(0.05, 0.12))
        canvas = canvas + scene.colour((0.7, 1.0), (0.7, 1.0), tint) * (power * glow)[:, None]
        canvas = canvas + (0.6 * power * scene.ink(distance - width, 0.01))[:, None]
    return canvas + (0.02 * scene.grain())[:, None]


_DRAW: dict[str, Callable[[Scene], Floats]] = {
    "photo": _photo,
    "sketch": _sketch,
    "clipart": _clipart,
    "painting": _painting,
    "neon": _neon,
}
