"""A head's automatic rate: λ is the features' own, and the rate is half of what its curvature allows."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from daft.methods import head_rate


def features(n: int = 200, width: int = 12, *, seed: int = 0) -> Tensor:
    """Positive on average, as after a ReLU: the mean then governs λ."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, width, generator=generator).relu() * torch.linspace(0.5, 4, width)


@pytest.mark.parametrize("n", [200, 5])  # more images than features, and fewer
def test_the_eigenvalue_is_that_of_the_second_moment_with_a_one_appended(n: int) -> None:
    x = features(n)
    extended = np.hstack([x.numpy().astype(np.float64), np.ones((n, 1))])
    expected = np.linalg.svd(extended, compute_uv=False)[0] ** 2 / n
    assert head_rate.largest_eigenvalue(x) == pytest.approx(expected, rel=1e-12)
    assert expected > np.linalg.eigvalsh(np.cov(x.numpy().T)).max()  # so means count


def loss(weight: Tensor, x: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(F.pad(x, (0, 1), value=1.0) @ weight.T, labels)


def curvature(weight: Tensor, x: Tensor, labels: Tensor) -> float:
    """The largest eigenvalue of the loss's Hessian, by torch's own second derivatives."""
    hessian = torch.func.hessian(lambda w: loss(w, x, labels))(weight)
    return float(torch.linalg.eigvalsh(hessian.reshape(weight.numel(), weight.numel()))[-1])


def test_no_head_has_more_curvature_than_half_of_the_eigenvalue_and_that_of_two_classes_has_it() -> None:
    """Two classes reach the bound at zero: there can be no smaller one."""
    x = features(width=4).double()
    half = head_rate.largest_eigenvalue(x) / 2
    generator = torch.Generator().manual_seed(1)
    for num_classes in (2, 3, 7):
        labels = torch.randint(num_classes, (len(x),), generator=generator)
        zero = torch.zeros(num_classes, 5, dtype=torch.float64)
        for weight in (zero, torch.randn(num_classes, 5, generator=generator, dtype=torch.float64) / 4):
            assert curvature(weight, x, labels) <= half * (1 + 1e-12)
        # At a head of zeros it is λ / K: (diag p - p pᵀ) has the eigenvalue 1 / K.
        assert curvature(zero, x, labels) == pytest.approx(2 * half / num_classes, rel=1e-9)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_twice_the_rate_is_the_limit_of_stability_of_a_quadratic_of_the_most_curvature(
    momentum: float,
) -> None:
    curvature = 7.0  # λ / 2
    for factor, grows in ((0.99, False), (1.01, True)):
        x = torch.ones((), dtype=torch.float64, requires_grad=True)
        rate = 2 * factor * head_rate.fitting_rate(2 * curvature, momentum)
        optimizer = torch.optim.SGD([x], lr=rate, momentum=momentum)
        for _ in range(2000):
            optimizer.zero_grad()
            (curvature / 2 * x**2).backward()
            optimizer.step()
        assert (abs(x.item()) > 1) == grows


@pytest.mark.parametrize(("factor", "stable"), [(1, True), (10, False)])
def test_momentum_lowers_the_loss_at_the_rate_and_not_at_ten_times(factor: float, stable: bool) -> None:
    """At the most curved point, two classes at zero."""
    x = features(width=4).double()
    labels = (x[:, 0] > x[:, 0].median()).long()
    weight = torch.zeros(2, 5, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD(
        [weight], lr=factor * head_rate.fitting_rate(head_rate.largest_eigenvalue(x), 0.9), momentum=0.9
    )
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        losses.append(loss(weight, x, labels))
        losses[-1].backward()
        optimizer.step()
    assert losses[0].item() == pytest.approx(math.log(2))
    assert (max(losses[1:]).item() < math.log(2)) == stable


def test_the_rate_falls_with_the_square_of_the_features() -> None:
    """But for the 1 that is appended, which adds at most 1 to the eigenvalue."""
    x = features().double()
    alone = float(torch.linalg.eigvalsh(x.T @ x / len(x))[-1])
    ratio = head_rate.largest_eigenvalue(10 * x) / head_rate.largest_eigenvalue(x)
    assert 100 * alone / (alone + 1) <= ratio <= (100 * alone + 1) / alone


def test_it_is_computed_once_and_a_damaged_file_is_made_anew(tmp_path: Path) -> None:
    asked: list[int] = []

    def extract() -> Tensor:
        asked.append(1)
        return features()

    file = tmp_path / "rate.json"
    found = head_rate.cached_head_rate(file, extract)
    assert head_rate.cached_head_rate(file, extract) == found
    assert len(asked) == 1
    rate = 3.8 / found.largest_eigenvalue
    assert found.report(0.9) == {
        "lambda": found.largest_eigenvalue,
        "images": 200,
        "rate": pytest.approx(rate, rel=5e-6),  # six digits
    }
    file.write_text(json.dumps({"largest_eigenvalue": -1.0, "images": 200}))
    assert head_rate.cached_head_rate(file, extract) == found
    assert len(asked) == 2


def test_features_that_are_not_finite_have_no_rate() -> None:
    with pytest.raises(ValueError, match="not finite"):
        head_rate.largest_eigenvalue(features().index_fill(0, torch.tensor([3]), math.nan))


def test_a_loss_above_that_of_zeros_is_told_and_that_of_a_random_head_is_not() -> None:
    assert not head_rate.is_above_zero_head(math.log(7) + 0.05, 7)
    assert head_rate.is_above_zero_head(2.5, 7)
