"""Image files as RGB pixels: which are read, in which of the ways that a file leaves open, or why not."""

import functools
import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal

import numpy as np
import simplejpeg
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ExifTags import Base
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT
from torch import Tensor
from torch.utils.data import get_worker_info

from daft.common import progress
from daft.common.errors import UserError, first_line, shown
from daft.config.operations import Operation, Resize
from daft.config.schema import DatasetConfig

PLUGINS = {".heic": "pillow-heif", ".heif": "pillow-heif", ".hif": "pillow-heif", ".jxl": "pillow-jxl-plugin"}
"""Images that Pillow reads with another package, which registers itself below."""

with suppress(ImportError):
    import_module("pillow_heif").register_heif_opener()
with suppress(ImportError):
    import_module("pillow_jxl")

NO_PICTURES = frozenset(["BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"])
"""Formats whose suffix Pillow knows, but which it cannot decode, or not by itself."""

WHITE_IS_KNOWN = {"I;16": ("PNG", "JPEG2000", "TIFF"), "I": ("PNG", "PPM")}
"""Modes of grey with 16 bits, and the formats that use them all, or say how many (TIFF)."""

WHITE_IS_ZERO = 0
"""A photometric interpretation of TIFF. Pillow minds it in eight bits alone."""

UNSIGNED = 1
"""A sample format of TIFF."""

SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations in which height and width change places."""

FRAMED = ("GIF", "PNG", "TIFF", "WEBP", "AVIF", "HEIF", "DCX", "FLI")
"""Formats in which further frames are pictures of their own. (Telephones put previews into MPO.)"""

JPEGS = ("JPEG", "MPO")
"""Pillow's names of JPEG files."""

JPEG_START = b"\xff\xd8\xff"

LOSSY = (0xC0, 0xC1, 0xC2)
"""Markers of a JPEG's frame: baseline, extended, progressive."""

SEGMENTS = (0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0))
"""Markers of what comes before it: tables, a comment, and APP0 to APP15."""

LEAST_BYTES = {0xE0: 9, 0xE2: 16, 0xEE: 9}
"""Of APP0, APP2 (a colour profile) and APP14, below which Pillow refuses a file."""

IN_COLOUR = ("YCbCr", "RGB")
"""The kinds of JPEG that are RGB to Pillow."""

FRACTIONS = (8, 4, 2)
"""Of its size at which a JPEG can be decoded, 1 / n."""

# An image over the limit is refused below, in words of its own.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


@dataclass(frozen=True)
class Decoding:
    """What of a file is open to choice."""

    exif_orientation: Literal["ignore", "apply"] = "ignore"
    transparency: Literal["drop", "white", "black"] = "drop"
    max_megapixels: float = 179.0
    least_side: int | None = None
    """a JPEG is decoded at 1/2, 1/4 or 1/8 of its size if its shorter side keeps so many pixels"""
    leave_out_larger: bool = False
    """whether an image over the limit is one that cannot be read, and no error of the user's"""

    @classmethod
    def of(cls, cfg: DatasetConfig, operations: Sequence[Operation] = ()) -> "Decoding":
        """As a dataset has it, for images that go through these operations."""
        first, least = next(iter(operations), None), None
        if cfg.scaled_decoding is not None and isinstance(first, Resize) and first.interpolation != "nearest":
            side = first.size if isinstance(first.size, int) else max(first.size)
            least = math.ceil(cfg.scaled_decoding * side)
        return cls(cfg.exif_orientation, cfg.transparency, cfg.max_megapixels, least)

    @property
    def max_pixels(self) -> int:
        return int(self.max_megapixels * 1e6)

    def fraction(self, size: tuple[int, int]) -> int:
        """n: a JPEG of this width and height is decoded at 1 / n of it."""
        if self.least_side is None:
            return 1
        return next((n for n in FRACTIONS if min(size) >= n * self.least_side), 1)

    @property
    def key(self) -> str:
        """What is added to the names of all that is kept of pixels: nothing for the usual ones."""
        turned = "-upright" if self.exif_orientation == "apply" else ""
        ground = "" if self.transparency == "drop" else f"-{self.transparency}"
        return turned + ground + ("" if self.least_side is None else f"-scaled{self.least_side}")

    @property
    def cache_key(self) -> str:
        """`key`, and which images are too large: of those there are no pixels."""
        limit = "" if self.max_megapixels == USUAL.max_megapixels else f"-max{self.max_megapixels:g}"
        return self.key + limit


USUAL = Decoding()


class TooLargeError(ValueError):
    """An image is over the limit, and such images are left out."""


class UnknownWhiteError(ValueError):
    """A file has pixels of a kind for which nothing says which value is white."""


@functools.cache
def image_suffixes() -> frozenset[str]:
    """Of the files that are taken for images, in lower case: all that Pillow decodes, plugins included."""
    Image.init()
    decoded = {*Image.OPEN, "MPO"} - NO_PICTURES  # MPO is opened as JPEG
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in decoded)


def read_image(path: Path, decoding: Decoding = USUAL) -> Tensor:
    """One image file as uint8 [3, H, W] in RGB, of several frames the first.

    Raises UserError for one that is larger than allowed (TooLargeError if such are left out),
    UnknownWhiteError for pixels that cannot be scaled, and whatever Pillow raises for a damaged file.
    """
    fast = _fast_jpeg(path, decoding)
    if fast is not None:
        return fast
    with opened(path, decoding) as file:
        try:
            return as_pixels(file, decoding)
        except UnknownWhiteError as error:
            raise UnknownWhiteError(f"{shown(path)}: {error}") from None


def as_pixels(image: Image.Image, decoding: Decoding = USUAL) -> Tensor:
    """An image of Pillow's as uint8 [3, H, W] in RGB; raises as `read_image`, but names no file."""
    return torch.from_numpy(np.array(_rgb(image, decoding))).permute(2, 0, 1)


def image_size(path: Path, decoding: Decoding = USUAL) -> tuple[int, int]:
    """Height and width in pixels that `read_image` gives, by the header."""
    with opened(path, decoding) as file:
        height, width = (-(-side // _fraction(file, decoding)) for side in (file.height, file.width))
        turned = (
            decoding.exif_orientation == "apply"
            and file.format != "TIFF"  # Pillow turns those itself, always
            and file.getexif().get(Base.Orientation) in SIDEWAYS
        )
        return (width, height) if turned else (height, width)


@contextmanager
def opened(path: Path, decoding: Decoding) -> Iterator[Image.Image]:
    """An image file, its header read."""
    limit = decoding.max_pixels
    Image.MAX_IMAGE_PIXELS = max(1, limit)  # Pillow itself refuses twice as many, and images inside of others
    try:
        with Image.open(path) as file:
            if (pixels := file.width * file.height) > limit:
                raise Image.DecompressionBombError(f"{pixels} pixels")
            yield file
    except Image.DecompressionBombError as error:
        found = re.search(r"\d+", str(error))
        size = f"{int(found[0]) / 1e6:,.1f}" if found else "too many"
        raise (TooLargeError if decoding.leave_out_larger else UserError)(
            f"{shown(path)}: {size} megapixels, more than dataset.max_megapixels="
            f"{decoding.max_megapixels:g}; raise it if you trust the file, or remove the file"
        ) from None


def _fraction(file: Image.Image, decoding: Decoding) -> int:
    """n: the file is decoded at 1 / n of its size."""
    return decoding.fraction(file.size) if file.format in JPEGS else 1


def _fast_jpeg(path: Path, decoding: Decoding) -> Tensor | None:
    """Pixels of a JPEG in colour, past Pillow; None if Pillow has to read it, or to say why not."""
    if not _fast_is_equal():
        return None
    with path.open("rb") as file:  # `open` takes numbers, too
        data = file.read(len(JPEG_START))
        if data != JPEG_START:
            return None
        data += file.read()
    if decoding.exif_orientation == "apply":
        with opened(path, decoding) as header:
            if header.getexif().get(Base.Orientation, 1) != 1:
                return None
    if not _is_usual(data):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        size = (int(width), int(height))
        if colours not in IN_COLOUR or math.prod(size) > decoding.max_pixels:
            return None
        return torch.from_numpy(_turbo(data, size, decoding.fraction(size))).permute(2, 0, 1)
    except (ValueError, KeyError):  # of anything unusual; what Pillow makes of it is what counts
        return None


def _is_usual(jpeg: bytes) -> bool:
    """Whether the header is one that Pillow surely reads, of a lossy JPEG, as simplejpeg can scale it."""
    place = 2
    while jpeg[place : place + 1] == b"\xff" and place + 4 <= len(jpeg):
        marker, size = jpeg[place + 1], int.from_bytes(jpeg[place + 2 : place + 4])
        if marker in LOSSY:
            return True
        if marker not in SEGMENTS or size < LEAST_BYTES.get(marker, 2):
            return False
        place += 2 + size
    return False


def _turbo(data: bytes, size: tuple[int, int], fraction: int) -> np.ndarray:
    """uint8 [H, W, 3] of a JPEG of this width and height; raises ValueError for one with any flaw."""
    width, height = (-(-side // fraction) for side in size)
    found = simplejpeg.decode_jpeg(data, min_height=height, min_width=width, min_factor=fraction)
    if found.shape != (height, width, 3):
        raise ValueError(f"{found.shape} instead of {height} x {width}")
    return found


@functools.cache
def _fast_is_equal() -> bool:
    """Whether the fast decoder gives Pillow's pixels here: both bring a library of their own, of any build.

    Noise has all frequencies and colours out of range; sides of no block's multiple have every border.
    """
    noise = np.random.default_rng(0).integers(256, size=(37, 53, 3), dtype=np.uint8)
    size = (noise.shape[1], noise.shape[0])
    for subsampling in (0, 1, 2):
        for progressive in (False, True):
            buffer = io.BytesIO()
            Image.fromarray(noise).save(buffer, "JPEG", subsampling=subsampling, progressive=progressive)
            for fraction in (1, *FRACTIONS):
                with Image.open(buffer) as file:
                    _draft(file, fraction)
                    theirs = np.asarray(file)
                try:
                    if not np.array_equal(_turbo(buffer.getvalue(), size, fraction), theirs):
                        return False
                except ValueError:
                    return False
    return True


def _draft(file: Image.Image, fraction: int) -> None:
    """Let Pillow decode a JPEG at a fraction of its size, its colours as they are."""
    if fraction > 1:
        file.draft(None, (file.width // fraction, file.height // fraction))


def _rgb(file: Image.Image, decoding: Decoding) -> Image.Image:
    _note_frames(file)
    _draft(file, _fraction(file, decoding))
    image = ImageOps.exif_transpose(file) if decoding.exif_orientation == "apply" else file
    if image.mode == "F" or image.mode.startswith("I") or _tag(file, SAMPLEFORMAT, UNSIGNED) != UNSIGNED:
        image = _eight_bits(image, file)
    if image.mode == "La":  # has no way to RGB
        image = image.convert("LA")
    if decoding.transparency != "drop" and image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, decoding.transparency), image)
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # to the same colours, and no warning
    return image.convert("RGB")


def _eight_bits(image: Image.Image, file: Image.Image) -> Image.Image:
    """The high bits of deep grey; raises UnknownWhiteError where nothing says which value is white."""
    mode, signed = image.mode.rstrip("BLN"), _tag(file, SAMPLEFORMAT, UNSIGNED) != UNSIGNED
    if file.format not in WHITE_IS_KNOWN.get(mode, ()) or signed:
        bits = _tag(file, BITSPERSAMPLE, 16 if mode == "I;16" else 32)
        kind = "floating-point" if mode == "F" else f"{'signed ' if signed else ''}{bits}-bit"
        where = file.format or "an image in memory"
        raise UnknownWhiteError(
            f"{kind} pixels of {where}, whose white is not known; save it with 8 bits, or as 16-bit PNG"
        )
    grey = (np.asarray(image) >> (_tag(file, BITSPERSAMPLE, 16) - 8)).astype(np.uint8)
    return Image.fromarray(255 - grey if _tag(file, PHOTOMETRIC_INTERPRETATION, 1) == WHITE_IS_ZERO else grey)


_framed: list[str] = []
"""The first file of which it was said."""


def _tag(file: Image.Image, tag: int, default: int) -> int:
    """The value of a TIFF's tag, the first if it has several; the default for files of other formats."""
    value = getattr(file, "tag_v2", {}).get(tag, default)
    return value[0] if isinstance(value, tuple) else value


def _note_frames(file: Image.Image) -> None:
    """Say of the first file with frames or pages that are not read; a loader's workers are quiet."""
    if _framed or get_worker_info() is not None or file.format not in FRAMED:
        return
    if getattr(file, "is_animated", False):
        _framed.append(name := str(getattr(file, "filename", "")))
        progress.say(f"{shown(name)}: has several frames or pages; of such files the first is the image")


SIGNS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the image; git lfs pull fetches it"),
    (b"<svg", "a drawing (SVG); save it as an image"),
    (b"<", "a web page or other markup, not the image; fetch it again"),
    (b"{", "text (JSON), not the image; fetch it again"),
    (b"%PDF", "a PDF; save its pages as images"),
    (b"PK\x03\x04", "a ZIP archive; unpack it"),
    (b"\x1f\x8b", "a gzip archive; unpack it"),
    (b"\xff\x0a", "JPEG XL; pip install pillow-jxl-plugin"),
    (b"\0\0\0\x0cJXL ", "JPEG XL; pip install pillow-jxl-plugin"),
)
"""How files begin that no opener knows, and what they are."""

HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")


def why_unreadable(path: Path, error: Exception) -> str:
    """What is wrong with a file that does not decode, and what mends it."""
    if isinstance(error, UnidentifiedImageError):
        with open(path, "rb") as file:
            head = file.read(512)
        if not head:
            return "empty (0 bytes)"
        if not head.strip(b"\0"):
            return "nothing but zeros; copy it again"
        if head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS:
            return "HEIC; pip install pillow-heif"
        known = (what for sign, what in SIGNS if head.lstrip().lower().startswith(sign.lower()))
        return next(known, "no image format that Pillow knows")
    if "truncated" in str(error).lower():
        return f"cut off ({first_line(error)}); copy it again"
    return first_line(error).removeprefix(f"{shown(path)}: ")
