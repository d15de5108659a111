"""Few-shot learning as a task: learnt in episodes, judged by episodes of classes that were not trained on."""

from collections.abc import Iterable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from daft.batchnorm import batchnorm_layers
from daft.common import progress
from daft.common.errors import UserError
from daft.config.schema import FewshotConfig
from daft.data.episodes import EpisodeLoader, Protocol
from daft.data.loader import Batch, Loader
from daft.methods import head_rate
from daft.networks import backbones, classifier
from daft.networks.backbones import FeatureExtractor
from daft.networks.classifier import Classifier
from daft.training import fewshot
from daft.training.evaluation import Autocast
from daft.training.maml import Learner
from daft.training.task import Task


class Episodic(Task):
    """N-way K-shot classification, by prototypes or by MAML."""

    metric = "accuracy"

    @property
    def cfg(self) -> FewshotConfig:
        """The section of the configuration that makes it one."""
        assert self.config.fewshot is not None
        return self.config.fewshot

    @property
    def protocol(self) -> Protocol:
        """Of evaluation."""
        return Protocol.of(self.cfg)

    def require(self, train: Tensor, evaluation: Mapping[str, Tensor]) -> None:
        for name, labels in {"train": train, **evaluation}.items():
            self.protocol.require(labels, self.classes, name, "fewshot.{}={}".format)

    def backbone(self, *, pretrained: bool = True) -> FeatureExtractor:
        load = backbones.load if pretrained else backbones.untrained
        return load(self.config.backbone)

    def features(self, backbone: FeatureExtractor) -> nn.Module:
        return backbone

    def network(self, backbone: FeatureExtractor) -> Classifier:
        """For MAML with a head of as many classes as an episode has; prototypes need none."""
        if self.cfg.maml is None:
            return Classifier(backbone, nn.Identity())
        hidden = self.config.method.head_hidden
        head = classifier.make_head(backbone.num_features, hidden, self.cfg.ways)
        return Classifier(backbone, head.to(backbone.mean.device))

    def compute_loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Mean cross-entropy of the queries, over the episodes of a batch as of an `EpisodeLoader`."""
        cfg, images = self.cfg, batch[0]
        if cfg.maml is None:
            features = model(images).float()
            episodes = features.view(-1, cfg.ways, cfg.shots + cfg.queries, features.shape[-1])
            support, query = episodes.split([cfg.shots, cfg.queries], 2)
            found = fewshot.log_probabilities(query.flatten(1, 2), fewshot.prototypes(support)).flatten(0, 1)
            ways = torch.arange(cfg.ways, device=images.device).repeat_interleave(cfg.queries)
            return {"loss": F.nll_loss(found, ways.repeat(len(episodes)))}
        answers = self._answers(model, images.split(self.protocol.images), meta=True)
        return {"loss": torch.stack([F.cross_entropy(logits, ways) for logits, ways in answers]).mean()}

    def is_above_zero_head(self, loss: float) -> bool:
        return self.cfg.maml is not None and head_rate.is_above_zero_head(loss, self.cfg.ways)

    def logits(self, model: Classifier, images: Tensor, cast: Autocast) -> Tensor:
        raise UserError("fewshot: images are judged in episodes, not one by one")

    def score(self, model: Classifier, loader: Loader, cast: Autocast) -> float:
        if self.cfg.maml is not None:
            return float(self._adapted_accuracies(model, self._episodes(loader), cast).mean())
        model.eval()
        with torch.no_grad(), cast():
            features = torch.cat([model.backbone(images).float() for images, _ in loader.epoch()])
        return float(self._accuracies(features, loader).mean())

    def metrics(
        self, model: Classifier, features: Tensor, loader: Loader, cast: Autocast
    ) -> dict[str, float]:
        if self.cfg.maml is None:
            found = self._accuracies(features, loader)
        else:
            episodes = progress.track(self._episodes(loader), f"episodes {loader.name}", self.cfg.episodes)
            found = self._adapted_accuracies(model, episodes, cast)
        return {self.metric: float(found.mean()), "episode_std": float(found.std())}

    def _episodes(self, loader: Loader) -> Iterator[Tensor]:
        """The images of each episode that a split is evaluated on: those of `episodes.draw`."""
        steps = EpisodeLoader.of(loader, self.protocol, per_step=1).steps(range(self.cfg.episodes))
        return (images for images, _ in steps)

    def _answers(
        self, model: nn.Module, episodes: Iterable[Tensor], *, meta: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """By MAML, the logits [Q, ways] of the queries of each episode, and their ways [Q]."""
        cfg = self.cfg
        assert cfg.maml is not None
        by_episode = self.config.method.bn_mode == "train"
        layers = {
            name: layer
            for name, layer in batchnorm_layers(model).items()
            if by_episode and all(parameter.requires_grad for parameter in layer.parameters())
        }
        learner = Learner(model, cfg.maml, layers)
        for images in episodes:
            ways = torch.arange(cfg.ways, device=images.device)
            support, query = images.view(cfg.ways, -1, *images.shape[1:]).split([cfg.shots, cfg.queries], 1)
            labels = ways.repeat_interleave(cfg.shots)
            logits = learner.query_logits(support.flatten(0, 1), labels, query.flatten(0, 1), meta=meta)
            yield logits, ways.repeat_interleave(cfg.queries)

    def _accuracies(self, features: Tensor, loader: Loader) -> Tensor:
        """In percent, of each episode [episodes] by prototypes; NaN if a feature is not finite."""
        found = fewshot.accuracies(features, loader.labels, self.protocol)[self.cfg.shots]
        return found if features.isfinite().all() else torch.full_like(found, torch.nan)

    def _adapted_accuracies(self, model: Classifier, episodes: Iterable[Tensor], cast: Autocast) -> Tensor:
        """In percent, of each episode [episodes] by MAML; NaN if a logit is not finite."""
        model.eval()
        found = []
        with torch.no_grad(), cast():
            for logits, ways in self._answers(model, episodes, meta=False):
                right = 100 * (logits.argmax(1) == ways).double().mean()
                found.append(torch.where(logits.isfinite().all(), right, torch.nan))
        return torch.stack(found)
