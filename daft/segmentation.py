"""Segmentation: DeepLabv3+ around a pretrained backbone (Table 3)."""

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from segmentation_models_pytorch.decoders.deeplabv3.decoder import ASPP, SeparableConv2d
from torch import Tensor, nn
from torchmetrics.classification import MulticlassJaccardIndex

from daft import backbones
from daft.backbones import FeatureExtractor
from daft.config import BackboneConfig, SegmentationConfig
from daft.data.images import IGNORED
from daft.data.loader import Batch, Loader
from daft.errors import UserError
from daft.evaluation import Autocast
from daft.methods import Classifier
from daft.tasks import Task

FINE, FINE_STRIDE = 2, 4
"""The stage whose features the decoder adds, and its stride."""

FINE_CHANNELS = 48
"""Of those features, after they are reduced (Chen et al. 2018)."""


class Encoder(FeatureExtractor):
    """A backbone with dilated last stages: images to the normalised images and the features of each stage.

    Sides are padded to multiples of the output stride at the bottom and on the right, with the mean colour.
    """

    def __init__(self, plain: FeatureExtractor, cfg: BackboneConfig, output_stride: int) -> None:
        name = f"backbone.model={cfg.model}"
        try:
            # `tu-`, timm's networks: smp's own ResNets dilate another convolution than torchvision's.
            dense = smp.encoders.get_encoder(
                f"tu-{cfg.model}", weights=None, output_stride=output_stride, **cfg.model_args
            )
        except Exception as error:
            raise UserError(f"{name} does not take output_stride={output_stride} ({error})") from error
        try:
            dense.model.load_state_dict(plain.network.state_dict())  # key by key, as it was loaded
        except RuntimeError as error:
            raise UserError(f"{name} is another network with dilated stages ({error})") from error
        super().__init__(dense, dense.out_channels[-1], cfg)
        self.channels, self.output_stride = dense.out_channels, output_stride

    def forward(self, images: Tensor) -> list[Tensor]:
        """images: as `FeatureExtractor` takes them."""
        height, width = images.shape[-2:]
        missing = (0, -width % self.output_stride, 0, -height % self.output_stride)
        return self.network(F.pad(self.normalised(images), missing))


class Decoder(nn.Module):
    """Features of each stage to logits [B, K, H, W] at the resolution of the padded images.

    VainF's; the library's own has one more convolution, and aligns corners, which shifts coarse features
    against fine ones, differently from one side of the image to the other.
    """

    def __init__(self, encoder: Encoder, num_classes: int, cfg: SegmentationConfig) -> None:
        super().__init__()
        convolution = SeparableConv2d if cfg.separable else nn.Conv2d
        coarse, fine, width = encoder.channels[-1], encoder.channels[FINE], cfg.channels
        self.pyramid = ASPP(coarse, width, cfg.atrous_rates, separable=cfg.separable, dropout=cfg.dropout)
        self.reduced = nn.Sequential(
            nn.Conv2d(fine, FINE_CHANNELS, 1, bias=False), nn.BatchNorm2d(FINE_CHANNELS), nn.ReLU()
        )
        self.classifier = nn.Sequential(
            convolution(FINE_CHANNELS + width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, num_classes, 1),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, features: list[Tensor]) -> Tensor:
        fine = self.reduced(features[FINE])
        coarse = F.interpolate(self.pyramid(features[-1]), size=fine.shape[-2:], mode="bilinear")
        logits = self.classifier(torch.cat([fine, coarse], 1))
        return F.interpolate(logits, scale_factor=FINE_STRIDE, mode="bilinear")


class Segmenter(Classifier):
    """Logits [B, K, H, W] of the pixels of images."""

    def forward(self, images: Tensor) -> Tensor:
        return self.decoded(self.backbone(images), images)

    def decoded(self, features: list[Tensor], images: Tensor) -> Tensor:
        """The same from the backbone's features."""
        height, width = images.shape[-2:]
        return self.head(features)[..., :height, :width]


class Pooled(nn.Module):
    """Mean of an encoder's last features over the image, [B, D]."""

    def __init__(self, encoder: FeatureExtractor) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder(images)[-1].mean((2, 3))


def cross_entropy(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Mean cross-entropy of the pixels that have a class; 0 if none has."""
    images, masks = batch
    total = F.cross_entropy(model(images), masks.long(), ignore_index=IGNORED, reduction="sum")
    return {"loss": total / (masks != IGNORED).sum().clamp(min=1)}


@torch.no_grad()
def ious(model: Classifier, loader: Loader, num_classes: int, cast: Autocast) -> Tensor:
    """Percentage of intersection over union [K] of each class, from all pixels of a split together.

    NaN for a class that is neither there nor predicted, and for all if any logit is NaN or infinite. The head
    is always float32, as in `evaluation.accuracy`.
    """
    assert isinstance(model, Segmenter)
    model.eval()
    nan = float("nan")
    measure = MulticlassJaccardIndex(
        num_classes, average="none", ignore_index=IGNORED, validate_args=False, zero_division=nan
    ).to(loader.device)
    finite = torch.ones((), dtype=torch.bool, device=loader.device)
    for images, masks in loader.epoch():
        with cast():
            features = model.backbone(images)
        logits = model.decoded([stage.float() for stage in features], images)
        finite &= logits.isfinite().all()
        measure.update(logits.argmax(1), masks.long())
    found = 100 * measure.compute().double().cpu()
    return found if finite else torch.full_like(found, nan)


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

    def step(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return cross_entropy(model, batch)

    def score(self, model: Classifier, loader: Loader, cast: Autocast) -> float:
        return float(ious(model, loader, len(self.classes), cast).nanmean())

    def measures(
        self, model: Classifier, features: Tensor, loader: Loader, cast: Autocast
    ) -> dict[str, float]:
        each = ious(model, loader, len(self.classes), cast)
        named = zip(self.classes, each.tolist(), strict=True)
        return {self.metric: float(each.nanmean())} | {f"iou_{name}": iou for name, iou in named}
