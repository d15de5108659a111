"""A backbone and the head on its features."""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from daft.networks.backbones import FeatureExtractor


class Classifier(nn.Module):
    """Logits [B, K] = head(backbone(images)): g_w(f_θ(x)) in the paper."""

    def __init__(self, backbone: FeatureExtractor, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> Tensor:
        """images: as `FeatureExtractor` takes them."""
        return self.head(self.backbone(images))


def make_head(num_features: int, hidden: Sequence[int], num_classes: int) -> nn.Sequential:
    """Linear layers with ReLUs between, in torch's default random initialisation."""
    widths = [num_features, *hidden, num_classes]
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        if i:
            layers[f"relu{i}"] = nn.ReLU()
        layers[f"linear{i + 1}"] = nn.Linear(inputs, outputs)
    return nn.Sequential(layers)
