"""The stages of a network, from its stem up: what layer-wise rates, freezing and unfreezing count in."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import cast

from timm.models import group_parameters
from torch import nn

from daft.batchnorm import BatchNorm, batchnorm_layers


@dataclass(frozen=True)
class Stage:
    """Some of a network's layers, BN layers with the layers that they follow."""

    title: str
    """the module that it is, or the first and the last of several"""
    parameters: list[nn.Parameter]
    batchnorm: dict[str, BatchNorm]
    """its BN layers, by qualified name"""

    @property
    def is_trained(self) -> bool:
        """Whether any of its parameters is."""
        return any(parameter.requires_grad for parameter in self.parameters)


def stages(network: nn.Module) -> list[Stage]:
    """All parameters and BN layers of a network, each in one stage, from the stem up.

    timm's networks say themselves which layers make a stage (`group_matcher`). Of others each module at the
    top is one; a BN layer there belongs to the module before it, a module that holds nothing but one other is
    looked into, and so is a sequence of sequences.
    """
    number = _by_timm(network) if hasattr(network, "group_matcher") else _by_modules(network)
    names: dict[int, dict[str, list[nn.Parameter]]] = {}
    last = min(number.values(), default=0)
    found: dict[int, dict[str, BatchNorm]] = {}
    layers = batchnorm_layers(network)
    for name, module in network.named_modules():
        own = dict(module.named_parameters(prefix=name, recurse=False))
        for parameter_name, parameter in own.items():
            if parameter_name not in number:  # a second name of one that is shared
                continue
            last = number[parameter_name]
            names.setdefault(last, {}).setdefault(name or parameter_name, []).append(parameter)
        if name in layers:  # one without parameters comes after some that have
            found.setdefault(last, {})[name] = layers[name]
    return [
        Stage(_title(i, names), [p for of in modules.values() for p in of], found.get(i, {}))
        for i, modules in sorted(names.items())
    ]


def _title(number: int, names: Mapping[int, Iterable[str]]) -> str:
    """What all modules of a stage are in, if no other stage has any there; else the first and the last."""
    own = [*names[number]]
    levels = zip(*(name.split(".") for name in own), strict=False)
    common = ".".join(level[0] for level in takewhile(lambda level: len({*level}) == 1, levels))
    others = [name for i, of in names.items() if i != number for name in of]
    if common and not any(f"{name}.".startswith(f"{common}.") for name in others):
        return common
    return f"{own[0]} … {own[-1]}"


def resting_batchnorm(network: nn.Module) -> list[BatchNorm]:
    """The BN layers of stages without a parameter that is trained: they stay as they are."""
    if all(parameter.requires_grad for parameter in network.parameters()):
        return []
    return [layer for s in stages(network) if not s.is_trained for layer in s.batchnorm.values()]


def _by_timm(network: nn.Module) -> dict[str, int]:
    matcher = getattr(network, "group_matcher")(coarse=True)  # noqa: B009 (no attribute of nn.Module)
    return cast(dict[str, int], group_parameters(network, matcher, reverse=True))


def _by_modules(network: nn.Module) -> dict[str, int]:
    number, count = dict.fromkeys((name for name, _ in network.named_parameters(recurse=False)), 0), 0
    for name, module in _top(network):
        if not any(True for _ in module.parameters()):
            continue
        count += not (isinstance(module, BatchNorm) and count)
        number |= {f"{name}.{inner}": count - 1 for inner, _ in module.named_parameters()}
    return number


def _top(network: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The modules at the top, by qualified name."""
    children = {f"{prefix}{name}": child for name, child in network.named_children()}
    learning = {n: child for n, child in children.items() if any(True for _ in child.parameters())}
    own = any(True for _ in network.parameters(recurse=False))
    if len(learning) == 1 and not own:
        ((name, child),) = learning.items()
        if any(True for _ in child.children()):
            yield from _top(child, f"{name}.")
            return
    for name, child in children.items():
        inner = dict(child.named_children())
        if (
            isinstance(child, nn.Sequential)
            and inner
            and all(isinstance(each, nn.Sequential) for each in inner.values())
        ):
            yield from ((f"{name}.{number}", each) for number, each in inner.items())
        else:
            yield name, child
