"""A head's learning rate that fits the features of any network: η_w = 2 (1 + μ) / λ.

A linear head with bias gives the logits W x̃, where x̃ is a feature vector x with a 1 appended. The Hessian
of softmax cross-entropy in W is the mean of (diag p - p pᵀ) ⊗ x̃ x̃ᵀ over samples, and diag p - p pᵀ is at
most half the identity (Böhning, 1992, "Multinomial logistic regression algorithm"). So the curvature of the
loss is at most L = λ / 2, with λ the largest eigenvalue of E[x̃ x̃ᵀ], means included, wherever the head is and
however many classes there are. Gradient descent with momentum μ is stable below 2 (1 + μ) / L (Polyak, 1964),
and the rule is half of that: room for mini-batches, and for features that change.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from daft.common.files import cached

IMAGES = 1024
"""Of the training set, which are enough: λ is a mean over them, and its second digit does not matter."""

MARGIN = 1.05
"""Times the loss of a zero head, above which an epoch is worse than it: random heads start a little above."""


class HeadRate(BaseModel):
    """The largest eigenvalue λ, and how many images it is from."""

    largest_eigenvalue: float = Field(gt=0, allow_inf_nan=False)
    images: int

    def report(self, momentum: float) -> dict[str, Any]:
        """What a record says of it."""
        rate = fitting_rate(self.largest_eigenvalue, momentum)
        return {"lambda": self.largest_eigenvalue, "images": self.images, "rate": rate}


def fitting_rate(largest_eigenvalue: float, momentum: float) -> float:
    """η_w = 2 (1 + μ) / λ, to six digits."""
    return float(f"{2 * (1 + momentum) / largest_eigenvalue:.6g}")


def cached_head_rate(file: Path, extract: Callable[[], Tensor]) -> HeadRate:
    """The rate that a file holds; if it is not there it is computed from what `extract` gives, [N, D]."""

    def content() -> bytes:
        features = extract()
        found = HeadRate(largest_eigenvalue=largest_eigenvalue(features), images=len(features))
        return found.model_dump_json().encode()

    return cached(file, content, lambda path: HeadRate.model_validate_json(path.read_bytes()))


@torch.no_grad()
def largest_eigenvalue(features: Tensor) -> float:
    """λ of features [N, D]; raises ValueError if they are not finite."""
    x = torch.nn.functional.pad(features.double(), (0, 1), value=1.0)
    if not x.isfinite().all():
        raise ValueError("training features are not finite")
    # As many rows as columns at most: both products have the same eigenvalues but for zeros.
    product = x.T @ x if x.shape[0] > x.shape[1] else x @ x.T
    return float(torch.linalg.eigvalsh(product.cpu() / len(x))[-1])


def is_above_zero_head(loss: float, num_classes: int) -> bool:
    """Whether an epoch's mean cross-entropy is that of a head that is worse than zeros, ln K."""
    return loss > MARGIN * math.log(num_classes)
