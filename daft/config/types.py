"""Types of configured values: what cannot be meant is refused, with what may be."""

import math
import os
from functools import partial
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, PlainValidator

from daft.common import names

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)

LOWEST_RATE, HIGHEST_RATE = 1e-12, 1e6
"""Of learning: below no weight in float32 moves, above nothing but divergence is certain."""

OF_COLOURS = ", of colours in [0, 1]; divide what is for [0, 255] by 255"


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number, not true or false")
    return value


def _within(value: float, low: float, high: float, note: str = "") -> float:
    if not low <= value <= high:
        raise ValueError(f"from {low:g} to {high:g}{note}")
    return value


def _auto_rate(value: Any) -> float | Literal["auto"]:
    if value == "auto":
        return "auto"
    try:
        rate = float(_number(value))
    except (TypeError, ValueError):
        raise ValueError(f"a rate from {LOWEST_RATE:g} to {HIGHEST_RATE:g}, or auto") from None
    return _within(rate, LOWEST_RATE, HIGHEST_RATE)


def _text(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be empty")
    if "\0" in value:
        raise ValueError("has a character that is in no file's name")
    return value


def _name(value: str) -> str:
    if not value.strip() or not value.isprintable():
        raise ValueError("a name has one line of characters that can be seen")
    return value


def _url(value: str) -> str:
    try:
        parts = urlsplit(value)
        host, _ = parts.hostname, parts.port
        valid = parts.scheme == "file" or (parts.scheme in ("http", "https") and host)
    except ValueError:
        valid = False
    if not valid:
        raise ValueError("write an address as in https://host/path/file.zip, or file:///path/file.zip")
    return value


def _inside(value: str) -> str:
    path = PurePosixPath(value.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise ValueError("leads outside of the root; name what is below it")
    return value


LARGEST = 2**16
"""Whole number among the arguments of a network."""


def _plain_data(value: Any) -> Any:
    items = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    for item in items:
        _plain_data(item)
    if isinstance(value, bytes) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"{value!r} is no finite number, text, list or mapping")
    if isinstance(value, int) and abs(value) > LARGEST:  # of layers, say, it would be built without end
        raise ValueError(f"{value:,} is above {LARGEST:,}")
    return value


PositiveInt = Annotated[int, Field(ge=1, lt=2**31, strict=True)]
NonNegativeInt = Annotated[int, Field(ge=0, lt=2**31, strict=True)]
Seed = Annotated[int, Field(ge=0, lt=2**31, strict=True)]
Epochs = Annotated[int, Field(ge=0, le=100_000, strict=True)]
BatchSize = Annotated[int, Field(ge=1, le=2**20, strict=True)]
Side = Annotated[int, Field(ge=1, le=2**16, strict=True)]
"""Of an image, in pixels."""
LeastSide = Annotated[Side, Field(ge=16)]
ResizedSide = Annotated[Side, Field(ge=2)]
"""torch resizes to no single pixel."""
Width = Annotated[int, Field(ge=1, le=2**14, strict=True)]
"""Of a layer."""
Cores = Annotated[int, Field(le=1024, strict=True)]
ByteCount = Annotated[int, Field(ge=1, lt=2**63, strict=True)]
Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
PositiveFloat = Annotated[Number, Field(gt=0)]
Fraction = Annotated[Number, Field(ge=0, le=1)]
Factor = Annotated[Number, Field(ge=0.01, le=100)]
"""Of a side, or of height and width."""
Mean = Annotated[Number, AfterValidator(partial(_within, low=0, high=1, note=OF_COLOURS))]
Std = Annotated[Number, AfterValidator(partial(_within, low=1e-3, high=10, note=OF_COLOURS))]
Rate = Annotated[Number, AfterValidator(partial(_within, low=LOWEST_RATE, high=HIGHEST_RATE))]
AutoRate = Annotated[float | Literal["auto"], PlainValidator(_auto_rate)]
"""Of a head: a number, or the one that fits the features (`daft.methods.head_rate`)."""
Grid = Annotated[list[Rate], Field(min_length=1)]
Text = Annotated[str, AfterValidator(_text)]
Name = Annotated[str, AfterValidator(_name)]
"""Of what stands in the names of files, and in tables."""
Folder = Annotated[Text, AfterValidator(os.path.expanduser)]
Inside = Annotated[Text, AfterValidator(_inside)]
"""Path below a root, which does not lead outside of it."""
Url = Annotated[str, AfterValidator(_url)]
Project = Annotated[str, AfterValidator(names.project)]
Entity = Annotated[str, AfterValidator(names.entity)]
"""Of W&B."""
PlainDict = Annotated[dict[str, Any], AfterValidator(_plain_data)]
"""Whatever a record can hold."""
Checksum = Annotated[str, Field(pattern=r"^(sha256:[0-9a-f]{64}|md5:[0-9a-f]{8,32})$")]
"""Algorithm and hex digest; of an md5 its first digits are enough, where no more is published."""
