"""What a method does before training: head, BN conversion, parameter groups, BN mode (Table 1)."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from daft.backbones import FeatureExtractor
from daft.batchnorm import BatchNormShift, batchnorm_layers, convert_batchnorm
from daft.config import MethodConfig


class Classifier(nn.Module):
    """Logits [B, K] = head(backbone(images)): g_w(f_θ(x)) in the paper."""

    def __init__(self, backbone: FeatureExtractor, head: nn.Sequential) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> Tensor:
        """images: as `FeatureExtractor` takes them."""
        return self.head(self.backbone(images))


@dataclass(frozen=True)
class Prepared:
    """A network ready to be trained by a method."""

    model: Classifier
    groups: list[dict[str, Any]]
    """parameter groups for the optimiser; none if there is nothing to train"""
    shift: dict[str, BatchNormShift] = field(default_factory=dict)
    """what BN conversion found, per layer"""

    @property
    def trains_backbone(self) -> bool:
        """Whether training can move the features."""
        return any(group["name"] == "backbone" for group in self.groups)


def prepare(
    method: MethodConfig,
    backbone: FeatureExtractor,
    num_classes: int,
    *,
    probe: Callable[[], tuple[Tensor, Tensor]],
    batches: Iterable[Any],
) -> Prepared:
    """Give the backbone a head, convert its BN layers if the method does, and group its parameters.

    probe: yields the linear probe's weight [K, D] and bias [K]; called if the head starts from it.
    batches: the training batches for BN conversion; read if the method converts.
    """
    head = make_head(backbone.num_features, method.head_hidden, num_classes)
    if method.head_init == "zero":
        for parameter in head.parameters():
            nn.init.zeros_(parameter)
    elif method.head_init == "probe":
        linear = head[-1]
        assert isinstance(linear, nn.Linear)
        with torch.no_grad():
            for parameter, value in zip((linear.weight, linear.bias), probe(), strict=True):
                parameter.copy_(value)
    device = next(backbone.parameters()).device
    model = Classifier(backbone, head.to(device))
    # After the head is set and before the first step, on the whole network (authors' order).
    shift = convert_batchnorm(model, batches) if method.bn_conversion else {}
    return Prepared(model, parameter_groups(model, method), shift)


def make_head(num_features: int, hidden: Sequence[int], num_classes: int) -> nn.Sequential:
    """Linear layers with ReLUs between, in torch's default random initialisation."""
    widths = [num_features, *hidden, num_classes]
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        if i:
            layers[f"relu{i}"] = nn.ReLU()
        layers[f"linear{i + 1}"] = nn.Linear(inputs, outputs)
    return nn.Sequential(layers)


def parameter_groups(model: Classifier, method: MethodConfig) -> list[dict[str, Any]]:
    """Partition all parameters into groups with a learning rate (η_θ, η_w); freeze those without.

    Raises ValueError naming a parameter that no group covers.
    """
    rates = {
        "backbone": method.lr_backbone,
        "head": method.lr_backbone if method.rates == "tied" else method.lr_head,
    }
    members: dict[str, list[nn.Parameter]] = {name: [] for name in rates}
    for name, parameter in model.named_parameters():
        part = name.split(".")[0]
        if part not in members:
            raise ValueError(f"no learning rate covers parameter {name!r}")
        members[part].append(parameter)
        parameter.requires_grad_(rates[part] is not None)
    return [
        {"name": name, "params": members[name], "lr": rate, "initial_lr": rate}
        for name, rate in rates.items()
        if rate is not None
    ]


def set_train_mode(model: nn.Module, method: MethodConfig) -> None:
    """Train mode, with BN layers in the method's mode: the one place that decides it.

    In test mode BN normalises with its running statistics and leaves them alone; γ and β still learn.
    """
    model.train()
    if method.bn_mode == "test":
        for layer in batchnorm_layers(model).values():
            layer.eval()
