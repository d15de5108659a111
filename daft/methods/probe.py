"""Linear probe: l2-regularised multinomial logistic regression over a path of C.

For each C the probe minimises ½‖W‖² + C·Σᵢ lossᵢ, with lossᵢ the softmax cross-entropy of sample i
and the bias unpenalised, over features shifted and scaled by one global mean and standard deviation
of the training features: the protocol of LP-FT (Kumar et al., 2022, "Fine-Tuning can Distort
Pretrained Features and Underperform Out-of-Distribution").

The solver is L-BFGS preconditioned by a Kronecker-factored Hessian, I + C·S ⊗ A, where S is the
scatter of the features and A the mean over samples of diag(p) - ppᵀ. Each C starts from the last
three solutions, extrapolated in log C. An iteration is two products with the features in float32;
the softmax between them is float64, as float32 cannot resolve how far from 1 a confident p is.
"""

# ruff: noqa: N803, N806 (C is the name of this quantity everywhere, scikit-learn included)

import json
import math
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pydantic import BaseModel
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

from daft.batchnorm import full_precision
from daft.common.files import cached

DEFAULT_PATH: tuple[float, ...] = tuple(10.0 ** (-7 + 9 * i / 49) for i in range(50))

_MEMORY = 10  # pairs of (step, gradient change) L-BFGS keeps
_SMALLEST_STEP = 1e-6  # fraction of a step below which only rounding is left to gain


@dataclass(frozen=True)
class PathPoint:
    """The solution at one C: its objective, accuracy (percent, selection set) and solver state."""

    C: float
    objective: float
    accuracy: float
    iterations: int
    converged: bool


class _Report(BaseModel):
    """All of a probe but its weights."""

    C: float
    accuracy: float
    path: tuple[PathPoint, ...]


@dataclass(frozen=True)
class Probe:
    """A linear head, logits = features @ weight.T + bias, and the path it was chosen from.

    weight is [num_classes, D] and bias [num_classes], float32; accuracy is in percent on the
    selection set; rows of classes absent from training are zero. The other rows sum to zero, so on
    any sample the best of them is positive and an absent class is never predicted.
    """

    weight: Tensor
    bias: Tensor
    C: float
    accuracy: float
    path: tuple[PathPoint, ...]

    def report(self) -> dict[str, Any]:
        """The chosen C, its accuracy, and every point of the path, as plain data."""
        return {key: value for key, value in asdict(self).items() if key not in ("weight", "bias")}


def cached_probe(file: Path, solve: Callable[[], Probe], num_classes: int, num_features: int) -> Probe:
    """The probe that a safetensors file holds, on the CPU; it is solved and written if it is not there."""

    def content() -> bytes:
        solved = solve()
        tensors = {"weight": solved.weight.cpu(), "bias": solved.bias.cpu()}
        return safetensors.torch.save(tensors, {"report": json.dumps(solved.report())})

    def kept(path: Path) -> Probe:
        with safe_open(path, "pt") as opened:
            weight, bias = opened.get_tensor("weight"), opened.get_tensor("bias")
            report = json.loads(opened.metadata()["report"])
        if (weight.shape, bias.shape) != ((num_classes, num_features), (num_classes,)):
            raise ValueError(f"{list(weight.shape)} weights for {num_classes} x {num_features}")
        if not (weight.isfinite().all() and bias.isfinite().all()):
            raise ValueError("its weights are not finite")
        return Probe(weight, bias, **dict(_Report.model_validate(report)))

    return cached(file, content, kept)


@torch.no_grad()
def fit_probe(
    features: Tensor,
    labels: Tensor,
    id_features: Tensor,
    id_labels: Tensor,
    *,
    num_classes: int,
    path: Sequence[float] = DEFAULT_PATH,
    max_iterations: int = 200,
    tolerance: float = 1e-7,
) -> Probe:
    """Fit the probe at every C, on the features' device, and keep the most accurate on ID.

    features [N, D] and labels [N] are the training set, id_features [M, D] and id_labels [M] the
    selection set; C is solved in ascending order without duplicates and ties keep the smaller. A
    solution has converged when the decrease that L-BFGS predicts is at most tolerance times the
    objective; those that have not are reported by one warning and by PathPoint.converged.

    Raises ValueError on mismatched shapes, labels outside [0, num_classes), non-finite or constant
    features, an empty path, a C that is not positive and finite, or fewer than two classes.
    """
    _validate(features, labels, num_classes, "training")
    _validate(id_features, id_labels, num_classes, "selection")
    if features.shape[1] != id_features.shape[1]:
        raise ValueError(
            f"training features have width {features.shape[1]}, selection features {id_features.shape[1]}"
        )
    if not path or not all(0 < C < math.inf for C in path):
        raise ValueError(f"path must hold positive, finite values of C, got {list(path)}")
    present = labels.unique()
    if len(present) < 2:
        raise ValueError(f"training labels hold only class {present.tolist()}, need at least two")
    if features.min() == features.max():
        raise ValueError("training features are constant: their standard deviation is 0")

    with full_precision(features.device):
        center, scale, x = _standardise(features)
        problem = _Problem(x, torch.searchsorted(present, labels))
        id_features = id_features.float()
        chosen = torch.empty(0)
        best = -1.0
        points: list[PathPoint] = []
        solved: deque[tuple[float, Tensor]] = deque(maxlen=3)
        theta = x.new_zeros(len(present), x.shape[1] + 1)
        for C in sorted(set(path)):
            start = _extrapolate(solved, math.log(C)) if solved else theta
            theta, objective, iterations, converged = _minimise(problem, start, C, max_iterations, tolerance)
            solved.append((math.log(C), theta))
            # Training saw feature * W + b at feature = (raw - center) / scale; unfold to raw.
            weight = theta[:, :-1].double() / scale
            head = torch.cat([weight, theta[:, -1:].double() - weight @ center[:, None]], 1).float()
            predicted = present[torch.addmm(head[:, -1], id_features, head[:, :-1].T).argmax(1)]
            accuracy = 100.0 * (predicted == id_labels).double().mean().item()
            points.append(PathPoint(C, objective, accuracy, iterations, converged))
            if accuracy > best:
                best, chosen = accuracy, head

    if failed := [f"{p.C:.3g}" for p in points if not p.converged]:
        warnings.warn(
            f"linear probe: {len(failed)} of {len(points)} values of C did not converge to "
            f"tolerance {tolerance:g} in at most {max_iterations} iterations: {', '.join(failed)}",
            stacklevel=3,  # past the frame of torch.no_grad, to the caller
        )
    full = chosen.new_zeros(num_classes, chosen.shape[1])
    full[present] = chosen
    C = next(p.C for p in points if p.accuracy == best)
    return Probe(full[:, :-1].contiguous(), full[:, -1].contiguous(), C, best, tuple(points))


def _validate(features: Tensor, labels: Tensor, num_classes: int, name: str) -> None:
    """Raise ValueError unless features [N, D] are finite and labels [N] lie in [0, num_classes)."""
    if features.ndim != 2 or labels.ndim != 1 or len(features) != len(labels) or not len(labels):
        raise ValueError(
            f"{name} features and labels must be [N, D] and [N] with N > 0, "
            f"got {list(features.shape)} and {list(labels.shape)}"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(f"{name} labels span {low}..{high}, outside [0, {num_classes})")
    # The extremes are NaN if any value is, which spares a mask the size of the features.
    if not torch.stack(torch.aminmax(features)).isfinite().all():
        raise ValueError(f"{name} features are not finite")


def _standardise(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return center [D], the global scale [] and (features - center) / scale in float32 [N, D].

    Centring every feature, rather than all by the global mean, moves only the unpenalised bias: the
    objective and W at its minimum stay the same, and bias and W decouple in the preconditioner.
    """
    wide = torch.promote_types(features.dtype, torch.float32)
    center = features.mean(0, dtype=torch.float64)
    x = features.to(wide) - center.to(wide)
    within = torch.linalg.vector_norm(x, dtype=torch.float64).square() / x.numel()
    scale = (within + center.var(correction=0)).sqrt()
    return center, scale, x.div_(scale).float()


class _Problem:
    """½‖W‖² + C·Σ loss over x [N, D] and labels [N]; theta [K, D + 1] holds W, then the bias."""

    def __init__(self, x: Tensor, labels: Tensor) -> None:
        self.x = x
        self.target = F.one_hot(labels).double()
        spectrum, basis = torch.linalg.eigh((x.T @ x).double())
        # The bias is the weight of a constant feature, of scatter N, that bears no penalty.
        self.scatter = F.pad(spectrum.clamp_min(0), (0, 1), value=len(x)).to(x)
        self.basis = torch.block_diag(basis.to(x), x.new_ones(1, 1))
        self.ridge = F.pad(torch.ones_like(x[0]), (0, 1))

    def value(self, theta: Tensor, C: float) -> tuple[Tensor, Tensor]:
        """Return the objective [] and the log-probabilities [N, K], float64."""
        log_p = torch.addmm(theta[:, -1], self.x, theta[:, :-1].T).double().log_softmax(1)
        penalty = 0.5 * theta[:, :-1].double().square().sum()
        return penalty - C * torch.sum(self.target * log_p), log_p

    def gradient(self, theta: Tensor, C: float, log_p: Tensor) -> Tensor:
        """Return the gradient [K, D + 1]."""
        residual = (log_p.exp() - self.target).T
        loss = torch.cat([residual.to(self.x) @ self.x, residual.sum(1, True).to(self.x)], 1)
        return self.ridge * theta + C * loss

    def preconditioner(self, C: float, log_p: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the product with the inverse of the Kronecker-factored Hessian at log_p."""
        p = log_p.exp()
        # 1/K² fills the one null direction of A, a shift of all classes, which loss ignores.
        curvature = p.mean(0).diag() - p.T @ p / len(p) + p.shape[1] ** -2
        spectrum, basis = (t.to(self.x) for t in torch.linalg.eigh(curvature))
        # Confident predictions leave A singular up to rounding; the bias has no ridge to lift it.
        diagonal = self.ridge + C * spectrum.clamp_min(1e-7)[:, None] * self.scatter
        return lambda v: basis @ ((basis.T @ v @ self.basis) / diagonal) @ self.basis.T


def _extrapolate(solved: Sequence[tuple[float, Tensor]], at: float) -> Tensor:
    """Return the Lagrange polynomial through the (log C, theta) solved, at the log C asked for."""
    nodes = [node for node, _ in solved]
    # On a path of uneven spacing, go no further than the last stride: polynomials diverge.
    at = min(at, nodes[-1] + (nodes[-1] - nodes[-2] if len(nodes) > 1 else 0.0))
    start = torch.zeros_like(solved[-1][1])
    for node, theta in solved:
        start += theta * math.prod((at - other) / (node - other) for other in nodes if other != node)
    return start


def _minimise(
    problem: _Problem, theta: Tensor, C: float, max_iterations: int, tolerance: float
) -> tuple[Tensor, float, int, bool]:
    """Preconditioned L-BFGS (Nocedal & Wright, Alg. 7.4) with Armijo backtracking from theta.

    Returns the solution, its objective, the number of steps taken and whether it converged.
    """
    value, log_p = problem.value(theta, C)
    gradient = problem.gradient(theta, C, log_p)
    precondition = problem.preconditioner(C, log_p)
    memory: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=_MEMORY)
    for iteration in range(max_iterations + 1):
        direction = -_inverse_hessian(gradient, memory, precondition)
        slope = torch.sum(gradient * direction)
        if -0.5 * slope <= tolerance * value:
            return theta, value.item(), iteration, True
        if iteration == max_iterations:
            break
        step = 1.0
        while True:
            candidate = theta + step * direction
            # Classes share a free shift: at the minimum it is zero, and rounding must not feed it.
            candidate -= candidate.mean(0)
            new_value, log_p = problem.value(candidate, C)
            if new_value <= value + 1e-4 * step * slope:
                break
            step /= 2
            if step < _SMALLEST_STEP:
                return theta, value.item(), iteration, False
        new_gradient = problem.gradient(candidate, C, log_p)
        moved, change = candidate - theta, new_gradient - gradient
        if (curvature := torch.sum(moved * change)) > 0:
            memory.append((moved, change, 1 / curvature))
        theta, value, gradient = candidate, new_value, new_gradient
    return theta, value.item(), max_iterations, False


def _inverse_hessian(
    gradient: Tensor,
    memory: deque[tuple[Tensor, Tensor, Tensor]],
    precondition: Callable[[Tensor], Tensor],
) -> Tensor:
    """Return L-BFGS's two-loop product of the inverse Hessian with the gradient [K, D + 1]."""
    q = gradient
    weights: list[Tensor] = []
    for moved, change, rho in reversed(memory):
        weights.append(rho * torch.sum(moved * q))
        q = q - weights[-1] * change
    z = precondition(q)
    if memory:
        _, change, rho = memory[-1]
        z = z / (rho * torch.sum(change * precondition(change)))
    for (moved, change, rho), weight in zip(memory, reversed(weights), strict=True):
        z = z + (weight - rho * torch.sum(change * z)) * moved
    return z
