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

HELD_CALLS = 32
"""Calls of a layer whose statistics are added up at once (on a GPU, where each addition is a launch)."""


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
        for each in moments.values():
            each.add_held()
    except Exception as error:
        if not _is_distributed():
            raise
        failure = error  # the other ranks wait in the reduction: fail there, together
    count = _reduce(moments.values(), count, failure)
    if count == 0:
        raise ValueError("no batches: BN conversion needs at least one mini-batch of target data")

    # Everything is computed and checked before anything is written.
    converted = _converted(layers, moments)
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
        device = layer.weight.device
        self.sums = torch.zeros(2, layer.num_features, dtype=torch.float64, device=device)
        self.mean, self.variance = self.sums.unbind()  # views of the sums
        self.held: list[tuple[Tensor, Tensor, float]] = []  # mean, biased variance, and m / (m - 1)
        self.holds = device.type != "cpu"

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
        mean, variance = _mean_and_variance(z)
        unbiased = values / (values - 1)
        if self.holds:
            self.held.append((mean, variance, unbiased))
            if len(self.held) == HELD_CALLS:
                self.add_held()
        else:
            self.mean += mean
            self.variance += variance.double() * unbiased
        if self.calls == 0:
            self.order.append(self.name)
        self.calls += 1

    def add_held(self) -> None:
        """Add the statistics that are held to the sums."""
        if self.held:
            means, variances, corrections = zip(*self.held, strict=True)
            self.held.clear()
            unbiased = torch.tensor(corrections, dtype=torch.float64, device=self.sums.device)[:, None]
            self.mean += torch.stack(means).double().sum(0)
            self.variance += (torch.stack(variances).double() * unbiased).sum(0)


def _mean_and_variance(z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of z [N, C, ...] per channel, each [C] (Eq. 3, m = N*H*W)."""
    z = z if z.dtype == torch.float64 else z.float()
    if z.device.type == "cuda" and z.ndim == 4 and z.is_contiguous(memory_format=torch.channels_last):
        return torch.batch_norm_update_stats(z, None, None, 0.0)  # takes a third of the time of `var_mean`
    if z.device.type != "cpu":
        variance, mean = torch.var_mean(z, [d for d in range(z.ndim) if d != 1], correction=0)
        return mean, variance
    # On the CPU `var_mean` takes ten times as long as the layer itself. torch's BN kernel is fast but adds
    # up all values of a channel in float32; so where they are many, columns or all positions become
    # channels of their own, put together in float64 (variance within plus variance between them).
    channels, values = z.shape[1], z.numel() // z.shape[1]
    last = z.movedim(1, -1)
    if last.is_contiguous():
        divisors = (1, z.shape[-1] if z.ndim > 2 else 1, values // len(z))
        positions = next((n for n in divisors if values <= n * MAX_FLOAT32_TERMS), divisors[-1])
        parts = torch.batch_norm_update_stats(last.reshape(-1, positions * channels), None, None, 0.0)
        if positions == 1:  # nothing to put together, and for a thin layer that takes as long as measuring it
            return parts
        means, variances = (part.double().view(positions, channels) for part in parts)
    else:
        parts = torch.batch_norm_update_stats(z.reshape(len(z), -1), None, None, 0.0)
        means, variances = (part.double().view(channels, -1).T for part in parts)
    mean = means.mean(0)
    return mean, (variances + (means - mean).square()).mean(0)


def _converted(
    layers: dict[str, BatchNorm], moments: dict[str, _Moments]
) -> dict[str, tuple[BatchNormShift, Tensor, Tensor]]:
    """Eq. 3 and 5: each layer's shift, γ_t and β_t, in the dtypes that the layer stores."""
    alike: dict[Any, list[str]] = {}
    for name, layer in layers.items():
        if moments[name].calls == 0:
            raise ValueError(f"BN layer {name!r} was never reached by the data; nothing was converted")
        tensors = (layer.running_mean, layer.running_var, layer.weight, layer.bias)
        alike.setdefault(tuple((t.device, t.dtype) for t in tensors if t is not None), []).append(name)
    # Side by side, layers take a handful of operations, not a handful each: on a GPU each is a launch.
    found = [_converted_alike({name: layers[name] for name in names}, moments) for names in alike.values()]
    return {name: each for group in found for name, each in group.items()}


def _converted_alike(
    layers: dict[str, BatchNorm], moments: dict[str, _Moments]
) -> dict[str, tuple[BatchNormShift, Tensor, Tensor]]:
    """`_converted` of layers with the same devices and dtypes."""
    gamma, beta, source_mean, source_var = (
        torch.cat([getattr(layer, key) for layer in layers.values()])
        for key in ("weight", "bias", "running_mean", "running_var")
    )
    averages = torch.cat([moments[name].sums / moments[name].calls for name in layers], dim=1)
    target_mean, target_var = averages[0].to(source_mean.dtype), averages[1].to(source_var.dtype)
    # γ_t and β_t from the statistics as stored, so that rounding them does not move the function.
    eps = torch.cat([torch.full_like(each.weight, each.eps, dtype=torch.float64) for each in layers.values()])
    scale = gamma.double() / (source_var.double() + eps).sqrt()
    shifted = beta.double() + scale * (target_mean.double() - source_mean.double())
    values = {
        "source mean": source_mean,
        "source variance": source_var,
        "target mean": target_mean,
        "target variance": target_var,
        "converted weight": (scale * (target_var.double() + eps).sqrt()).to(gamma.dtype),
        "converted bias": shifted.to(beta.dtype),
    }
    finite = bool(torch.stack([value.isfinite().all() for value in values.values()]).all())
    sizes = [layer.num_features for layer in layers.values()]
    result = {}
    for name, *parts in zip(layers, *(value.split(sizes) for value in values.values()), strict=True):
        if not finite:
            _require_finite(name, dict(zip(values, parts, strict=True)))
        mean_s, var_s, mean_t, var_t, weight, bias = parts
        result[name] = (BatchNormShift(mean_s, var_s, mean_t, var_t, moments[name].calls), weight, bias)
    return result


def _require_finite(layer: str, values: dict[str, Tensor]) -> None:
    for what, value in values.items():
        if wrong := int((~value.isfinite()).sum()):
            where = f"{wrong} of {value.numel()} channels"
            raise ValueError(f"BN layer {layer!r}: {what} has NaN or Inf in {where}")


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
