"""MAML: weights from which a few steps on an episode's support lead to a good classifier (Finn et al. 2017).

BN layers that the method keeps in test mode normalise by their running statistics. Those that it trains in
train mode normalise by images of the episode, in training and in evaluation alike: running statistics are of
no adapted network. With `support` they are those of the support, in its own pass and in that of the queries,
so that the answer to one query does not depend on others; gradients go through them. With `transductive` each
pass has its own, as in the authors' code. Running statistics, which nothing here normalises by, follow the
support before it is adapted to, for whatever uses the features later.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from daft.batchnorm import BatchNorm
from daft.config.schema import MamlConfig

Weights = dict[str, Tensor]
"""Of a network, by qualified name."""


class Learner:
    """A network that is adapted to episodes, and itself stays as it is."""

    def __init__(self, model: nn.Module, cfg: MamlConfig, layers: Mapping[str, BatchNorm]) -> None:
        """layers: of BN, by qualified name, that normalise by images of the episode."""
        self.model, self.cfg, self.layers = model, cfg, layers
        # In test mode a layer with these leaves what a hook has normalised as it is, but for γ and β.
        neutral = {"running_mean": torch.zeros_like, "running_var": torch.ones_like}
        self.neutral = {
            f"{name}.{key}": make(getattr(layer, key))
            for name, layer in layers.items()
            for key, make in neutral.items()
        }

    def query_logits(self, support: Tensor, labels: Tensor, query: Tensor, *, meta: bool) -> Tensor:
        """Logits [Q, ways] of the queries after adaptation to the support, whose labels [S] are ways.

        meta: whether a meta-gradient is wanted, of first or second order; then the running statistics follow.
        """
        weights: Weights = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        through = meta and self.cfg.order == "second"
        for step in range(self.cfg.steps):
            with torch.enable_grad():
                logits = self._logits(weights, support, follow=meta and step == 0)
                loss = F.cross_entropy(logits, labels)
                gradients = torch.autograd.grad(
                    loss, [*weights.values()], create_graph=through, allow_unused=True
                )
                weights = {
                    name: weight if gradient is None else weight - self.cfg.lr * gradient
                    for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
                }
            if not meta:
                weights = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
        if self.layers and self.cfg.statistics == "support":
            of_both = self._logits(weights, torch.cat([support, query]), rows=len(support))
            return of_both[len(support) :]
        return self._logits(weights, query)

    def _logits(
        self, weights: Weights, images: Tensor, *, rows: int | None = None, follow: bool = False
    ) -> Tensor:
        """In float32 or above; the episode's BN layers normalise by the first `rows` images, or by all."""
        with ExitStack() as stack:
            for layer in self.layers.values():
                stack.enter_context(_normalised_by(layer, rows, follow))
            logits: Tensor = functional_call(self.model, weights | self.neutral, (images,))
        return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


@contextmanager
def _normalised_by(layer: BatchNorm, rows: int | None, follow: bool) -> Iterator[None]:
    """Normalise the input of a layer by the statistics of its first rows; the layer itself in test mode.

    follow: whether its own running statistics, which are not used meanwhile, take these in.
    """
    own = dict(layer.named_buffers(recurse=False)) if follow else None
    hook, mode = layer.register_forward_pre_hook(partial(_normalise, rows=rows, own=own)), layer.training
    layer.eval()
    try:
        yield
    finally:
        hook.remove()
        layer.train(mode)


def _normalise(layer: Any, inputs: tuple[Tensor], *, rows: int | None, own: Weights | None) -> Tensor:
    x = inputs[0].float() if inputs[0].dtype in (torch.float16, torch.bfloat16) else inputs[0]
    dims = [0, *range(2, x.ndim)]
    var, mean = torch.var_mean(x[:rows], dims, correction=0, keepdim=True)
    if own is not None:
        values = x[:rows].numel() // x.shape[1]
        _follow(layer, own, mean.flatten(), var.flatten() * values / max(values - 1, 1))
    # The layer divides by √(1 + ε) after this.
    return (x - mean) * ((1 + layer.eps) / (var + layer.eps)).sqrt()


@torch.no_grad()
def _follow(layer: BatchNorm, own: Weights, mean: Tensor, var: Tensor) -> None:
    """As torch's layers in train mode follow their batches."""
    own["num_batches_tracked"] += 1
    momentum = 1 / float(own["num_batches_tracked"]) if layer.momentum is None else layer.momentum
    own["running_mean"].lerp_(mean.detach(), momentum)
    own["running_var"].lerp_(var.detach(), momentum)
