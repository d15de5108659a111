"""What a transform may consist of: operations on images, and the types that configurations share."""

import os
from dataclasses import asdict, fields
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    TypeAdapter,
    ValidationError,
)
from pydantic.dataclasses import dataclass

from daft.common.errors import ConfigError

STRICT = ConfigDict(extra="forbid")

PositiveInt = Annotated[int, Field(ge=1, strict=True)]
NonNegativeInt = Annotated[int, Field(ge=0, strict=True)]
Seed = Annotated[int, Field(ge=0, lt=2**31, strict=True)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Grid = Annotated[list[PositiveFloat], Field(min_length=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Folder = Annotated[str, AfterValidator(os.path.expanduser)]
Checksum = Annotated[str, Field(pattern=r"^(sha256:[0-9a-f]{64}|md5:[0-9a-f]{8,32})$")]
"""Algorithm and hex digest; of an md5 its first digits are enough, where no more is published."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Resize:
    """Shorter side (or height and width) to `size` pixels, antialiased."""

    size: PositiveInt | tuple[PositiveInt, PositiveInt]
    interpolation: Literal["bilinear", "bicubic", "nearest"] = "bilinear"
    random = False


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CenterCrop:
    """Central square of `size` pixels."""

    size: PositiveInt
    random = False


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Grayscale:
    """Luma in all three channels."""

    random = False


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Darken:
    """Pixel values times 1 - share; at 0 the image itself."""

    share: Annotated[float, Field(ge=0, lt=1)]
    random = False


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RandomCrop:
    """Square of `size` pixels at a uniform position."""

    size: PositiveInt
    random = True


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RandomResizedCrop:
    """Box of random area (fraction of the image) and aspect ratio, resized to `size` pixels."""

    size: PositiveInt
    scale: tuple[Fraction, Fraction] = (0.08, 1.0)
    ratio: tuple[PositiveFloat, PositiveFloat] = (3 / 4, 4 / 3)
    random = True

    def __post_init__(self) -> None:
        if not self.scale[0] <= self.scale[1]:
            raise ConfigError("scale", f"{self.scale} must rise")
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

    size: PositiveInt
    scale: tuple[PositiveFloat, PositiveFloat] = (0.5, 2.0)
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
        first = error.errors()[0]
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
