"""DANN (Ganin et al. 2016): features from which a classifier cannot tell the domain that an image is of."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from daft.config.parts import FEATURES, DannConfig
from daft.methods.parts.part import Domains, Groups, Part, Step
from daft.networks.classifier import Classifier, make_head


class GradientReversal(torch.autograd.Function):
    """The identity, whose gradient is -λ times what comes back."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.scale * gradients[0], None


def adaptation(share: float) -> float:
    """λ at a share of training in [0, 1]: 2 / (1 + exp(-10 p)) - 1, from 0 towards 1."""
    return 2 / (1 + math.exp(-10 * share)) - 1


class Dann(Part):
    """Adds the loss of a classifier of domains behind a layer that reverses gradients by λ.

    The mean over the domains, each of which counts as much, however many images there are of it. The
    classifier learns with the head's rate or its own, and depends on the seed alone.
    """

    layers = (FEATURES,)

    def __init__(self, config: DannConfig) -> None:
        self.config, self.separate = config, config.batchnorm == "separate"

    def groups(self, model: Classifier, groups: Groups) -> Groups:
        width, device = model.backbone.num_features, model.backbone.mean.device
        self.module = make_head(width, self.config.hidden, 1).to(device)
        head = next(group["lr"] for group in groups if group["name"] == "head")
        rate = head if self.config.lr is None else self.config.lr
        parameters = [*self.module.parameters()]
        return [*groups, {"name": "domain", "params": parameters, "lr": rate, "initial_lr": rate}]

    def loss(self, step: Step, domains: Domains | None) -> Mapping[str, Tensor]:
        assert domains is not None
        assert self.module is not None
        scale = adaptation(step.share) if self.config.schedule == "ganin" else 1.0
        losses, right = [], []
        for features, target in ((domains.labelled[FEATURES], 0.0), (domains.unlabelled[FEATURES], 1.0)):
            logits = self.module(GradientReversal.apply(features, scale))[:, 0].float()
            losses.append(F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target)))
            right.append(((logits > 0) == bool(target)).float().mean())
        loss, accuracy = torch.stack(losses).mean(), 100 * torch.stack(right).mean()
        logged = {
            "domain_loss": loss.detach(),
            "domain_accuracy": accuracy,
            "domain_lambda": loss.new_tensor(scale),
        }
        return {"loss": self.config.weight * loss, **logged}
