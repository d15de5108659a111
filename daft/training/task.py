"""What a task is: what is learnt around a backbone, and how it is judged."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from daft.config.schema import Config
from daft.data.loader import Batch, Loader
from daft.methods import head_rate
from daft.networks.backbones import FeatureExtractor
from daft.networks.classifier import Classifier
from daft.training.evaluation import Autocast
from daft.training.predictions import Predictions


class Task(ABC):
    """The network around the backbone, its loss, and the metric that it is judged by."""

    metric: ClassVar[str]
    """its name; it is in percent"""

    def __init__(self, config: Config, classes: list[str]) -> None:
        self.config, self.classes = config, classes
        self.class_weights: Tensor | None = None
        """of the classes in the loss, float32 [K], on the device that trains; None: all weigh the same"""

    def require(self, train: Tensor, evaluation: Mapping[str, Tensor]) -> None:
        """Raise UserError unless every split, with these labels [N], has images enough.

        Asked before any is decoded, and again without those that could not be.
        """
        return

    @abstractmethod
    def backbone(self, *, pretrained: bool = True) -> FeatureExtractor:
        """The configured backbone, or one with random weights; raises UserError as backbones.load()."""

    @abstractmethod
    def network(self, backbone: FeatureExtractor) -> Classifier:
        """The backbone with a random head, where the backbone is."""

    @abstractmethod
    def features(self, backbone: FeatureExtractor) -> nn.Module:
        """What distortion is measured on: images to features [B, D]."""

    @abstractmethod
    def compute_loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """What training minimises, as `loop.LoopHooks.compute_loss`."""

    def is_above_zero_head(self, loss: float) -> bool:
        """Whether an epoch's mean loss is that of a head that is worse than zeros."""
        return head_rate.is_above_zero_head(loss, len(self.classes))

    @abstractmethod
    def logits(self, model: Classifier, images: Tensor, cast: Autocast) -> Tensor:
        """Of images [B, 3, H, W] in test mode, as they are judged: [B, K], or [B, K, H, W] of pixels."""

    @abstractmethod
    def score(self, model: Classifier, loader: Loader, cast: Autocast) -> float:
        """The metric on a split; NaN if any logit is NaN or infinite."""

    @abstractmethod
    def metrics(
        self, model: Classifier, features: Tensor, loader: Loader, cast: Autocast
    ) -> dict[str, float]:
        """The metric and what goes with it, given the features [N, D] of the loader's images by the model."""

    def predictions(self, model: Classifier, features: Tensor, loader: Loader) -> Predictions | None:
        """What the model says of each image, given their features; None where an image has no one class."""
        return None
