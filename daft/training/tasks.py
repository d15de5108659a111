"""The tasks: classes of images, of their pixels, and of episodes."""

from torch import Tensor, nn

from daft.config.schema import Config
from daft.data.loader import Batch, Loader
from daft.networks import backbones, classifier
from daft.networks.backbones import FeatureExtractor
from daft.networks.classifier import Classifier
from daft.training import evaluation, loop, predictions
from daft.training.evaluation import Autocast
from daft.training.predictions import Predictions
from daft.training.task import Task


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

    def compute_loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return loop.cross_entropy(model, batch, self.class_weights)

    def logits(self, model: Classifier, images: Tensor, cast: Autocast) -> Tensor:
        return evaluation.logits(model.backbone, model.head, images, cast)

    def score(self, model: Classifier, loader: Loader, cast: Autocast) -> float:
        return evaluation.accuracy(model.backbone, model.head, loader, cast)

    def metrics(
        self, model: Classifier, features: Tensor, loader: Loader, cast: Autocast
    ) -> dict[str, float]:
        return {self.metric: evaluation.head_accuracy(model.head, features, loader)}

    def predictions(self, model: Classifier, features: Tensor, loader: Loader) -> Predictions:
        return predictions.of_features(model.head, features, loader)


def of(config: Config, classes: list[str]) -> Task:
    """The task of a configuration, on these classes."""
    if config.fewshot is not None:
        from daft.training.meta import Episodic

        return Episodic(config, classes)
    if config.segmentation is None:
        return Classification(config, classes)
    from daft.training.segmentation import Segmentation

    return Segmentation(config, classes)
