"""How many images the classes have, and what follows where these are unequal."""

from collections.abc import Sequence

import torch
from torch import Tensor

UNEQUAL = 1.5
"""Times as many images in the largest class as in the smallest: above it an accuracy alone misleads."""


def counts(labels: Tensor, classes: int) -> list[int]:
    """Images of each class, in label order."""
    return labels.bincount(minlength=classes).tolist()


def is_unequal(counts: Sequence[int]) -> bool:
    """Whether the classes that have images have too unequal numbers of them for one accuracy."""
    there = [count for count in counts if count]
    return len(there) > 1 and max(there) > UNEQUAL * min(there)


def weights(labels: Tensor, classes: int) -> Tensor:
    """Of each class N / (K n), float32 [classes], for K classes with n of N images; 0 for one without any.

    All classes then weigh the same, and an image weighs 1 on average.
    """
    n = labels.bincount(minlength=classes).double()
    each = len(labels) / ((n > 0).sum() * n)
    return torch.where(n > 0, each, 0).float()
