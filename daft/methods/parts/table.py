"""The parts by name; a new one is a file beside this, a key of `PartsConfig`, and a line here."""

from collections.abc import Callable
from typing import Any

from daft.config.parts import PartsConfig
from daft.methods.parts.coral import Coral
from daft.methods.parts.dann import Dann
from daft.methods.parts.freeze import Freeze
from daft.methods.parts.interpolate import Interpolate
from daft.methods.parts.l2_sp import L2SP
from daft.methods.parts.layer_decay import LayerDecay
from daft.methods.parts.part import Part
from daft.methods.parts.test_time import TestTime
from daft.methods.parts.unfreeze import Unfreeze

PARTS: dict[str, Callable[[Any], Part]] = {
    "layer_decay": LayerDecay,
    "freeze": Freeze,
    "unfreeze": Unfreeze,
    "l2_sp": L2SP,
    "coral": Coral,
    "dann": Dann,
    "interpolate": Interpolate,
    "test_time": TestTime,
}
"""Each from its configured value."""


def build(config: PartsConfig | None) -> list[Part]:
    """The parts of a method, in the order in which they are applied."""
    return [PARTS[name](getattr(config, name)) for name in config.given] if config else []
