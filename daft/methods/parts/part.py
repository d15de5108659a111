"""The seams that parts of a method plug into; the loop knows none of them by name."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from daft.networks.classifier import Classifier
from daft.networks.stages import Stage

Groups = list[dict[str, Any]]
"""Of parameters for the optimiser: `name`, `params`, `lr` and `initial_lr` each."""


@dataclass(frozen=True)
class Setting:
    """What is known before any work."""

    network: nn.Module
    """of the backbone"""
    trained: list[Stage]
    """its stages but for those that a part freezes for good"""
    epochs: int


@dataclass(frozen=True)
class Step:
    """One step of training, as what is added to a loss sees it."""

    share: float
    """of training that is done before it, in [0, 1)"""
    unlabelled: Tensor | None = None
    """images of the target domain, uint8 [B, 3, H, W], if the method sees any"""


@dataclass(frozen=True)
class Domains:
    """Features of the two halves of one forward pass, float32 [B, D] by layer."""

    labelled: Mapping[str, Tensor]
    unlabelled: Mapping[str, Tensor]


class Part:
    """What a part may add, before, during and after training; as it stands here it adds nothing."""

    by_stage: ClassVar[bool] = False
    """whether stages of the backbone are trained differently, so that a table of them says something"""
    module: nn.Module | None = None
    """what is trained beside the network, and is gone with the training"""
    layers: tuple[str, ...] = ()
    """whose features of labelled and unlabelled images `loss` is given, by name"""
    separate: bool = False
    """whether BN layers in train mode normalise each domain by its own statistics"""

    def require_fit(self, setting: Setting) -> None:
        """Raise ConfigError, before any work, unless it fits the network and the training."""

    def resting(self, network: nn.Module) -> list[Stage]:
        """The stages of a backbone's network that stay as they are from the start to the end of training."""
        return []

    def groups(self, model: Classifier, groups: Groups) -> Groups:
        """The groups that parameters are to learn in, instead of these; what is in none is not trained."""
        return groups

    def start(self, model: Classifier) -> None:
        """Called once, with the network as it is before the first step."""

    def before_epoch(self, epoch: int) -> None:
        """Called before each epoch (from 1), also where a run goes on within it."""

    def loss(self, step: Step, domains: Domains | None) -> Mapping[str, Tensor]:
        """What is added to the loss: `loss`, weighted, and values to log by name; empty for nothing."""
        return {}

    def after(
        self, model: Classifier, measure: Callable[[], Mapping[str, float]], selected_on: str
    ) -> dict[str, Any]:
        """Called with the trained network, which it may change; returns what the record says of it.

        measure: the metrics of the network as it is then, on every split. selected_on: the one to select by.
        """
        return {}

    def evaluations(self) -> Mapping[str, Callable[[nn.Module], AbstractContextManager[None]]]:
        """Other ways to evaluate a backbone, by what the names of splits then end with."""
        return {}
