"""Claims about episodes and prototypes, against formulas written out."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import scipy.stats
import torch

from daft.training import fewshot
from tests.data.test_episodes import LABELS, PROTOCOL, whole


def away(distances: list[float]) -> torch.Tensor:
    """Prototypes at these distances from the origin, each in a direction of its own."""
    return torch.diag(torch.tensor(distances, dtype=torch.float64))


def test_a_class_is_as_likely_as_the_softmax_over_minus_the_squared_distances():
    """A textbook's example: .3 .8 .6 .9 .4 as the squared distances, and as the distances, of a query."""
    given, query = [0.3, 0.8, 0.6, 0.9, 0.4], torch.zeros(1, 5, dtype=torch.float64)
    squared = fewshot.log_probabilities(query, away([math.sqrt(d) for d in given])).exp()
    assert squared[0].tolist() == pytest.approx(
        [0.2631, 0.1596, 0.1949, 0.1444, 0.2380], abs=1e-4
    )  # cut off there
    plain = fewshot.log_probabilities(query, away(given)).exp()
    assert plain[0].tolist() == pytest.approx([0.2660, 0.1535, 0.2031, 0.1295, 0.2480], abs=5e-5)
    total = sum(math.exp(-d * d) for d in given)
    assert plain[0].tolist() == pytest.approx([math.exp(-d * d) / total for d in given])


def test_a_prototype_is_the_mean_of_the_support():
    support = torch.tensor([[[1.0, 2.0], [3.0, 6.0]], [[0.0, 0.0], [1.0, 1.0]]])
    assert fewshot.prototypes(support).tolist() == [[2.0, 4.0], [0.5, 0.5]]


def test_near_prototypes_are_told_apart_far_from_the_origin():
    """Where x² + y² - 2xy in float32 has an error of 64, as of a square of 2^30."""
    offset, step = 2.0**15, 2.0**-8
    query = torch.full((1, 1), offset)
    near = fewshot.log_probabilities(query, torch.tensor([[offset + step], [offset + 2 * step]]))
    assert near[0, 0] - near[0, 1] == pytest.approx(3 * step**2, rel=1e-6)


def test_accuracies_are_those_of_each_episode_on_its_own(monkeypatch):
    features = torch.randn(len(LABELS), 6, generator=torch.Generator().manual_seed(0))
    features += torch.nn.functional.one_hot(LABELS, 6)

    def expected(shots: int) -> Iterator[float]:
        x = features.double().numpy()
        for support, query in zip(*(part.numpy() for part in whole(PROTOCOL)), strict=True):
            centres = np.array([x[places[:shots]].mean(0) for places in support])
            right = [
                np.argmin(((x[image] - centres) ** 2).sum(1)) == way
                for way, images in enumerate(query)
                for image in images
            ]
            yield 100 * float(np.mean(right))

    found = fewshot.accuracies(features, LABELS, PROTOCOL, "id")
    assert found.keys() == {1, 2}
    for shots in (1, 2):
        assert found[shots].tolist() == pytest.approx([*expected(shots)])
    assert found[2].mean() > found[1].mean() > 100 / 3
    monkeypatch.setattr(fewshot, "LARGEST", 1000)  # batches of a few episodes
    again = fewshot.accuracies(features, LABELS, PROTOCOL, "id")
    assert all(torch.equal(again[shots], found[shots]) for shots in (1, 2))


def test_features_that_say_all_are_always_right_and_those_that_say_nothing_are_right_by_chance():
    perfect = fewshot.accuracies(torch.nn.functional.one_hot(LABELS).float(), LABELS, PROTOCOL, "id")
    assert (perfect[1] == 100).all()
    blind = fewshot.accuracies(torch.ones(len(LABELS), 4), LABELS, PROTOCOL, "id")
    assert blind[2].tolist() == pytest.approx([100 / 3] * 50)


@pytest.mark.parametrize("episodes", [2, 5, 600])
def test_an_interval_is_students(episodes):
    values = np.random.default_rng(0).normal(50, 10, episodes)
    low, high = scipy.stats.t.interval(0.95, episodes - 1, values.mean(), scipy.stats.sem(values))
    assert fewshot.half_width(values.std(ddof=1), episodes) == pytest.approx((high - low) / 2)
