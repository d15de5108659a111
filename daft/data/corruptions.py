"""The 15 corruptions of Hendrycks & Dietterich (2019) at five severities, on batches of images.

Each follows the scripts that made the published images (hendrycks/robustness, ImageNet-C/create_c), what is
odd in them included: values are cut to whole levels, not rounded; glass blur copies pixels where it means to
swap them. What becomes of an image depends on it and its number alone, whatever batch it comes in: each has
its own generator of random numbers, on the CPU even if the images are on a GPU. Frost is the exception: the
photographs of it are not ours to give, so a random texture with their colours, contrasts and spectrum takes
their place.
"""

import functools
import math
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.ndimage
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from daft.config import yaml_files
from daft.data.loader import derive_seed

SEVERITIES = range(1, 6)

VERSION = 1
"""Raised when the same image and number give another corrupted image."""

LEAST_SIDE = 24
"""Pixels; smaller images have no room for the blurs."""

PUBLISHED = Path(__file__).resolve().parents[2] / "conf" / "corruptions"
"""Parameters, a file for each size of images that they were published for."""

FROST = ((78, 148, 165), (197, 202, 211), (197, 202, 211), (144, 159, 172), (101, 112, 124))
"""Mean RGB of the five photographs of frost that the published images were made with; two are the same."""

FROST_SLOPE = -1.1
"""Of the amplitude of their spatial frequencies, in logarithms of both."""

SLACK = 1e-3
"""Of a level: float32 may miss a whole one by less than this from below, and is not cut to the one before."""


class PerImageRNG:
    """Random numbers, a row per image from a generator of its own; drawn on the CPU, given on the device."""

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.device = device

    def __len__(self) -> int:
        """Number of images."""
        return len(self._generators)

    def _rows(self, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        return torch.stack([draw(generator) for generator in self._generators]).to(self.device)

    def normal(self, *shape: int) -> Tensor:
        """[B, *shape]"""
        return self._rows(lambda generator: torch.randn(shape, generator=generator))

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """[B, *shape] in [low, high)"""
        return low + (high - low) * self._rows(lambda generator: torch.rand(shape, generator=generator))

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """[B, *shape] of low to high - 1"""
        return self._rows(lambda generator: torch.randint(low, high, shape, generator=generator))

    def poisson(self, rates: Tensor) -> Tensor:
        """Counts of these expected values [B, ...]."""
        rows = zip(rates.cpu(), self._generators, strict=True)
        return torch.stack([torch.poisson(row, generator) for row, generator in rows]).to(self.device)


class Setting(NamedTuple):
    """What a corruption has to know beside the images."""

    values: Any
    """its parameters at this severity"""
    rng: PerImageRNG
    published: dict[str, Any]
    """everything that is published for images of about this size"""


Corruption = Callable[[Tensor, Setting], Tensor]
"""float32 [B, 3, H, W] in [0, 1] to values that may leave [0, 1]; `corrupt` clips them."""

CORRUPTIONS: dict[str, Corruption] = {}
"""By name, in the order of the paper's table."""


def corrupt(images: Tensor, name: str, severity: int, numbers: Sequence[int]) -> Tensor:
    """Images uint8 [B, 3, H, W] corrupted, of the same shape; `numbers` say which image of its set each is.

    Parameters are those of the published size (32, 64 or 224 pixels) whose ratio to the shorter side is the
    least, as they are: nothing is scaled in between. Raises ValueError for images that are too small.
    """
    side = min(images.shape[-2:])
    if side < LEAST_SIDE:
        raise ValueError(
            f"images of {side} pixels are too small to corrupt; at least {LEAST_SIDE} are needed"
        )
    published = parameters(side)
    stream = list(CORRUPTIONS).index(name), severity
    rng = PerImageRNG([derive_seed(*stream, number) for number in numbers], images.device)
    setting = Setting(published[name][severity - 1], rng, published)
    return _levels(CORRUPTIONS[name](images.float() / 255, setting))


def parameters(side: int) -> dict[str, Any]:
    """What is published for images with about this shorter side, in pixels."""
    return min(_published(), key=lambda known: abs(math.log(known["side"] / side)))


@functools.cache
def _published() -> list[dict[str, Any]]:
    return [yaml_files.load(file) for file in sorted(PUBLISHED.glob("*.yaml"))]


def _levels(x: Tensor) -> Tensor:
    """uint8 of [0, 1], cut as NumPy's astype does."""
    return (x.clamp(0, 1) * 255 + SLACK).to(torch.uint8)


def _corruption(function: Corruption) -> Corruption:
    CORRUPTIONS[function.__name__] = function
    return function


@_corruption
def gaussian_noise(x: Tensor, setting: Setting) -> Tensor:
    """Normal noise in every value."""
    return x + setting.values * setting.rng.normal(*x.shape[1:])


@_corruption
def shot_noise(x: Tensor, setting: Setting) -> Tensor:
    """Poisson counts of so many photons of white."""
    return setting.rng.poisson(x * setting.values) / setting.values


@_corruption
def impulse_noise(x: Tensor, setting: Setting) -> Tensor:
    """Values that are 0 or 1 instead, each with half the probability."""
    hit, salt = setting.rng.uniform(0, 1, 2, *x.shape[1:]).unbind(1)
    return torch.where(hit < setting.values, (salt < 0.5).float(), x)


@_corruption
def defocus_blur(x: Tensor, setting: Setting) -> Tensor:
    """Convolution with an antialiased disk, images mirrored at the centres of their outermost pixels."""
    kernel = torch.from_numpy(_disk(*setting.values)).to(x)
    reach = len(kernel) // 2
    padded = F.pad(x, [reach] * 4, mode="reflect")
    return F.conv2d(padded, kernel.expand(3, 1, -1, -1), groups=3)


@functools.cache
def _disk(radius: float, sigma: float) -> np.ndarray:
    """The disk [K, K], float64, K odd; zeros around it are left out."""
    reach = 8 if radius <= 8 else math.ceil(radius)
    grid = np.arange(-reach, reach + 1)
    disk = (grid[:, None] ** 2 + grid**2 <= radius**2).astype(float)
    taps = np.arange(3) - 1 if radius <= 8 else np.arange(5) - 2
    edge = np.exp(-(taps**2) / (2 * sigma**2))
    for axis in (0, 1):
        disk = scipy.ndimage.correlate1d(disk, edge / edge.sum(), axis, mode="mirror")
    disk /= (grid[:, None] ** 2 + grid**2 <= radius**2).sum()
    empty = int(np.argmax((disk > 0).any(0)))
    return disk[empty : len(disk) - empty, empty : len(disk) - empty]


@_corruption
def glass_blur(x: Tensor, setting: Setting) -> Tensor:
    """Pixels copied from close by between two Gaussian blurs."""
    sigma, reach, passes = setting.values
    blurred = _levels(_gaussian(x, sigma, "nearest", 4)).float() / 255
    _, _, height, width = x.shape
    source = torch.arange(height * width, device=x.device).repeat(len(x), 1)
    for _ in range(passes):
        down, right = setting.rng.integers(-reach, reach, 2, height, width).unbind(1)
        source = _copied(source, down, right, reach)
    copied = blurred.flatten(2).gather(2, source[:, None].expand(-1, 3, -1)).view_as(x)
    return _gaussian(copied, sigma, "nearest", 4)


def _copied(source: Tensor, down: Tensor, right: Tensor, reach: int) -> Tensor:
    """Which pixel [B, H * W] each shows once all, last row and column first, have copied one close by.

    A pixel is done with the others of its front, which are too far away to see each other: this is the
    result of one after the other, in reach * H + W steps.
    """
    _, height, width = down.shape
    rows = torch.arange(height - reach, reach, -1, device=source.device)
    columns = torch.arange(width - reach, reach, -1, device=source.device)
    front = ((height - reach - rows) * (reach + 1))[:, None] + (width - reach - columns)
    source = source.clone()
    order = front.flatten().argsort(stable=True)
    flat = (rows[:, None] * width + columns).flatten()[order]
    offset = (down * width + right).flatten(1)
    for pixels in flat.split(front.flatten().bincount().tolist()):
        source[:, pixels] = source.gather(1, pixels + offset[:, pixels])
    return source


@_corruption
def motion_blur(x: Tensor, setting: Setting) -> Tensor:
    """Half a Gaussian along a line that is at most 45 degrees off the horizontal."""
    radius, sigma = setting.values
    return _moved(x, radius, sigma, setting.rng.uniform(-45, 45))


def _moved(x: Tensor, radius: float, sigma: float, degrees: Tensor) -> Tensor:
    """[B, C, H, W] blurred towards these angles [B] as ImageMagick does, rounded to levels."""
    _, channels, height, width = x.shape
    steps = torch.arange(2 * math.ceil(radius) + 1, device=x.device)
    weights = torch.exp(-(steps.double() ** 2) / (2 * sigma**2))
    weights = (weights / weights.sum()).float()
    angle = degrees.double().deg2rad()[:, None]
    down = (torch.ceil(steps * angle.sin() - 0.5)).long()
    right = (torch.ceil(steps * angle.cos() - 0.5)).long()
    blurred = torch.zeros_like(x)
    for step, weight in enumerate(weights):
        rows = (torch.arange(height, device=x.device) + down[:, step, None]).clamp(0, height - 1)
        columns = (torch.arange(width, device=x.device) + right[:, step, None]).clamp(0, width - 1)
        pixels = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)
        blurred += weight * x.flatten(2).gather(2, pixels[:, None].expand(-1, channels, -1)).view_as(x)
    return (blurred * 255).round() / 255


@_corruption
def zoom_blur(x: Tensor, setting: Setting) -> Tensor:
    """The mean of the image and of its enlargements, the image itself among them."""
    end, step = setting.values
    factors = np.arange(1, end, step)
    enlarged = torch.stack([_zoomed(x, float(factor)) for factor in factors]).sum(0)
    return (x + enlarged) / (len(factors) + 1)


def _zoomed(x: Tensor, factor: float) -> Tensor:
    """[..., H, W] enlarged about its centre, of the same size."""
    height, width = x.shape[-2:]
    return _linear(x, _zooming(height, factor), _zooming(width, factor))


@functools.cache
def _zooming(side: int, factor: float) -> Tensor:
    """The enlargement along one axis as a matrix [side, side], by SciPy."""
    kept = math.ceil(side / factor)
    first = (side - kept) // 2
    enlarged = np.asarray(scipy.ndimage.zoom(np.eye(side)[first : first + kept], (factor, 1), order=1))
    first = (len(enlarged) - side) // 2
    return torch.from_numpy(enlarged[first : first + side].astype(np.float32))


@_corruption
def snow(x: Tensor, setting: Setting) -> Tensor:
    """A whitened image under flakes that fall in two opposite directions."""
    mean, sigma, zoom, threshold, radius, blur, share = setting.values
    flakes = _zoomed(mean + sigma * setting.rng.normal(1, *x.shape[-2:]), zoom)
    flakes = _levels(torch.where(flakes < threshold, 0, flakes)).float() / 255
    flakes = _moved(flakes, radius, blur, setting.rng.uniform(-135, -45))
    grey = torch.tensor([0.299, 0.587, 0.114], device=x.device).view(3, 1, 1).mul(x).sum(1, keepdim=True)
    x = share * x + (1 - share) * torch.maximum(x, grey * 1.5 + 0.5)
    return x + flakes + flakes.flip(-2, -1)


@_corruption
def frost(x: Tensor, setting: Setting) -> Tensor:
    """A random texture laid over the image, in the colours of one of the photographs."""
    image, ice = setting.values
    which = setting.rng.integers(0, len(FROST), 1)[:, 0]
    colour = torch.tensor(FROST, device=x.device)[which][:, :, None, None]
    contrast = torch.tensor(setting.published["frost_contrast"], device=x.device)[which][:, None, None, None]
    texture = _rough(setting.rng.normal(1, *x.shape[-2:]), FROST_SLOPE)
    return image * x + ice * (colour + contrast * texture).clamp(0, 255) / 255


def _rough(noise: Tensor, slope: float) -> Tensor:
    """White noise [..., H, W] with a spectrum that falls as a power, of mean 0 and standard deviation 1."""
    height, width = noise.shape[-2:]
    rows, columns = torch.fft.fftfreq(height), torch.fft.rfftfreq(width)
    frequency = torch.hypot(rows[:, None] * height, columns * width)
    gain = torch.where(frequency > 0, frequency.clamp(min=1) ** slope, 0).to(noise)
    field = torch.fft.irfft2(torch.fft.rfft2(noise) * gain, s=(height, width))
    return field / field.std((-2, -1), keepdim=True)


@_corruption
def fog(x: Tensor, setting: Setting) -> Tensor:
    """Clouds that are added, and the image darkened by as much as they could brighten it."""
    amplitude, decay = setting.values
    height, width = x.shape[-2:]
    side = 2 ** math.ceil(math.log2(max(height, width)))
    clouds = _plasma(setting.rng, side, decay)[:, None, :height, :width]
    brightest = x.amax((1, 2, 3), keepdim=True)
    return (x + amplitude * clouds) * brightest / (brightest + amplitude)


def _plasma(rng: PerImageRNG, side: int, decay: float) -> Tensor:
    """Heights [B, side, side] in [0, 1] by the diamond-square algorithm on a torus, side a power of two."""
    heights = torch.zeros(len(rng), side, side, device=rng.device)
    step, spread = side, 100.0**2
    while step >= 2:
        half = step // 2
        corners = heights[:, ::step, ::step]
        pairs = corners + corners.roll(-1, 1)
        centres = _between(pairs + pairs.roll(-1, 2), spread, rng)
        across = _between(corners + corners.roll(-1, 2) + centres + centres.roll(1, 1), spread, rng)
        below = _between(corners + corners.roll(-1, 1) + centres + centres.roll(1, 2), spread, rng)
        heights[:, half::step, half::step] = centres
        heights[:, ::step, half::step] = across
        heights[:, half::step, ::step] = below
        step, spread = half, spread / decay**2
    heights = heights - heights.amin((1, 2), keepdim=True)
    return heights / heights.amax((1, 2), keepdim=True)


def _between(four: Tensor, spread: float, rng: PerImageRNG) -> Tensor:
    """The mean of four heights given by their sum [B, ...], moved by at most `spread`."""
    return four / 4 + rng.uniform(-spread, spread, *four.shape[1:])


@_corruption
def brightness(x: Tensor, setting: Setting) -> Tensor:
    """A higher value of HSV, hue and saturation as they are."""
    value = x.amax(1, keepdim=True)
    brighter = (value + setting.values).clamp(max=1)
    return torch.where(value > 0, x * brighter / value.clamp(min=1 / 255), brighter)


@_corruption
def contrast(x: Tensor, setting: Setting) -> Tensor:
    """Less distance to the mean colour."""
    mean = x.mean((2, 3), keepdim=True)
    return (x - mean) * setting.values + mean


@_corruption
def elastic_transform(x: Tensor, setting: Setting) -> Tensor:
    """A random affine map of the image, then smooth random displacements of its pixels."""
    amplitude, sigma, reach = setting.values
    height, width = x.shape[-2:]
    centre = torch.tensor([width // 2, height // 2]).double()
    third = min(height, width) // 3
    corners = centre + third * torch.tensor([[1, 1], [1, -1], [-1, -1]])  # of x, y
    moved = corners + setting.rng.uniform(-reach, reach, 3, 2).cpu().double()
    ones = torch.ones(len(x), 3, 1, dtype=torch.float64)
    back = torch.linalg.solve(torch.cat([moved, ones], 2), corners.expand_as(moved)).to(x.device)
    grid = torch.stack(torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy"), -1)
    grid = grid.to(x.device).double()
    places = torch.cat([grid, torch.ones_like(grid[..., :1])], -1).flatten(0, 1) @ back
    x = _sampled(x, places.view(len(x), height, width, 2), corners_stay=True)
    if amplitude == 0:
        return x
    noise = setting.rng.uniform(-1, 1, 2, height, width)
    shift = amplitude * _gaussian(noise, sigma, "reflect", 3)
    return _sampled(x, grid + shift.permute(0, 2, 3, 1), corners_stay=False)


def _sampled(x: Tensor, places: Tensor, corners_stay: bool) -> Tensor:
    """Bilinear values at (x, y) in pixels [B, H, W, 2]; beyond the image it is mirrored.

    corners_stay: at the centres of its outermost pixels, else at their outer edges.
    """
    size = torch.tensor([x.shape[-1], x.shape[-2]], device=x.device)
    scaled = 2 * places / (size - 1) - 1 if corners_stay else (2 * places + 1) / size - 1
    return F.grid_sample(x, scaled.to(x), "bilinear", "reflection", align_corners=corners_stay)


@_corruption
def pixelate(x: Tensor, setting: Setting) -> Tensor:
    """Fewer pixels, and as many as before again, by Pillow."""
    height, width = x.shape[-2:]
    smaller = int(width * setting.values), int(height * setting.values)

    def fewer(image: Image.Image) -> Image.Image:
        return image.resize(smaller, Image.Resampling.BOX).resize((width, height), Image.Resampling.BOX)

    return _by_pillow(x, fewer)


@_corruption
def jpeg_compression(x: Tensor, setting: Setting) -> Tensor:
    """A JPEG file of this quality, by Pillow."""

    def compressed(image: Image.Image) -> Image.Image:
        file = BytesIO()
        image.save(file, "JPEG", quality=setting.values)
        return Image.open(file)

    return _by_pillow(x, compressed)


def _by_pillow(x: Tensor, work: Callable[[Image.Image], Image.Image]) -> Tensor:
    levels = _levels(x).permute(0, 2, 3, 1).contiguous().cpu().numpy()
    worked = np.stack([np.asarray(work(Image.fromarray(image))) for image in levels])
    return torch.from_numpy(worked).to(x.device).permute(0, 3, 1, 2).float() / 255


def _gaussian(x: Tensor, sigma: float, mode: str, truncate: float) -> Tensor:
    """[..., H, W] smoothed; mode and truncate as SciPy has them."""
    height, width = x.shape[-2:]
    return _linear(x, _smoothing(height, sigma, mode, truncate), _smoothing(width, sigma, mode, truncate))


@functools.cache
def _smoothing(side: int, sigma: float, mode: str, truncate: float) -> Tensor:
    """The smoothing along one axis as a matrix [side, side], by SciPy."""
    smoothed = scipy.ndimage.gaussian_filter1d(np.eye(side), sigma, axis=0, mode=mode, truncate=truncate)
    return torch.from_numpy(smoothed.astype(np.float32))


def _linear(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """A linear map [H, H] of the rows of [..., H, W] and one [W, W] of its columns."""
    return rows.to(x) @ x @ columns.to(x).T
