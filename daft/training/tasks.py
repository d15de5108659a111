"""What is learnt around a backbone: classes of images, or of their pixels."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from daft.config.schema import Config
from daft.data.loader import Batch, Loader
from daft.networks import backbones, classifier
from daft.networks.backbones import FeatureExtractor
from daft.networks.classifier import Classifier
from daft.training import evaluation, loop
from daft.training.evaluation import Autocast


class Task(ABC):
    """The network around the backbone, its loss and its measure."""

    metric: ClassVar[str]
    """name of the measure, which is in percent"""

    def __init__(self, config: Config, classes: list[str]) -> None:
        self.config, self.classes = config, classes

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
    def step(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """What training minimises, as `loop.Step`."""

    @abstractmethod
    def score(self, model: Classifier, loader: Loader, cast: Autocast) -> float:
        """The measure on a split; NaN if any logit is NaN or infinite."""

    @abstractmethod
    def measures(
        self, model: Classifier, features: Tensor, loader: Loader, cast: Autocast
    ) -> dict[str, float]:
        """The measure and what goes with it, given the features of the loader's images by the model."""


class Classification(Task):
    """One class for an image."""

    metric = "accuracy"

    def backbone(self, *, pretrained: bool = True) -> FeatureExtractor:
        load = backbones.load if pretrained else backbones.untrained
        return load(self.config.backbone)

    def network(self, backbone: FeatureExtractor) -> Classifier:
        hidden = self.config.method.head_hidden
        head = classifier.make_head(backbone.num_features, hidden, len(self.classes))
        return Classifier(backbone, head.to(backbone.mean.device))

    def features(self, backbone: FeatureExtractor) -> nn.Module:
        return backbone

    def step(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return loop.cross_entropy(model, batch)

    def score(self, model: Classifier, loader: Loader, cast: Autocast) -> float:
        return evaluation.accuracy(model.backbone, model.head, loader, cast)

    def measures(
        self, model: Classifier, features: Tensor, loader: Loader, cast: Autocast
    ) -> dict[str, float]:
        return {self.metric: evaluation.head_accuracy(model.head, features, loader)}


def of(config: Config, classes: list[str]) -> Task:
    """The task of a configuration, on these classes."""
    if config.segmentation is None:
        return Classification(config, classes)
    from daft.training.segmentation import Segmentation

    return Segmentation(config, classes)
