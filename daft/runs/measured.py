"""What a trained network is measured by on evaluation splits: in a run, and of a finished one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from daft.data.loader import Loader
from daft.networks.classifier import Classifier
from daft.training import distortion, evaluation
from daft.training.evaluation import Autocast
from daft.training.predictions import Predictions
from daft.training.task import Task


@dataclass
class Measured:
    """Of one or several splits."""

    metrics: dict[str, float] = field(default_factory=dict)
    """by split/metric"""
    distortion: dict[str, Any] = field(default_factory=dict)
    """by split: mean and histogram of the measures of distortion"""
    per_class: dict[str, Any] = field(default_factory=dict)
    """by split: `Predictions.per_class`"""
    predictions: dict[str, Predictions] = field(default_factory=dict)
    """by split"""

    def joined(self, other: "Measured", splits: Sequence[str]) -> "Measured":
        """Both, of different splits, in the order of `splits`, which records and tables keep."""
        place = {split: number for number, split in enumerate(splits)}
        return Measured(
            *(
                dict(sorted((of | more).items(), key=lambda pair: place[pair[0].partition("/")[0]]))
                for of, more in zip(vars(self).values(), vars(other).values(), strict=True)
            )
        )


def measure(
    task: Task,
    model: Classifier,
    loaders: Mapping[str, Loader],
    before: Callable[[Loader], Tensor] | None,
    cast: Autocast,
    *,
    trains_backbone: bool,
) -> Measured:
    """Metrics on each split, and how far its features moved from those `before` (Figure 1).

    before: None if nobody knows; then no distortion is measured. trains_backbone: False if the features are
    those of before.
    """
    found, backbone, classes = Measured(), task.features(model.backbone), len(task.classes)
    for name, loader in loaders.items():
        old = before(loader) if before else None
        new = evaluation.features(backbone, loader, cast) if trains_backbone or old is None else old
        metrics = task.metrics(model, new, loader, cast)
        if (predictions := task.predictions(model, new, loader)) is not None:
            metrics |= predictions.measures(classes)
            found.per_class[name] = predictions.per_class(classes)
            found.predictions[name] = predictions
        found.metrics |= {f"{name}/{metric}": value for metric, value in metrics.items()}
        if old is not None:
            found.distortion[name] = distortion.feature_distortion(old, new)
            found.metrics |= {f"{name}/{key}": of["mean"] for key, of in found.distortion[name].items()}
    return found


def ood_means(metrics: Mapping[str, float], splits: Sequence[str]) -> dict[str, float]:
    """Plain means of every metric over the OOD sets that count."""
    if not splits:
        return {}
    names = [key.removeprefix("id/") for key in metrics if key.startswith("id/")]
    return {
        f"ood/{name}": sum(metrics[f"{split}/{name}"] for split in splits) / len(splits) for name in names
    }
