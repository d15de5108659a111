"""What a method does before training: head, BN conversion, parameter groups, BN mode (Table 1)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from daft.batchnorm import BatchNormShift, batchnorm_layers, convert_batchnorm
from daft.config.schema import MethodConfig
from daft.methods.parts.part import Groups, Part
from daft.networks.backbones import FeatureExtractor
from daft.networks.classifier import Classifier
from daft.networks.stages import resting_batchnorm, stages


@dataclass(frozen=True)
class Prepared:
    """A network ready to be trained by a method."""

    model: Classifier
    groups: Groups
    """parameter groups for the optimiser; none if there is nothing to train"""
    shift: dict[str, BatchNormShift] = field(default_factory=dict)
    """what BN conversion found, per layer"""
    parts: Sequence[Part] = ()
    """what is added to the method"""

    @property
    def stages(self) -> list[dict[str, Any]]:
        """For a table, where a part tells stages apart: each one's layers, and its rate; None is frozen."""
        if not any(part.by_stage for part in self.parts):
            return []
        rates = {id(p): group["initial_lr"] for group in self.groups for p in group["params"]}
        rows = [
            {
                "layers": stage.title,
                "parameters": sum(p.numel() for p in stage.parameters),
                "batchnorm": len(stage.batchnorm),
                "lr": rates.get(id(stage.parameters[0])),
            }
            for stage in stages(self.model.backbone.network)
        ]
        head = [*self.model.head.parameters()]
        count, layers = sum(p.numel() for p in head), len(batchnorm_layers(self.model.head))
        own = {"layers": "head", "parameters": count, "batchnorm": layers, "lr": rates.get(id(head[0]))}
        return [{"stage": i, **row} for i, row in enumerate([*rows, own], 1)]

    @property
    def modules(self) -> nn.ModuleDict:
        """What is trained beside the network."""
        own = {type(part).__name__: part.module for part in self.parts}
        return nn.ModuleDict({name: module for name, module in own.items() if module is not None})

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
    parts: Sequence[Part] = (),
) -> Prepared:
    """Set the head of a network, convert the BN layers of its backbone if the method does, group parameters.

    model: with a random head. probed_head: the head's state after the linear probe, where it starts from it.
    batches: the training batches for BN conversion; read if the method converts. parts: what is added to it.
    """
    if method.head_init == "zero":
        for parameter in model.head.parameters():
            nn.init.zeros_(parameter)
    elif method.head_init == "probe":
        assert probed_head is not None
        model.head.load_state_dict(dict(probed_head))
    # After the head is set and before the first step (authors' order). A head's own BN layers have no
    # statistics to convert yet.
    shift = {}
    if method.bn_conversion:
        resting = _resting_batchnorm(parts, model.backbone)
        shift = convert_batchnorm(model.backbone, batches, exclude=resting)
    shift = {f"backbone.{name}": layer for name, layer in shift.items()}
    return Prepared(model, parameter_groups(model, method, parts), shift, parts)


def _resting_batchnorm(parts: Sequence[Part], backbone: FeatureExtractor) -> list[str]:
    """The names of the BN layers in stages that stay as they are."""
    resting = [stage for part in parts for stage in part.resting(backbone.network)]
    return [f"network.{name}" for stage in resting for name in stage.batchnorm]


def parameter_groups(model: Classifier, method: MethodConfig, parts: Sequence[Part] = ()) -> Groups:
    """Partition all parameters into groups with a learning rate (η_θ, η_w); freeze those without.

    parts: may divide the groups, and leave parameters out. Raises ValueError naming a parameter that no group
    covers.
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
    groups: Groups = [
        {"name": name, "params": members[name], "lr": rate, "initial_lr": rate}
        for name, rate in rates.items()
        if rate is not None
    ]
    for part in parts:
        groups = part.groups(model, groups)
    trained = {id(parameter) for group in groups for parameter in group["params"]}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained)
    return groups


def set_train_mode(model: Classifier, method: MethodConfig) -> None:
    """Train mode, with the backbone's BN layers in the method's mode: the one place that decides it.

    In test mode BN normalises with its running statistics and leaves them alone; γ and β still learn. In
    stages of the backbone that are not trained it is always in test mode. A head's BN layers are always in
    train mode: their statistics are not pretrained.
    """
    model.train()
    fixed = batchnorm_layers(model.backbone).values() if method.bn_mode == "test" else ()
    for layer in fixed or resting_batchnorm(model.backbone.network):
        layer.eval()
