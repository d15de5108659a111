"""What a classifier says of each image of a split, and what follows: by class, and how sure it may be."""

from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from daft.data.loader import Loader

BINS = 15
"""Of confidence, equally wide: Guo et al. 2017, and the default of torchmetrics."""


def by_class(confusion: Tensor) -> dict[str, list[Any]]:
    """Of a matrix [K, K], labels in rows: images, and accuracy in percent, None where there are none."""
    images = confusion.sum(1).tolist()
    found = zip(images, confusion.diagonal().tolist(), strict=True)
    return {
        "images": images,
        "accuracy": [100 * correct / count if count else None for count, correct in found],
    }


def balanced_accuracy(confusion: Tensor) -> float:
    """Of such a matrix, in percent: the mean over the classes that are there."""
    each = [accuracy for accuracy in by_class(confusion)["accuracy"] if accuracy is not None]
    return sum(each) / len(each)


@dataclass(frozen=True)
class Predictions:
    """Of the images of a split, in its order."""

    labels: Tensor
    """int64 [N]"""
    predicted: Tensor
    """int64 [N]: the class of the largest logit"""
    confidence: Tensor
    """float32 [N]: its probability"""
    loss: Tensor
    """float32 [N]: the negative log-likelihood of the label, in nats"""

    def __post_init__(self) -> None:
        shapes = {tuple(getattr(self, field.name).shape) for field in fields(self)}
        if len(shapes) != 1 or len(next(iter(shapes))) != 1:
            raise ValueError(f"predictions of shapes {sorted(shapes)}")

    @property
    def correct(self) -> Tensor:
        """bool [N]."""
        return self.predicted == self.labels

    @property
    def largest(self) -> int:
        """The largest class that is there or predicted; -1 of no image."""
        return int(torch.cat([self.labels, self.predicted, torch.tensor([-1])]).max())

    def confusion(self, classes: int) -> Tensor:
        """Numbers of images [K, K], int64: labels in rows, predictions in columns."""
        cells = self.labels * classes + self.predicted
        return cells.bincount(minlength=classes**2).view(classes, classes)

    def per_class(self, classes: int) -> dict[str, list[Any]]:
        """By class, in label order: images, and accuracy in percent, None where there are none."""
        return by_class(self.confusion(classes))

    def measures(self, classes: int) -> dict[str, float]:
        """Balanced accuracy and ECE in percent, and NLL in nats; NaN if a logit was not finite.

        ECE is that of Guo et al. 2017.
        """
        if not self.confidence.isfinite().all():
            return dict.fromkeys(("balanced_accuracy", "nll", "ece"), float("nan"))
        # Not by torchmetrics, which gives the same (tested): its import takes seconds of every run.
        count, right, confidence = self.reliability()
        return {
            "balanced_accuracy": balanced_accuracy(self.confusion(classes)),
            "nll": float(self.loss.double().mean()),
            "ece": 100 * float((right - confidence).abs().sum() / count.sum()),
        }

    def reliability(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of each bin of confidence: images, right ones, and the sum of confidences, float64 [BINS]."""
        edges = torch.linspace(0, 1, BINS + 1)[1:-1]
        place = torch.bucketize(self.confidence, edges, right=True)
        summed = (torch.ones(len(place)), self.correct, self.confidence)
        count, right, confidence = (place.bincount(of.double(), minlength=BINS) for of in summed)
        return count, right, confidence


@torch.no_grad()
def of_features(head: nn.Module, features: Tensor, loader: Loader) -> Predictions:
    """From the features [N, D] of the loader's images, batch by batch as `evaluation.head_accuracy`."""
    head.eval()
    found: list[tuple[Tensor, ...]] = []
    labels = loader.labels.to(loader.device)
    for x, y in zip(features.split(loader.batch_size), labels.split(loader.batch_size), strict=True):
        logits = head(x)
        loss = F.cross_entropy(logits, y, reduction="none")
        found.append((y, logits.argmax(1), logits.softmax(1).amax(1), loss))
    return Predictions(*(torch.cat(of).cpu() for of in zip(*found, strict=True)))
