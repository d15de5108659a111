"""What a method does before training: head, BN conversion, parameter groups, BN mode (Table 1)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from daft.batchnorm import BatchNormShift, batchnorm_layers, convert_batchnorm
from daft.config.schema import MethodConfig
from daft.networks.classifier import Classifier


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
        return any(parameter.requires_grad for parameter in self.model.backbone.parameters())


def prepare(
    method: MethodConfig,
    model: Classifier,
    *,
    probed_head: Mapping[str, Tensor] | None,
    batches: Iterable[Any],
) -> Prepared:
    """Set the head of a network, convert the BN layers of its backbone if the method does, group parameters.

    model: with a random head. probed_head: the head's state after the linear probe, where it starts from it.
    batches: the training batches for BN conversion; read if the method converts.
    """
    if method.head_init == "zero":
        for parameter in model.head.parameters():
            nn.init.zeros_(parameter)
    elif method.head_init == "probe":
        assert probed_head is not None
        model.head.load_state_dict(dict(probed_head))
    # After the head is set and before the first step (authors' order). A head's own BN layers have no
    # statistics to convert yet.
    shift = convert_batchnorm(model.backbone, batches) if method.bn_conversion else {}
    shift = {f"backbone.{name}": layer for name, layer in shift.items()}
    return Prepared(model, parameter_groups(model, method), shift)


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


def set_train_mode(model: Classifier, method: MethodConfig) -> None:
    """Train mode, with the backbone's BN layers in the method's mode: the one place that decides it.

    In test mode BN normalises with its running statistics and leaves them alone; γ and β still learn. A
    head's BN layers are always in train mode: their statistics are not pretrained.
    """
    model.train()
    if method.bn_mode == "test":
        for layer in batchnorm_layers(model.backbone).values():
            layer.eval()
