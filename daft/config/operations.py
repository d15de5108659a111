"""What a transform may consist of: operations on images."""

from dataclasses import asdict, fields
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from daft.common.errors import ConfigError
from daft.config.types import STRICT, Factor, Fraction, Number, ResizedSide, Side

Interpolation = Literal["bilinear", "bicubic", "nearest"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Resize:
    """Shorter side (or height and width) to `size` pixels, antialiased."""

    size: ResizedSide | tuple[ResizedSide, ResizedSide]
    interpolation: Interpolation = "bilinear"
    random = False


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CenterCrop:
    """Central square of `size` pixels."""

    size: Side
    random = False


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Grayscale:
    """Luma in all three channels."""

    random = False


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Darken:
    """Pixel values times 1 - share; at 0 the image itself."""

    share: Annotated[Number, Field(ge=0, lt=1)]
    random = False


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RandomCrop:
    """Square of `size` pixels at a uniform position."""

    size: Side
    random = True


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RandomResizedCrop:
    """Box of random area (fraction of the image) and aspect ratio, resized to `size` pixels."""

    size: ResizedSide
    scale: tuple[Fraction, Fraction] = (0.08, 1.0)
    ratio: tuple[Factor, Factor] = (3 / 4, 4 / 3)
    random = True

    def __post_init__(self) -> None:
        if not 0 < self.scale[1] >= self.scale[0]:
            raise ConfigError("scale", f"{self.scale} must rise, and not be 0 alone")
        if not self.ratio[0] <= self.ratio[1]:
            raise ConfigError("ratio", f"{self.ratio} must rise")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Flip:
    """Mirror left-right with this probability."""

    probability: Fraction = 0.5
    random = True


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RandomScaleCrop:
    """Both sides times a uniform factor, then a square of `size` pixels at a uniform position.

    What is smaller than that stands in the middle of black pixels.
    """

    size: Side
    scale: tuple[Factor, Factor] = (0.5, 2.0)
    label: Annotated[int, Field(ge=0, le=255, strict=True)] = 255
    """of the black pixels, in masks"""
    random = True

    def __post_init__(self) -> None:
        if not self.scale[0] <= self.scale[1]:
            raise ConfigError("scale", f"{self.scale} must rise")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ColorJitter:
    """Brightness, contrast and saturation times uniform factors in [1 - x, 1 + x], in random order."""

    brightness: Fraction = 0.0
    contrast: Fraction = 0.0
    saturation: Fraction = 0.0
    random = True


OPERATIONS = {
    "resize": Resize,
    "center_crop": CenterCrop,
    "grayscale": Grayscale,
    "darken": Darken,
    "random_crop": RandomCrop,
    "random_resized_crop": RandomResizedCrop,
    "flip": Flip,
    "random_scale_crop": RandomScaleCrop,
    "color_jitter": ColorJitter,
}


def _operation(value: Any) -> Any:
    """`grayscale`, `{resize: 64}` or `{resize: {size: 64, …}}` as the operation it names."""
    if isinstance(value, tuple(OPERATIONS.values())):
        return value
    name, arguments = next(iter(value.items())) if isinstance(value, dict) and value else (value, None)
    if not isinstance(name, str) or name not in OPERATIONS or (isinstance(value, dict) and len(value) != 1):
        raise ValueError(f"unknown operation; choose from {', '.join(OPERATIONS)}")
    if arguments is None:
        arguments = {}
    elif not isinstance(arguments, dict):
        names = [f.name for f in fields(OPERATIONS[name])]
        if not names:
            raise ValueError(f"{name} takes no value, not {arguments!r}")
        arguments = {names[0]: arguments}
    try:
        return TypeAdapter(OPERATIONS[name]).validate_python(arguments)
    except ValidationError as error:
        first = max(error.errors(), key=lambda each: len(each["loc"]))  # of a union, what was tried last
        where = ".".join([name, *map(str, first["loc"][:1])])
        raise ValueError(f"{where}: {first['msg']}") from None


def _named(operation: Any) -> dict[str, Any]:
    """The operation as `_operation` reads it, its name included."""
    name = next(name for name, kind in OPERATIONS.items() if isinstance(operation, kind))
    return {name: asdict(operation)}


Operation = Annotated[
    Resize
    | CenterCrop
    | Grayscale
    | Darken
    | RandomCrop
    | RandomResizedCrop
    | Flip
    | RandomScaleCrop
    | ColorJitter,
    BeforeValidator(_operation),
    PlainSerializer(_named),
]
