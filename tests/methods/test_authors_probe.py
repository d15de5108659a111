"""Claims about the linear probe as the authors ran it: scikit-learn's, with its classes and its limit."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from daft import experiment
from daft.common.errors import ConfigError, UserError
from daft.methods import authors_probe, probe
from daft.methods.authors_probe import fit_probe
from daft.runs.identity import run_identity

WIDTH, MEAN, SCALE = 6, 3.0, 5.0
EPS = float(np.finfo(np.float32).eps)


def drawn(classes: list[int], count: int = 60, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features around a centre per class that overlap, not centred, and their labels."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.tensor(classes).repeat(count)
    centres = torch.randn(max(classes) + 1, WIDTH, generator=torch.Generator().manual_seed(7))
    noise = torch.randn(len(labels), WIDTH, generator=random)
    return MEAN + SCALE * (centres[labels] + noise), labels


@pytest.mark.parametrize("classes", [[0, 1, 2], [0, 1], [1, 3]])
def test_its_head_gives_raw_features_the_probabilities_of_scikit_learns_model(classes: list[int]):
    x, labels = drawn(classes)
    other, other_labels = drawn(classes, seed=1)
    solved = fit_probe(x, labels, other, other_labels, num_classes=4, path=[0.01, 0.1])
    mean, std = x.numpy().mean(), x.numpy().std()
    model = LogisticRegression(warm_start=True, max_iter=200, random_state=0)
    scores, models = [], []
    for C in (0.01, 0.1):  # noqa: N806
        model.set_params(C=C).fit((x.numpy() - mean) / std, labels.numpy())
        scores.append(100 * model.score((other.numpy() - mean) / std, other_labels.numpy()))
        models.append(model.predict_proba((other.numpy() - mean) / std))
    best = int(np.argmax(scores))
    logits = other @ solved.weight.T + solved.bias
    found = logits[:, classes].double().softmax(1).numpy()
    # Its probabilities are of float32 logits, as ours are; the largest logit is about ten.
    assert np.allclose(found, models[best], atol=100 * EPS)
    assert solved.accuracy == pytest.approx(scores[best])
    absent = [label for label in range(4) if label not in classes]
    assert not solved.weight[absent].any()
    assert not solved.bias[absent].any()


def test_where_it_converges_it_is_the_exact_solution():
    x, labels = drawn([0, 1, 2])
    mine = fit_probe(x, labels, x, labels, num_classes=3, path=[1e-3])
    exact = probe.fit_probe(x, labels, x, labels, num_classes=3, path=[1e-3])
    assert mine.path[0].converged
    # scikit-learn stops where no entry of the mean loss's gradient is above 1e-4. The loss times C·N is the
    # objective, whose curvature is at least 1 (the penalty's) but for the bias: ½ |g|² bounds what is left.
    left = 0.5 * (1e-4 * 1e-3 * len(x)) ** 2 * 3 * WIDTH
    rounding = len(x) * 1e-3 * math.log(3) * EPS
    assert mine.path[0].objective == pytest.approx(exact.path[0].objective, abs=left + 10 * rounding)


def test_a_path_that_is_cut_off_says_where(monkeypatch: pytest.MonkeyPatch, capsys):
    x, labels = drawn([0, 1, 2])
    monkeypatch.setattr(authors_probe, "MAX_ITERATIONS", 3)
    solved = fit_probe(x, labels, x, labels, num_classes=3, path=[1e-9, 100.0])
    assert [point.converged for point in solved.path] == [True, False]
    assert [point.iterations for point in solved.path][1] == 3
    assert "cut off after 3 iterations at 1 of 2 values of C" in capsys.readouterr().err


def test_a_run_has_it_in_its_identity_its_cache_and_its_record(tiny):
    exact = experiment.run(tiny("method=lp"))
    config = tiny("method=lp", "method.probe_solver=authors")
    authors = experiment.run(config)
    assert exact.directory != authors.directory
    assert "probe_solver" not in exact.record["identity"]["method"]
    assert authors.record["identity"]["method"]["probe_solver"] == "authors"
    objectives = [[point["objective"] for point in run.record["probe"]["path"]] for run in (exact, authors)]
    assert objectives[0] != objectives[1]
    assert objectives[0][0] == pytest.approx(objectives[1][0], rel=1e-3)
    for solver, run in (("exact", exact), ("authors", authors)):
        again = run_identity(tiny("method=lp", f"method.probe_solver={solver}"), "fp32", {}, "")
        assert again["method"] == run.record["identity"]["method"]


def test_without_scikit_learn_the_run_ends_before_it_begins(tiny, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(authors_probe, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[probe\]'"):
        experiment.run(tiny("method=lp", "method.probe_solver=authors"))


@pytest.mark.parametrize("overrides", [["method=daft"], ["method=lp_ft", "dataset=shapes_masks"]])
def test_a_method_without_a_logistic_regression_has_no_solver(configure, overrides: list[str]):
    with pytest.raises(ConfigError, match=r"method\.probe_solver: authors, but no logistic regression"):
        configure(*overrides, "method.probe_solver=authors")
