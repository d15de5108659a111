"""Segmentation as a task: pixels are classified, not images (Table 3)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassJaccardIndex

from daft.config.schema import SegmentationConfig
from daft.data.labelled import IGNORED
from daft.data.loader import Batch, Loader
from daft.networks import backbones
from daft.networks.backbones import FeatureExtractor
from daft.networks.classifier import Classifier
from daft.networks.deeplab import Decoder, Encoder, Pooled, Segmenter
from daft.training.evaluation import Autocast
from daft.training.task import Task


def cross_entropy(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Mean cross-entropy of the pixels that have a class; 0 if none has."""
    images, masks = batch
    total = F.cross_entropy(model(images), masks.long(), ignore_index=IGNORED, reduction="sum")
    return {"loss": total / (masks != IGNORED).sum().clamp(min=1)}


def logits(model: Classifier, images: Tensor, cast: Autocast) -> Tensor:
    """Logits [B, K, H, W] of the pixels; the head is always float32, as in `evaluation.logits`."""
    assert isinstance(model, Segmenter)
    with cast():
        features = model.backbone(images)
    return model.decoded([stage.float() for stage in features], images)


@torch.no_grad()
def ious(model: Classifier, loader: Loader, num_classes: int, cast: Autocast) -> Tensor:
    """Percentage of intersection over union [K] of each class, from all pixels of a split together.

    NaN for a class that is neither there nor predicted, and for all if any logit is NaN or infinite.
    """
    model.eval()
    nan = float("nan")
    measure = MulticlassJaccardIndex(
        num_classes, average="none", ignore_index=IGNORED, validate_args=False, zero_division=nan
    ).to(loader.device)
    finite = torch.ones((), dtype=torch.bool, device=loader.device)
    for images, masks in loader.epoch():
        found = logits(model, images, cast)
        finite &= found.isfinite().all()
        measure.update(found.argmax(1), masks.long())
    each = 100 * measure.compute().double().cpu()
    return each if finite else torch.full_like(each, nan)


class Segmentation(Task):
    """One class for a pixel."""

    metric = "miou"

    @property
    def cfg(self) -> SegmentationConfig:
        """The section of the configuration that makes it one."""
        assert self.config.segmentation is not None
        return self.config.segmentation

    def backbone(self, *, pretrained: bool = True) -> Encoder:
        load = backbones.load if pretrained else backbones.untrained
        cfg = self.config.backbone
        return Encoder(load(cfg), cfg, self.cfg.output_stride).eval()

    def network(self, backbone: FeatureExtractor) -> Segmenter:
        assert isinstance(backbone, Encoder)
        head = Decoder(backbone, len(self.classes), self.cfg)
        return Segmenter(backbone, head.to(backbone.mean.device))

    def features(self, backbone: FeatureExtractor) -> nn.Module:
        return Pooled(backbone)

    def compute_loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return cross_entropy(model, batch)

    def logits(self, model: Classifier, images: Tensor, cast: Autocast) -> Tensor:
        return logits(model, images, cast)

    def score(self, model: Classifier, loader: Loader, cast: Autocast) -> float:
        return float(ious(model, loader, len(self.classes), cast).nanmean())

    def metrics(
        self, model: Classifier, features: Tensor, loader: Loader, cast: Autocast
    ) -> dict[str, float]:
        each = ious(model, loader, len(self.classes), cast)
        named = zip(self.classes, each.tolist(), strict=True)
        return {self.metric: float(each.nanmean())} | {f"iou_{name}": iou for name, iou in named}
