"""Batch-norm conversion: fit every BN layer to new data without changing the network's function.

Algorithm 1 and Eq. 3-5 of Domain-Aware Fine-Tuning (Ha, Jeong, Lee, AAAI 2024). This file depends on
torch alone and can be copied as it is.
"""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

MAX_FLOAT32_TERMS = 2048
"""Values that are added up in float32 before float64 takes over (on the CPU)."""


@dataclass(frozen=True)
class BatchNormShift:
    """Statistics of one BN layer before (source) and after (target) conversion, each of shape [C]."""

    source_mean: Tensor
    source_var: Tensor
    target_mean: Tensor
    target_var: Tensor
    batches: int
    """Number of mini-batches averaged; a layer called twice per forward sees two per input batch."""


def batchnorm_layers(model: nn.Module) -> dict[str, BatchNorm]:
    """All batch-norm layers of a model, subclasses included, by qualified name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, BatchNorm)}


@torch.no_grad()
def convert_batchnorm(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    device: torch.device | str | None = None,
    exclude: Collection[str] = (),
) -> dict[str, BatchNormShift]:
    """Convert the BN layers in place to the statistics of `batches` (Algorithm 1).

    One test-mode pass in full precision measures the input of every BN layer. Eq. 3 then gives the
    layer's new running statistics M_t and Σ_t, and Eq. 5 the γ_t and β_t with which the test-mode
    function stays what it was.

    Args:
        model: any network with BN layers; a DistributedDataParallel wrapper is looked through.
        batches: yields input tensors or sequences whose first item is one (images, labels).
        device: where inputs are sent; default: where the model's parameters are.
        exclude: qualified names of BN layers that are neither measured nor changed.

    Returns:
        Per layer, by qualified name in forward order, its statistics before and after.

    Under an initialised torch.distributed each rank passes its own share of the batches, and all
    ranks end with the statistics of all of them.

    Raises:
        ValueError: naming the layer, if there is no BN layer, or none that `exclude` names, or one
            lacks running statistics or affine parameters, holds half-precision values, shares a
            parameter with another layer, was never reached, met a batch with one value per channel
            or other channels than its own, or measured NaN or Inf; or if there are no batches.
        TypeError: naming the type, if `batches` yields anything else.

    Whatever is raised, by the network or `batches` too, the model is then exactly as it was.
    """
    if isinstance(model, DistributedDataParallel):
        model = model.module
    layers = batchnorm_layers(model)
    if unknown := [name for name in exclude if name not in layers]:
        raise ValueError(f"the model has no BN layer {unknown[0]!r} to exclude")
    layers = {name: layer for name, layer in layers.items() if name not in exclude}
    _require_convertible(layers)
    device = torch.device(device) if device is not None else next(model.parameters()).device

    order: list[str] = []  # names in the order in which the forward pass first calls them
    moments = {name: _Moments(name, layer, order) for name, layer in layers.items()}
    count, failure = 0, None
    try:
        with _measuring(model, layers, moments), full_precision(device):
            for batch in batches:
                model(_inputs(batch, device))
                count += 1
    except Exception as error:
        if not _is_distributed():
            raise
        failure = error  # the other ranks wait in the reduction: fail there, together
    count = _reduce(moments.values(), count, failure)
    if count == 0:
        raise ValueError("no batches: BN conversion needs at least one mini-batch of target data")

    # Everything is computed and checked before anything is written.
    converted = {name: _converted(name, layers[name], moments[name]) for name in layers}
    for name, (shift, gamma, beta) in converted.items():
        layer = layers[name]
        assert layer.running_mean is not None
        assert layer.running_var is not None
        layer.running_mean.copy_(shift.target_mean)
        layer.running_var.copy_(shift.target_var)
        layer.weight.copy_(gamma)
        layer.bias.copy_(beta)
    # A layer that only other ranks reached comes last.
    return {name: converted[name][0] for name in dict.fromkeys([*order, *layers])}


class _Moments:
    """Sums, over the calls of one layer, of its input's mean and unbiased variance per channel."""

    def __init__(self, name: str, layer: BatchNorm, order: list[str]) -> None:
        self.name, self.order, self.calls = name, order, 0
        self.sums = torch.zeros(2, layer.num_features, dtype=torch.float64, device=layer.weight.device)

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        z: Tensor = args[0] if args else next(iter(kwargs.values()))
        channels = self.sums.shape[1]
        if z.ndim < 2 or z.shape[1] != channels:
            raise ValueError(
                f"BN layer {self.name!r} has {channels} channels but met a batch of shape {tuple(z.shape)}"
            )
        values = z.numel() // channels
        if values < 2:
            raise ValueError(
                f"BN layer {self.name!r} met a batch of shape {tuple(z.shape)}: {values} value(s) per "
                "channel, but a variance needs at least two; use larger batches or images"
            )
        self.sums += _mean_and_variance(z)
        if self.calls == 0:
            self.order.append(self.name)
        self.calls += 1


def _mean_and_variance(z: Tensor) -> Tensor:
    """Mean and unbiased variance of z [N, C, ...] per channel, [2, C] in float64 (Eq. 3, m = N*H*W)."""
    z = z if z.dtype == torch.float64 else z.float()
    if z.device.type != "cpu":
        variance, mean = torch.var_mean(z, [d for d in range(z.ndim) if d != 1], correction=1)
        return torch.stack([mean, variance]).double()
    # On the CPU `var_mean` takes ten times as long as the layer itself. torch's BN kernel is fast but adds
    # up all values of a channel in float32; so where they are many, columns or all positions become
    # channels of their own, put together in float64 (variance within plus variance between them).
    channels, values = z.shape[1], z.numel() // z.shape[1]
    last = z.movedim(1, -1)
    if last.is_contiguous():
        divisors = (1, z.shape[-1] if z.ndim > 2 else 1, values // len(z))
        positions = next((n for n in divisors if values <= n * MAX_FLOAT32_TERMS), divisors[-1])
        parts = torch.batch_norm_update_stats(last.reshape(-1, positions * channels), None, None, 0.0)
        means, variances = (part.double().view(positions, channels) for part in parts)
    else:
        parts = torch.batch_norm_update_stats(z.reshape(len(z), -1), None, None, 0.0)
        means, variances = (part.double().view(channels, -1).T for part in parts)
    mean = means.mean(0)
    variance = (variances + (means - mean).square()).mean(0) * (values / (values - 1))
    return torch.stack([mean, variance])


def _converted(name: str, layer: BatchNorm, moments: _Moments) -> tuple[BatchNormShift, Tensor, Tensor]:
    """Eq. 3 and 5 for one layer: its shift, γ_t and β_t, in the dtypes that the layer stores."""
    if moments.calls == 0:
        raise ValueError(f"BN layer {name!r} was never reached by the data; nothing was converted")
    assert layer.running_mean is not None
    assert layer.running_var is not None
    source_mean, source_var = layer.running_mean.clone(), layer.running_var.clone()
    target_mean, target_var = (moments.sums / moments.calls).to(source_mean.dtype)
    # γ_t and β_t from the statistics as stored, so that rounding them does not move the function.
    source_std = (source_var.double() + layer.eps).sqrt()
    target_std = (target_var.double() + layer.eps).sqrt()
    scale = layer.weight.double() / source_std
    gamma = (scale * target_std).to(layer.weight.dtype)
    beta = layer.bias.double() + scale * (target_mean.double() - source_mean.double())
    beta = beta.to(layer.bias.dtype)
    for what, value in [
        ("target mean", target_mean),
        ("target variance", target_var),
        ("converted weight", gamma),
        ("converted bias", beta),
    ]:
        if not value.isfinite().all():
            raise ValueError(
                f"BN layer {name!r}: {what} has NaN or Inf in "
                f"{int((~value.isfinite()).sum())} of {value.numel()} channels"
            )
    return (
        BatchNormShift(source_mean, source_var, target_mean, target_var, moments.calls),
        gamma,
        beta,
    )


def _require_convertible(layers: dict[str, BatchNorm]) -> None:
    if not layers:
        raise ValueError("the model has no batch-norm layer to convert")
    owners: dict[int, str] = {}
    for name, layer in layers.items():
        if layer.weight is None or layer.bias is None:
            raise ValueError(f"BN layer {name!r} has no affine parameters (affine=False or bias=False)")
        if is_lazy(layer.weight):
            raise ValueError(f"BN layer {name!r} is lazy and uninitialised: run the model once first")
        if layer.running_mean is None or layer.running_var is None:
            raise ValueError(f"BN layer {name!r} has no running statistics (track_running_stats=False)")
        for key in ("weight", "bias", "running_mean", "running_var"):
            tensor = getattr(layer, key)
            if tensor.dtype not in (torch.float32, torch.float64):
                raise ValueError(
                    f"BN layer {name!r} holds {key} in {tensor.dtype}: convert the layer to "
                    "torch.float32 first (a half-precision variance is not a variance)"
                )
            owner = owners.setdefault(id(tensor), name)
            if owner != name:
                raise ValueError(f"BN layers {owner!r} and {name!r} share their {key}")


@contextmanager
def _measuring(
    model: nn.Module, layers: dict[str, BatchNorm], moments: dict[str, _Moments]
) -> Iterator[None]:
    """Test mode with a measuring hook on every BN layer; leaves flags and hooks as found."""
    training = {module: module.training for module in model.modules()}
    # Pre-hooks, because subclasses (norm + activation) do more in `forward` than normalise.
    hooks = [
        layer.register_forward_pre_hook(moments[name], with_kwargs=True) for name, layer in layers.items()
    ]
    try:
        model.eval()
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module, flag in training.items():
            module.training = flag


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Float32 as it is: autocast off, and no TF32 or bfloat16 inside products and convolutions."""
    backends = (
        torch.backends.cuda.matmul,
        torch.backends.cudnn.conv,  # pyrefly: ignore[missing-attribute]
        torch.backends.mkldnn.matmul,  # pyrefly: ignore[missing-attribute]
        torch.backends.mkldnn.conv,  # pyrefly: ignore[missing-attribute]
    )
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.autocast("cpu", enabled=False), torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def _inputs(batch: Any, device: torch.device) -> Tensor:
    images = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(images, Tensor):
        first = "" if images is batch else f" that starts with {type(images).__name__}"
        raise TypeError(
            "batches must yield tensors, or tuples or lists that start with one, "
            f"not {type(batch).__name__}{first}"
        )
    # A non-blocking copy to the CPU could be read before it has arrived.
    images = images.to(device, non_blocking=device.type != "cpu")
    return images.float() if images.dtype in (torch.float16, torch.bfloat16) else images


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _reduce(moments: Iterable[_Moments], count: int, failure: Exception | None) -> int:
    """Add up the moments of all ranks in place; returns the number of batches of all of them."""
    if not _is_distributed():
        return count
    moments = list(moments)
    device = moments[0].sums.device
    counts = [float(failure is not None), float(count), *(float(m.calls) for m in moments)]
    packed = torch.cat(
        [
            torch.tensor(counts, dtype=torch.float64, device=device),
            *(m.sums.flatten() for m in moments),
        ]
    )
    dist.all_reduce(packed)
    failed, count, *calls = (int(c) for c in packed[: len(counts)])
    if failed:
        raise failure or RuntimeError(f"BN conversion failed on {failed} other rank(s)")
    sums = packed[len(counts) :].split([m.sums.numel() for m in moments])
    for m, m_calls, m_sums in zip(moments, calls, sums, strict=True):
        m.calls, m.sums = m_calls, m_sums.view_as(m.sums)
    return count
