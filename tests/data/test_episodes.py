"""Claims about the episodes that are drawn from a split."""

import math
from dataclasses import replace

import pytest
import torch

from daft.common.errors import UserError
from daft.data.episodes import Episodes, Protocol, draw

PROTOCOL = Protocol(ways=3, shots=(1, 2), queries=4, episodes=50, seed=0)
LABELS = torch.tensor([0] * 6 + [2] * 9 + [3] * 7 + [4] * 30)
"""Of a split that has no image of class 1."""


def whole(protocol: Protocol, labels: torch.Tensor = LABELS, batch: int = 1000) -> Episodes:
    """All episodes at once."""
    parts = zip(*draw(labels, protocol, batch), strict=True)
    return Episodes(*(torch.cat(part) for part in parts))


def test_an_episode_has_different_classes_and_no_image_twice():
    for support, query in zip(*whole(PROTOCOL), strict=True):
        assert support.shape == (3, 2)
        assert query.shape == (3, 4)
        images = torch.cat([support, query], 1)
        assert len(images.unique()) == images.numel()
        of_ways = LABELS[images]
        assert (of_ways == of_ways[:, :1]).all()
        assert len(of_ways[:, 0].unique()) == 3


def test_episodes_do_not_depend_on_their_batches_and_shots_share_queries():
    expected = whole(PROTOCOL)
    for batch in (1, 7):
        assert all(map(torch.equal, whole(PROTOCOL, batch=batch), expected))
    one = whole(replace(PROTOCOL, shots=(1,)))
    assert torch.equal(one.query, expected.query)
    assert torch.equal(one.support, expected.support[..., :1])
    few = whole(replace(PROTOCOL, episodes=20))
    assert all(map(torch.equal, few, (part[:20] for part in expected)))
    assert not torch.equal(whole(replace(PROTOCOL, seed=1)).query, expected.query)


def test_classes_and_their_images_are_drawn_evenly():
    """Within five standard deviations of a binomial count, which one count in two million leaves."""
    count = 20_000
    support = whole(Protocol(ways=2, shots=(1,), queries=3, episodes=count, seed=0)).support[..., 0]
    classes = LABELS[support].flatten().bincount(minlength=5)
    assert classes[1] == 0
    assert (classes[[0, 2, 3, 4]] - count / 2).abs().max() < 5 * math.sqrt(count / 4)
    each = support.flatten().bincount(minlength=len(LABELS))
    share = 0.5 / LABELS.bincount()[LABELS]
    assert ((each - count * share).abs() < 5 * (count * share * (1 - share)).sqrt()).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ways": 5}, r"--ways 5: dataset\.night has 4 classes"),
        (
            {"shots": (1, 3)},
            r"--shots 3 --queries 4: 7 images of a class, but .* has 6 of 'a'; use --queries 3 or less",
        ),
        ({"shots": (6,)}, r"--shots 6 --queries 4: 10 images of a class, .* 6 of 'a'; use --shots 5 or less"),
    ],
)
def test_more_ways_or_images_than_there_are_is_refused(changes, words):
    PROTOCOL.require(LABELS, "abcde", "night")
    with pytest.raises(UserError, match=words):
        replace(PROTOCOL, **changes).require(LABELS, "abcde", "night")
