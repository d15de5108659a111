"""Image files as RGB pixels: which are read, in which of the ways that a file leaves open, or why not."""

import functools
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ExifTags import Base
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT
from torch import Tensor
from torch.utils.data import get_worker_info

from daft.common import progress
from daft.common.errors import UserError, first_line, shown
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

# An image over the limit is refused below, in words of its own.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


@dataclass(frozen=True)
class Decoding:
    """What of a file is open to choice."""

    exif_orientation: Literal["ignore", "apply"] = "ignore"
    transparency: Literal["drop", "white", "black"] = "drop"
    max_megapixels: float = 179.0

    @classmethod
    def of(cls, cfg: DatasetConfig) -> "Decoding":
        """As a dataset has it."""
        return cls(cfg.exif_orientation, cfg.transparency, cfg.max_megapixels)

    @property
    def key(self) -> str:
        """What is added to the names of all that is kept of pixels: nothing for the usual ones."""
        turned = "-upright" if self.exif_orientation == "apply" else ""
        return turned + ("" if self.transparency == "drop" else f"-{self.transparency}")


USUAL = Decoding()


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

    Raises UserError for one that is larger than allowed, UnknownWhiteError for pixels that cannot be
    scaled, and whatever Pillow raises for a damaged file.
    """
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
        turned = (
            decoding.exif_orientation == "apply"
            and file.format != "TIFF"  # Pillow turns those itself, always
            and file.getexif().get(Base.Orientation) in SIDEWAYS
        )
        return (file.width, file.height) if turned else (file.height, file.width)


@contextmanager
def opened(path: Path, decoding: Decoding) -> Iterator[Image.Image]:
    """An image file, its header read."""
    limit = int(decoding.max_megapixels * 1e6)
    Image.MAX_IMAGE_PIXELS = max(1, limit)  # Pillow itself refuses twice as many, and images inside of others
    try:
        with Image.open(path) as file:
            if (pixels := file.width * file.height) > limit:
                raise Image.DecompressionBombError(f"{pixels} pixels")
            yield file
    except Image.DecompressionBombError as error:
        found = re.search(r"\d+", str(error))
        size = f"{int(found[0]) / 1e6:,.1f}" if found else "too many"
        raise UserError(
            f"{shown(path)}: {size} megapixels, more than dataset.max_megapixels="
            f"{decoding.max_megapixels:g}; raise it if you trust the file, or remove the file"
        ) from None


def _rgb(file: Image.Image, decoding: Decoding) -> Image.Image:
    _note_frames(file)
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
