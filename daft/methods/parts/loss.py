"""The loss of a step with all that parts add to it, from one forward pass."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from daft.batchnorm import batchnorm_layers
from daft.config.parts import FEATURES
from daft.methods.parts.part import Domains, Part, Step
from daft.networks.classifier import Classifier

TaskLoss = Callable[[Any, Any], dict[str, Tensor]]
"""Of a network and a batch: a dict with `loss` in it."""


class Loss:
    """A task's loss and what parts add to it; values to log are detached.

    Where parts compare domains, labelled and unlabelled images go through the backbone together, so that BN
    layers in train mode see both in one batch, and their running statistics are those of the mixture that the
    network is trained on; or one after the other, and running statistics are those of the labelled ones. The
    head sees the labelled ones alone.
    """

    def __init__(self, task_loss: TaskLoss, parts: Sequence[Part]) -> None:
        self.task_loss, self.parts, self.step = task_loss, parts, Step(0.0)

    def before_step(self, step: Step) -> None:
        """Take what the next loss needs to know."""
        self.step = step

    def __call__(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """`loss`, and with parts `task_loss` and what they log."""
        if not self.parts:
            return self.task_loss(model, batch)
        domains = None
        if (
            layers := {layer for part in self.parts for layer in part.layers}
        ) and self.step.unlabelled is not None:
            assert isinstance(model, Classifier)
            separate = any(part.separate for part in self.parts)
            joint = _Joint(model, self.step.unlabelled, layers, separate)
            terms = self.task_loss(joint, batch)
            domains = joint.domains
        else:
            terms = self.task_loss(model, batch)
        total, logged = terms["loss"], {"task_loss": terms["loss"].detach()}
        for part in self.parts:
            added = dict(part.loss(self.step, domains))
            if "loss" in added:
                total = total + added.pop("loss")
            logged |= added
        return {"loss": total, **logged} if len(logged) > 1 else terms


class _Joint:
    """A network that takes unlabelled images along, and keeps the features of both domains."""

    def __init__(self, model: Classifier, unlabelled: Tensor, layers: set[str], separate: bool) -> None:
        self.model, self.unlabelled, self.layers, self.separate = model, unlabelled, layers, separate

    def __call__(self, images: Tensor) -> Tensor:
        """Logits of the labelled images."""
        count = len(images)
        if self.separate:
            found = self._features(images)
            with _without_tracking(self.model.backbone):
                others = self._features(self.unlabelled)
        else:
            both = self._features(torch.cat([images, self.unlabelled]))
            found = {name: each[:count] for name, each in both.items()}
            others = {name: each[count:] for name, each in both.items()}
        labelled, unlabelled = ({name: _vectors(of[name]) for name in self.layers} for of in (found, others))
        self.domains = Domains(labelled, unlabelled)
        return self.model.head(found[FEATURES])

    def _features(self, images: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        with _recording(self.model.backbone.network, self.layers - {FEATURES}, found):
            found[FEATURES] = self.model.backbone(images)
        return found


@contextmanager
def _without_tracking(network: nn.Module) -> Iterator[None]:
    """Let BN layers in train mode normalise by the batch and leave their running statistics alone."""
    layers = [layer for layer in batchnorm_layers(network).values() if layer.track_running_stats]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True


def _vectors(features: Tensor) -> Tensor:
    """Features [B, D, …] as float32 vectors [B, D]: maps are averaged over the image."""
    return features.flatten(2).mean(2).float() if features.ndim > 2 else features.float()


@contextmanager
def _recording(network: nn.Module, layers: set[str], found: dict[str, Tensor]) -> Iterator[None]:
    """Keep the output of some modules of a network."""

    def keep(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: found.__setitem__(name, output)

    hooks = [network.get_submodule(name).register_forward_hook(keep(name)) for name in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
