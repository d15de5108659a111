"""A network of four stages and a head, and what a part needs to be tried on it."""

import pytest
import torch
from torch import nn

from daft.config.schema import BackboneConfig
from daft.networks.backbones import FeatureExtractor
from daft.networks.classifier import Classifier, make_head

CONFIG = BackboneConfig(
    name="small", model="small", weights="random", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
)


def network() -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs in (3, 4, 4, 4):
        layers.append(nn.Sequential(nn.Conv2d(inputs, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.fixture
def model() -> Classifier:
    """Four stages of convolution and BN, and a linear head for three classes."""
    torch.manual_seed(0)
    return Classifier(FeatureExtractor(network(), 4, CONFIG), make_head(4, [], 3))


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Eight images and their classes."""
    torch.manual_seed(1)
    return torch.randint(256, (8, 3, 8, 8), dtype=torch.uint8), torch.arange(8) % 3
