"""How far fine-tuning moved the network: its features (Figure 1) and its weights (Eq. 6, Figure 2)."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from daft.batchnorm import BatchNormShift, batchnorm_layers

BINS = 200
"""of the histograms; pictures pool them where they are finer than need be"""


def feature_distortion(before: Tensor, after: Tensor) -> dict[str, dict[str, Any]]:
    """Cosine similarity and L2 distance per image between features [N, D] before and after.

    Each with mean, and a histogram: edges [BINS + 1] (cosine over its whole range [-1, 1], L2 from 0 to
    the largest) and counts [BINS].
    """
    before, after = before.float(), after.float()
    cosine = F.cosine_similarity(before, after).clamp(-1, 1)
    distance = (after - before).norm(dim=1)
    return {
        "cosine": _summary(cosine, -1.0, 1.0),
        "l2": _summary(distance, 0.0, float(distance.max()) or 1.0),
    }


def _summary(values: Tensor, low: float, high: float) -> dict[str, Any]:
    values = values.double().cpu()
    if not values.isfinite().all():
        return {"mean": math.nan, "edges": [], "counts": []}
    counts, edges = torch.histogram(values, BINS, range=(low, high))
    return {
        "mean": float(values.mean()),
        "edges": edges.tolist(),
        "counts": [int(c) for c in counts],
    }


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy, on the CPU, of all parameters and BN statistics."""
    return {key: value.detach().cpu().clone() for key, value in _tensors(model).items()}


def relative_change(before: Mapping[str, Tensor], model: nn.Module) -> list[dict[str, Any]]:
    """‖W̃ - W‖₂ / ‖W‖₂ of every parameter and BN statistic since the snapshot (Eq. 6).

    Rows of name, kind (weight, bias, bn_scale, bn_shift, bn_mean, bn_var) and value, in network order;
    the value is None where ‖W‖ = 0, as for a zero head.
    """
    kinds = _kinds(model)
    rows = []
    for name, tensor in _tensors(model).items():
        old = before[name].double()
        norm = float(old.norm())
        change = float((tensor.detach().cpu().double() - old).norm())
        rows.append({"name": name, "kind": kinds[name], "value": change / norm if norm else None})
    return rows


def shift_table(shift: Mapping[str, BatchNormShift]) -> list[dict[str, Any]]:
    """Per converted layer: how far the data's statistics are from the pretrained ones.

    mean_shift: root mean square over channels of (M_t - M_s) / √Σ_s, in source standard deviations.
    log2_std_ratio: mean over channels of log₂ √(Σ_t / Σ_s); both skip channels without variance.
    """
    rows = []
    for name, layer in shift.items():
        alive = (layer.source_var > 0) & (layer.target_var > 0)
        source_var, target_var = layer.source_var[alive].double(), layer.target_var[alive].double()
        moved = (layer.target_mean - layer.source_mean)[alive].double() / source_var.sqrt()
        rows.append(
            {
                "name": name,
                "batches": layer.batches,
                "mean_shift": float(moved.square().mean().sqrt()) if alive.any() else None,
                "log2_std_ratio": float((target_var / source_var).log2().mean() / 2) if alive.any() else None,
            }
        )
    return rows


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    for name, layer in batchnorm_layers(model).items():
        for key in ("running_mean", "running_var"):
            tensors[f"{name}.{key}"] = getattr(layer, key)
    return tensors


def _kinds(model: nn.Module) -> dict[str, str]:
    kinds = {n: n.rpartition(".")[2] for n, _ in model.named_parameters()}
    names = {
        "weight": "bn_scale",
        "bias": "bn_shift",
        "running_mean": "bn_mean",
        "running_var": "bn_var",
    }
    for layer in batchnorm_layers(model):
        kinds |= {f"{layer}.{key}": kind for key, kind in names.items()}
    return kinds
