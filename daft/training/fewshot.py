"""Few-shot classification by prototypes: episodes of a few classes and images (Snell et al. 2017)."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

from daft.common import progress
from daft.common.errors import UserError

LARGEST = 2**24
"""Numbers in the largest tensor of a batch of episodes; what comes out does not depend on it."""


@dataclass(frozen=True)
class Protocol:
    """What is drawn: N-way K-shot episodes, how many, and from which seed."""

    ways: int
    """classes of an episode"""
    shots: tuple[int, ...]
    """labelled images of each class; an episode is taken once with each number"""
    queries: int
    """other images of each class, which are classified"""
    episodes: int
    """two or more"""
    seed: int

    def require(self, labels: Tensor, classes: Sequence[str], split: str) -> None:
        """Raise UserError unless a split's images, of these labels [N], are enough for an episode."""
        counts = labels.bincount(minlength=len(classes))
        there = int((counts > 0).sum())
        if self.ways > there:
            raise UserError(f"--ways {self.ways}: dataset.{split} has {there} classes")
        shots, fewest = max(self.shots), int(counts[counts > 0].min())
        if shots + self.queries > fewest:
            name = classes[counts.tolist().index(fewest)]
            fitting = f"--queries {fewest - shots}" if shots < fewest else f"--shots below {fewest}"
            raise UserError(
                f"--shots {shots} --queries {self.queries}: {shots + self.queries} images of a class, but "
                f"dataset.{split} has {fewest} of {name!r}" + (f"; use {fitting}" if fewest > 1 else "")
            )


class Episodes(NamedTuple):
    """A batch of B episodes, as places of images in their split."""

    support: Tensor
    """int64 [B, ways, most shots]: the labelled images; fewer shots are the first of them"""
    query: Tensor
    """int64 [B, ways, queries]: the images to classify, none of them in the support"""


def draw(labels: Tensor, protocol: Protocol, batch: int) -> Iterator[Episodes]:
    """All episodes of a protocol in batches: ways uniform over the classes that have images, then the images.

    Classes and images of an episode are drawn without replacement. An episode depends on the labels [N], the
    seed, and the numbers of ways and queries alone: every number of shots has the same queries.
    """
    counts = labels.bincount()
    classes = counts.nonzero()[:, 0]
    places = torch.full((len(counts), int(counts.max())), -1)  # of each class's images, row by row
    places[torch.arange(places.shape[1]) < counts[:, None]] = labels.argsort(stable=True)
    of_classes, of_images = (np.random.default_rng([protocol.seed, stream]) for stream in range(2))
    for start in range(0, protocol.episodes, batch):
        count = min(batch, protocol.episodes - start)
        order = torch.from_numpy(of_classes.random((count, len(classes)))).argsort()
        ways = classes[order[:, : protocol.ways]]
        keys = torch.from_numpy(of_images.random((*ways.shape, places.shape[1])))
        keys[torch.arange(places.shape[1]) >= counts[ways][..., None]] = math.inf
        chosen = keys.topk(protocol.queries + max(protocol.shots), largest=False).indices
        images = places[ways[..., None], chosen]
        yield Episodes(images[..., protocol.queries :], images[..., : protocol.queries])


def prototypes(support: Tensor) -> Tensor:
    """The mean features [..., ways, D] of each class's support [..., ways, shots, D]: p_c."""
    return support.mean(-2)


def log_probabilities(query: Tensor, of_classes: Tensor) -> Tensor:
    """log p(y = c | x) [..., Q, ways] of features [..., Q, D]: softmax over -‖f(x) - p_c‖² (Eq. 2 there).

    of_classes: prototypes [..., ways, D].
    """
    # Not by x² + y² - 2xy, whose rounding can be as large as what tells two near prototypes apart.
    distances = torch.cdist(query, of_classes, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.square().neg().log_softmax(-1)


@torch.no_grad()
def accuracies(features: Tensor, labels: Tensor, protocol: Protocol, name: str) -> dict[int, Tensor]:
    """Percentage of queries classified rightly, float64 [episodes], by number of shots.

    features: [N, D], of the images with these labels [N]. Two networks have the same episodes.
    """
    shots, width = max(protocol.shots), features.shape[1]
    largest = max(int(labels.bincount().max()), (shots + protocol.queries) * width)
    batch = max(1, LARGEST // (protocol.ways * largest))
    found: dict[int, list[Tensor]] = {number: [] for number in protocol.shots}
    right = torch.arange(protocol.ways, device=features.device)[:, None]
    batches = math.ceil(protocol.episodes / batch)
    for episodes in progress.track(draw(labels, protocol, batch), f"episodes {name}", batches):
        support, query = (features[places.to(features.device)] for places in episodes)
        for number in protocol.shots:
            of_classes = prototypes(support[:, :, :number])
            answers = log_probabilities(query.flatten(1, 2), of_classes).argmax(-1)
            correct = answers.view(query.shape[:3]) == right
            found[number].append(100 * correct.double().mean((1, 2)).cpu())
    return {number: torch.cat(parts) for number, parts in found.items()}


def t_quantile(episodes: int) -> float:
    """The 0.975 quantile of Student's t, of so many values less one degrees of freedom."""
    return float(stdtrit(episodes - 1, 0.975))


def half_width(std: float, episodes: int) -> float:
    """Half of the 95 % interval of a mean: t s / √n, with s the sample standard deviation (ddof = 1)."""
    return t_quantile(episodes) * std / math.sqrt(episodes)
