"""Batch normalisation folded into the convolutions before it: the same test-mode function in fewer layers."""

from collections import Counter
from typing import Any

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.modules.conv import _ConvNd as Convolution
from torch.nn.utils import parametrize

from daft.batchnorm import batchnorm_layers

PLAIN = (nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward, Conv2dSame.forward)
"""What convolutions do that compute with their weight as it is; others standardise it first, say."""


def fold_batchnorm(model: nn.Module, images: Tensor) -> list[str]:
    """Fold BN layers in place, in test mode, and give the names of those that are gone.

    A layer is folded if its input is what one convolution gives, and nothing else reads that. This is seen
    in a forward pass.

    images: floats that the model takes, of any size; they must reach every layer.
    """
    model.eval()
    layers = batchnorm_layers(model)
    counts = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    folded = []
    for name, convolution in _pairs(model, layers, images).items():
        layer, parameters = layers[name], [*convolution.parameters(), *layers[name].parameters()]
        instead = _without_norm(layer)
        if instead is None or any(counts[id(p)] > 1 for p in parameters) or not _is_plain(convolution):
            continue
        _fold(convolution, layer)
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, instead)
        folded.append(name)
    return folded


@torch.no_grad()
def _fold(convolution: Convolution, layer: BatchNorm) -> None:
    """γ (W x + b - μ) / σ + β as one convolution; computed in float64, rounded once."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    zero = torch.zeros_like(layer.running_mean, dtype=torch.float64)
    gamma = zero + 1 if layer.weight is None else layer.weight.double()
    beta = zero if layer.bias is None else layer.bias.double()
    bias = zero if convolution.bias is None else convolution.bias.double()
    scale = gamma / (layer.running_var.double() + layer.eps).sqrt()
    weight, dtype = convolution.weight, convolution.weight.dtype
    weight.copy_(weight.double() * scale.view(-1, *[1] * (weight.ndim - 1)))
    convolution.bias = nn.Parameter((beta + scale * (bias - layer.running_mean.double())).to(dtype))


def _is_plain(convolution: Convolution) -> bool:
    return type(convolution).forward in PLAIN and not parametrize.is_parametrized(convolution)


def _without_norm(layer: BatchNorm) -> nn.Module | None:
    """What is left of a BN layer without its norm; None if that is not known, or it has no statistics."""
    if layer.running_mean is None:
        return None
    if type(layer) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm):
        return nn.Identity()
    if type(layer) is not BatchNormAct2d:
        return None
    after: list[Any] = [layer.drop, layer.act]
    return nn.Sequential(*after)


def _pairs(model: nn.Module, layers: dict[str, BatchNorm], images: Tensor) -> dict[str, Convolution]:
    """For the name of each BN layer the convolution that it alone reads; both are called once.

    Autograd's graph says who reads what: one edge leads to a node from each reader.
    """
    given: dict[Any, Convolution] = {}  # by the node that computes it
    read: dict[str, Any] = {}
    calls: Counter[nn.Module] = Counter()

    def after(module: Convolution, args: Any, output: Any) -> None:
        calls[module] += 1
        given[output.grad_fn] = module

    hooks = [m.register_forward_hook(after) for m in model.modules() if isinstance(m, Convolution)]
    for name, layer in layers.items():

        def before(module: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
            calls[module] += 1
            read[name] = args[0].grad_fn

        hooks.append(layer.register_forward_pre_hook(before))
    try:
        with torch.enable_grad():
            output = model(images.detach().requires_grad_())
    finally:
        for hook in hooks:
            hook.remove()
    readers = _readers(output.grad_fn)
    return {
        name: given[node]
        for name, node in read.items()
        if node in given and readers[node] == calls[given[node]] == calls[layers[name]] == 1
    }


def _readers(node: Any) -> Counter[Any]:
    """How many edges of autograd's graph lead to each node below this one."""
    edges: Counter[Any] = Counter()
    seen, left = {node}, [node]
    while left:
        for below, _ in left.pop().next_functions:
            if below is not None:
                edges[below] += 1
                if below not in seen:
                    seen.add(below)
                    left.append(below)
    return edges
