"""Claims about daft.methods.probe, checked against scikit-learn, autograd and hand-made cases."""

# ruff: noqa: N803, N806 (C is the name of this quantity everywhere, scikit-learn included)

import json
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional as F

from daft.batchnorm import full_precision
from daft.methods.probe import DEFAULT_PATH, PathPoint, Probe, cached_probe, fit_probe

CLASSES = 10


@cache
def overlapping() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return 2,000 training and 1,000 selection samples of 64 ReLU-like, overlapping features."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (3000,), generator=generator)
    means = 0.5 * torch.randn(CLASSES, 16, generator=generator)
    latent = means[labels] + torch.randn(3000, 16, generator=generator)
    hidden = latent @ torch.randn(16, 64, generator=generator) / 4
    noise = torch.randn(3000, 64, generator=generator) * torch.linspace(0.7, 0.05, 64)
    features = 0.45 * torch.relu(hidden + noise + 0.3)
    return features[:2000], labels[:2000], features[2000:], labels[2000:]


@cache
def default_fit() -> Probe:
    return fit_probe(*overlapping(), num_classes=CLASSES)


def scaled_solution(probe: Probe, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return globally standardised features and the weight and bias on them, all in float64."""
    raw, weight = features.double(), probe.weight.double()
    mean, std = raw.mean(), raw.std(correction=0)
    return (raw - mean) / std, weight * std, probe.bias.double() + mean * weight.sum(1)


def objective(x: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, C: float) -> Tensor:
    loss = F.cross_entropy(x @ weight.T + bias, labels, reduction="sum")
    return 0.5 * weight.square().sum() + C * loss


def test_default_path_is_fifty_log_spaced_values_from_1e_minus_7_to_1e2():
    np.testing.assert_allclose(DEFAULT_PATH, np.logspace(-7, 2, 50))


def test_every_objective_and_the_chosen_accuracy_match_scikit_learn():
    features, labels, id_features, id_labels = overlapping()
    mean, std = features.double().mean(), features.double().std(correction=0)
    x, id_x = (features.double() - mean) / std, (id_features.double() - mean) / std
    sklearn = LogisticRegression(tol=1e-10, max_iter=3000, warm_start=True)
    accuracies = []
    for point in default_fit().path:
        sklearn.set_params(C=point.C).fit(x.numpy(), labels.numpy())
        weight, bias = torch.from_numpy(sklearn.coef_), torch.from_numpy(sklearn.intercept_)
        best = objective(x, labels, weight, bias, point.C).item()
        assert point.converged
        assert point.objective == pytest.approx(best, rel=1e-4)
        accuracies.append(100 * sklearn.score(id_x.numpy(), id_labels.numpy()))
    assert default_fit().accuracy == pytest.approx(max(accuracies), abs=0.1)


@pytest.mark.parametrize("C", [1e-7, 1e-3, 1e2])
def test_the_folded_solution_on_scaled_features_has_the_reported_objective(C: float):
    features, labels, *selection = overlapping()
    probe = fit_probe(features, labels, *selection, num_classes=CLASSES, path=[C])
    x, weight, bias = scaled_solution(probe, features)
    expected = objective(x, labels, weight, bias, C).item()
    assert probe.path[0].objective == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("C", [1e-7, 1e-3, 1e2])
def test_the_gradient_vanishes_at_the_solution(C: float):
    features, labels, *selection = overlapping()
    probe = fit_probe(features, labels, *selection, num_classes=CLASSES, path=[C], tolerance=1e-8)
    assert probe.path[0].converged
    x, weight, bias = scaled_solution(probe, features)
    weight.requires_grad_()
    bias.requires_grad_()
    objective(x, labels, weight, bias, C).backward()
    at_zero = weight.detach().clone().zero_().requires_grad_()
    objective(x, labels, at_zero, torch.zeros_like(bias), C).backward()
    assert weight.grad is not None
    assert bias.grad is not None
    assert at_zero.grad is not None
    assert weight.grad.norm() < 1e-3 * at_zero.grad.norm()
    assert bias.grad.norm() < 1e-3 * at_zero.grad.norm()


def test_the_probe_is_unchanged_by_shift_and_scale_of_all_features():
    features, labels, id_features, id_labels = overlapping()
    probe = fit_probe(features, labels, id_features, id_labels, num_classes=CLASSES, path=[1e-3])
    moved = fit_probe(
        4 * features + 2, labels, 4 * id_features + 2, id_labels, num_classes=CLASSES, path=[1e-3]
    )
    logits = id_features @ probe.weight.T + probe.bias
    moved_logits = (4 * id_features + 2) @ moved.weight.T + moved.bias
    torch.testing.assert_close(moved_logits, logits, rtol=0, atol=1e-3)


def test_the_reported_accuracy_is_that_of_the_returned_head():
    _, _, id_features, id_labels = overlapping()
    probe = default_fit()
    predicted = (id_features @ probe.weight.T + probe.bias).argmax(1)
    assert probe.accuracy == pytest.approx(100 * (predicted == id_labels).double().mean().item())
    assert probe.accuracy == max(point.accuracy for point in probe.path)


def test_an_absent_class_is_a_zero_row_takes_no_part_and_counts_as_errors():
    features, labels, id_features, id_labels = overlapping()
    kept = labels != 3
    probe = fit_probe(features[kept], labels[kept], id_features, id_labels, num_classes=CLASSES, path=[1e-3])
    dense = fit_probe(
        features[kept],
        labels[kept] - (labels[kept] > 3).long(),
        id_features,
        id_labels.clamp(max=CLASSES - 2),
        num_classes=CLASSES - 1,
        path=[1e-3],
    )
    assert not probe.weight[3].any()
    assert probe.bias[3] == 0
    others = [k for k in range(CLASSES) if k != 3]
    torch.testing.assert_close(probe.weight[others], dense.weight)
    predicted = (id_features @ probe.weight.T + probe.bias).argmax(1)
    assert not (predicted == 3).any()
    assert probe.accuracy == pytest.approx(100 * (predicted == id_labels).double().mean().item())
    assert probe.accuracy <= 100 * (id_labels != 3).double().mean().item()


def test_a_tie_keeps_the_smaller_c_whatever_the_order_of_the_path():
    features = torch.tensor([[-1.0], [-2.0], [1.0], [2.0]])
    labels = torch.tensor([0, 0, 1, 1])
    probe = fit_probe(features, labels, features, labels, num_classes=2, path=[1.0, 0.1, 10.0])
    assert [point.accuracy for point in probe.path] == [100.0, 100.0, 100.0]
    assert probe.C == 0.1


def test_two_symmetric_samples_give_the_hand_derived_solution():
    """With x = ±1 and W = (-w, w): 2w = 4C·sigmoid(-2w), so w = ½ has C = ¼·(1 + e)."""
    features, labels = torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1])
    C = (1 + np.e) / 4
    probe = fit_probe(features, labels, features, labels, num_classes=2, path=[C], tolerance=1e-12)
    torch.testing.assert_close(probe.weight, torch.tensor([[-0.5], [0.5]]), rtol=0, atol=1e-4)
    torch.testing.assert_close(probe.bias, torch.zeros(2), rtol=0, atol=1e-5)


def test_features_in_half_or_double_precision_are_accepted():
    features, labels, id_features, id_labels = overlapping()
    for dtype in (torch.float16, torch.float64):
        rounded, id_rounded = features.half().to(dtype), id_features.half().to(dtype)
        probe = fit_probe(rounded, labels, id_rounded, id_labels, num_classes=CLASSES, path=[1e-3])
        assert probe.weight.dtype == torch.float32
        assert probe.path[0].converged


def solved() -> Probe:
    return fit_probe(X, Y, X, Y, num_classes=2, path=[1.0])


KEPT = {"weight": torch.zeros(2, 2), "bias": torch.zeros(2)}
REPORT = {"C": 1.0, "accuracy": 50.0, "path": [asdict(PathPoint(1.0, 0.5, 50.0, 3, True))]}


def stored(tensors: dict[str, Tensor], report: object) -> bytes:
    return safetensors.torch.save(tensors, {"report": json.dumps(report)})


def test_a_probe_is_solved_once_and_then_read(tmp_path: Path, capsys):
    expected = solved()
    first = cached_probe(tmp_path / "probe", solved, 2, 2)
    assert torch.equal(first.weight, expected.weight)
    assert first.report() == expected.report()
    (tmp_path / "other").write_bytes(stored(KEPT, REPORT))
    other = cached_probe(tmp_path / "other", solved, 2, 2)
    assert other.path == (PathPoint(1.0, 0.5, 50.0, 3, True),)
    assert torch.equal(other.bias, KEPT["bias"])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "content",
    [
        b"",
        stored(KEPT, REPORT)[:-1],
        stored(KEPT | {"weight": torch.zeros(2, 3)}, REPORT),
        stored(KEPT | {"bias": torch.zeros(3)}, REPORT),
        stored(KEPT | {"bias": torch.full((2,), torch.nan)}, REPORT),
        stored({"weight": KEPT["weight"]}, REPORT),
        stored(KEPT, REPORT | {"accuracy": "high"}),
        stored(KEPT, REPORT | {"path": [1.0]}),
        stored(KEPT, []),
        safetensors.torch.save(KEPT),
    ],
)
def test_a_damaged_probe_is_solved_anew_with_a_word(tmp_path: Path, content: bytes, capsys):
    (tmp_path / "probe").write_bytes(content)
    found, expected = cached_probe(tmp_path / "probe", solved, 2, 2), solved()
    assert torch.equal(found.weight, expected.weight)
    assert found.path == expected.path
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(f"{tmp_path / 'probe'}: damaged (")


def test_non_convergence_is_flagged_and_warned_of_once():
    with pytest.warns(UserWarning, match="2 of 2 values of C .* 1 iterations: 1, 100$") as caught:
        probe = fit_probe(*overlapping(), num_classes=CLASSES, path=[1.0, 100.0], max_iterations=1)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert [point.converged for point in probe.path] == [False, False]
    assert [point.iterations for point in probe.path] == [1, 1]


def test_the_callers_float32_precision_is_suspended_and_restored():
    setting = torch.backends.cuda.matmul
    before = setting.fp32_precision
    try:
        for precision in ("tf32", "ieee"):
            setting.fp32_precision = precision
            with full_precision(torch.device("cpu")):
                assert setting.fp32_precision == "ieee"
            assert setting.fp32_precision == precision
    finally:
        setting.fp32_precision = before


X, Y = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": torch.tensor([0])}, r"training features and labels"),
        ({"id_labels": torch.tensor([0])}, r"selection features and labels"),
        ({"id_features": X[:, :1]}, "width 2, selection features 1"),
        ({"labels": torch.tensor([0, 2])}, r"training labels span 0..2, outside \[0, 2\)"),
        ({"id_labels": torch.tensor([-1, 0])}, r"selection labels span -1..0"),
        ({"features": X * float("nan")}, "training features are not finite"),
        ({"id_features": X / 0}, "selection features are not finite"),
        ({"path": []}, "path must hold"),
        ({"path": [1.0, 0.0]}, "path must hold positive"),
        ({"labels": torch.tensor([1, 1])}, r"only class \[1\]"),
        ({"features": torch.full((2, 2), 0.1)}, "constant"),
    ],
)
def test_bad_input_is_refused_by_name(changes: dict, message: str):
    arguments: dict[str, Any] = {
        "features": X,
        "labels": Y,
        "id_features": X,
        "id_labels": Y,
        "num_classes": 2,
    }
    with pytest.raises(ValueError, match=message):
        fit_probe(**arguments | changes)
