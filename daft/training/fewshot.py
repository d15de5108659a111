"""Few-shot classification by prototypes, the mean features of a few images (Snell et al. 2017)."""

import math

import torch
from scipy.special import stdtrit
from torch import Tensor

from daft.common import progress
from daft.data.episodes import Protocol, draw

LARGEST = 2**24
"""Numbers in the largest tensor of a batch of episodes; what comes out does not depend on it."""


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
def accuracies(
    features: Tensor, labels: Tensor, protocol: Protocol, name: str | None = None
) -> dict[int, Tensor]:
    """Percentage of queries classified rightly, float64 [episodes], by number of shots.

    features: [N, D], of the images with these labels [N]. Two networks have the same episodes. name: of the
    split, to show progress.
    """
    shots, width = max(protocol.shots), features.shape[1]
    largest = max(int(labels.bincount().max()), (shots + protocol.queries) * width)
    batch = max(1, LARGEST // (protocol.ways * largest))
    found: dict[int, list[Tensor]] = {number: [] for number in protocol.shots}
    right = torch.arange(protocol.ways, device=features.device)[:, None]
    batches = math.ceil(protocol.episodes / batch)
    drawn = draw(labels, protocol, batch)
    for episodes in progress.track(drawn, f"episodes {name}", batches) if name else drawn:
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
