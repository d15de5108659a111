"""The linear probe as the authors ran it: scikit-learn's L-BFGS, cut off after 200 iterations.

The problem is that of `probe`, and so are the values of C. In float32, each C started from the solution of
the last one, the solver has not converged at the larger C. Accuracies on ID images hardly notice; those on
OOD images do, through the bias, which bears no penalty. The calls are those of LP-FT (Kumar et al., 2022).
"""

# ruff: noqa: N803, N806 (C is the name of this quantity everywhere, scikit-learn included)

import warnings
from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from daft.common import progress
from daft.common.errors import UserError
from daft.methods.probe import DEFAULT_PATH, PathPoint, Probe

MAX_ITERATIONS = 200


def require_installed() -> None:
    """Raise UserError unless scikit-learn is here."""
    if find_spec("sklearn") is None:
        raise UserError(
            "method.probe_solver=authors needs scikit-learn: pip install -e '.[probe]', or use exact"
        )


def fit_probe(
    features: Tensor,
    labels: Tensor,
    id_features: Tensor,
    id_labels: Tensor,
    *,
    num_classes: int,
    path: Sequence[float] = DEFAULT_PATH,
) -> Probe:
    """As `probe.fit_probe`, on the CPU; a solution has converged if the solver stopped by itself.

    Raises ValueError for features that are not finite, and labels of one class.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    x, id_x = (each.float().cpu().numpy() for each in (features, id_features))
    y, id_y = labels.cpu().numpy(), id_labels.cpu().numpy()
    mean, std = x.mean(), x.std()
    x, id_x = (x - mean) / std, (id_x - mean) / std
    model = LogisticRegression(warm_start=True, max_iter=MAX_ITERATIONS, random_state=0)
    points: list[PathPoint] = []
    best, chosen = -1.0, (np.empty(0), np.empty(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # told below, once
        for C in progress.track(sorted(set(path)), "scikit-learn's linear probe", len(set(path))):
            model.set_params(C=C).fit(x, y)
            accuracy = 100.0 * float(np.mean(model.predict(id_x) == id_y))
            weight, bias = (_of_classes(np.asarray(each)) for each in (model.coef_, model.intercept_))
            iterations = int(model.n_iter_.max())
            objective = _objective(model.coef_, x, y, model.classes_, weight, bias, C)
            points.append(PathPoint(C, objective, accuracy, iterations, iterations < MAX_ITERATIONS))
            if accuracy > best:
                best, chosen = accuracy, (weight, bias)
    if cut_off := sum(not point.converged for point in points):
        progress.say(
            f"method.probe_solver=authors: cut off after {MAX_ITERATIONS} iterations at {cut_off} of "
            f"{len(points)} values of C"
        )
    weight, bias = (np.asarray(each, np.float64) for each in chosen)
    weight = weight / float(std)
    bias = bias - float(mean) * weight.sum(1)
    full = torch.zeros(num_classes, x.shape[1] + 1)
    full[torch.from_numpy(model.classes_)] = torch.from_numpy(np.column_stack([weight, bias])).float()
    C = next(point.C for point in points if point.accuracy == best)
    return Probe(full[:, :-1].contiguous(), full[:, -1].contiguous(), C, best, tuple(points))


def _of_classes(parameters: np.ndarray) -> np.ndarray:
    """Weights or biases, one row per class: of two classes scikit-learn has the difference alone."""
    return np.concatenate([-parameters, parameters]) / 2 if len(parameters) == 1 else parameters.copy()


def _objective(
    coef: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    classes: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    C: float,
) -> float:
    """What scikit-learn minimises, in float64."""
    logits = (
        torch.from_numpy(x).double() @ torch.from_numpy(weight).double().T + torch.from_numpy(bias).double()
    )
    target = torch.from_numpy(np.searchsorted(classes, y))
    loss = F.cross_entropy(logits, target, reduction="sum")
    return float(0.5 * (coef.astype(np.float64) ** 2).sum() + C * loss)
