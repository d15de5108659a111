"""DeepLabv3+ around a pretrained backbone (Table 3)."""

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from segmentation_models_pytorch.decoders.deeplabv3.decoder import ASPP, SeparableConv2d
from torch import Tensor, nn

from daft.common.errors import UserError
from daft.config.schema import BackboneConfig, SegmentationConfig
from daft.networks.backbones import FeatureExtractor
from daft.networks.classifier import Classifier

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
            network = dense.get_submodule("model")
            network.load_state_dict(_of_stages(plain.network, network))  # key by key, as it was loaded
        except RuntimeError as error:
            raise UserError(f"{name} is another network with dilated stages ({error})") from error
        super().__init__(dense, dense.out_channels[-1], cfg)
        self.channels, self.output_stride = dense.out_channels, output_stride

    def forward(self, images: Tensor) -> list[Tensor]:
        """images: as `FeatureExtractor` takes them."""
        height, width = images.shape[-2:]
        missing = (0, -width % self.output_stride, 0, -height % self.output_stride)
        return self.network(F.pad(self.normalised(images), missing))


def _of_stages(plain: nn.Module, dense: nn.Module) -> dict[str, Tensor]:
    """The weights of a network without those behind its last stage, as EfficientNet's last convolution is."""
    children = [f"{name}." for name, _ in plain.named_children()]
    shared = [
        i for i, child in enumerate(children) if any(key.startswith(child) for key in dense.state_dict())
    ]
    behind = tuple(children[max(shared, default=len(children)) + 1 :])
    return {key: value for key, value in plain.state_dict().items() if not key.startswith(behind)}


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
