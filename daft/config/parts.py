"""The named parts that a method can have beside the fields of Table 1: each once at most, in any mixture."""

from collections.abc import Mapping
from dataclasses import field, fields
from typing import Annotated, Any, Literal

from pydantic import Field, model_serializer
from pydantic.dataclasses import dataclass

from daft.common.errors import ConfigError
from daft.config.types import STRICT, Fraction, PositiveFloat, PositiveInt, Rate, Text, Width

TARGET_BN = " (target BN)"
"""End of the names of splits that were evaluated with the BN statistics of the evaluated batches."""

FEATURES = "features"
"""The name of the backbone's output, where layers are named."""

Domains = Literal["joint", "separate"]
"""What BN layers in train mode normalise by: both domains as one batch; or each by its own statistics, where
running ones are those of labelled images."""

Decay = Annotated[PositiveFloat, Field(le=1)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class UnfreezeConfig:
    """Gradual unfreezing from the top (Howard and Ruder 2018): first the head alone, then a stage more."""

    epochs_per_stage: PositiveInt = 1


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CoralConfig:
    """Deep CORAL (Sun and Saenko 2016): equal covariances of labelled and unlabelled features."""

    weight: PositiveFloat = 1.0
    """of the mean over the layers"""
    layers: list[Text] = Field(default_factory=lambda: [FEATURES], min_length=1)
    """modules of the network, by name, or `features`, its output; maps are averaged over the image"""
    batchnorm: Domains = "joint"

    def __post_init__(self) -> None:
        if len(set(self.layers)) < len(self.layers):
            raise ConfigError("layers", f"{self.layers} names a layer twice")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DannConfig:
    """Domain-adversarial training (Ganin et al. 2016): features that do not tell the domain."""

    weight: PositiveFloat = 1.0
    """of the domain classifier's loss"""
    schedule: Literal["ganin", "constant"] = "ganin"
    """of λ: 2 / (1 + exp(-10 p)) - 1 at the share p of training, as published; or 1 throughout"""
    hidden: list[Width] = field(default_factory=lambda: [1024, 1024])
    """widths of the domain classifier's hidden layers"""
    lr: Rate | None = None
    """of the domain classifier; null: the head's"""
    batchnorm: Domains = "joint"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PartsConfig:
    """What is added to a method, in the order in which it is applied; null: not this part."""

    layer_decay: Decay | None = None
    """γ of layer-wise rates: stage l of L, the head being the last, learns at its rate times γ^(L - l)"""
    freeze: PositiveInt | None = None
    """the first so many stages, from the stem up, stay as they are"""
    unfreeze: UnfreezeConfig | None = None
    l2_sp: PositiveFloat | None = None
    """α of α/2 ‖θ - θ₀‖², which holds the backbone to its weights at the start (Li et al. 2018)"""
    coral: CoralConfig | None = None
    dann: DannConfig | None = None
    interpolate: Annotated[list[Fraction], Field(min_length=1)] | None = None
    """shares of the way from the network at the start to the trained one, of which ID images choose
    (WiSE-FT, Wortsman et al. 2022)"""
    test_time: Literal["bn"] | None = None
    """bn: evaluation also with the BN statistics of the evaluated batches, in columns of its own"""

    def __post_init__(self) -> None:
        if self.interpolate and len(set(self.interpolate)) < len(self.interpolate):
            raise ConfigError("interpolate", f"{self.interpolate} names a share twice")
        if self.coral and self.dann and self.coral.batchnorm != self.dann.batchnorm:
            raise ConfigError("dann.batchnorm", f"{self.dann.batchnorm}, but {self.coral.batchnorm} of coral")

    @property
    def given(self) -> list[str]:
        """The parts that are there, in the order in which they are applied."""
        return [f.name for f in fields(self) if getattr(self, f.name) is not None]

    @model_serializer
    def _given_ones(self) -> dict[str, Any]:
        """Without those that are not there: a record knows nothing of parts that came after it."""
        return {name: getattr(self, name) for name in self.given}


ADAPTING = ("coral", "dann")
"""Parts that see unlabelled images of a target domain in training."""

FOR_TRAINED_BACKBONES = ("layer_decay", "freeze", "unfreeze", "l2_sp", *ADAPTING, "interpolate")
"""Parts that mean nothing where the backbone is not trained."""


def short_name(name: str, parts: Mapping[str, Any] | None) -> str:
    """A method's name with those of its parts: `daft+coral`."""
    return "+".join([name, *(parts or {})])


def target_mark(name: str) -> str:
    """What every table adds to the name of a method, with those of its parts, that saw target images."""
    return " (target images)" if {*ADAPTING} & {*name.split("+")[1:]} else ""
