"""Pretrained networks as feature extractors: normalisation inside, width of the features known."""

from typing import Any

import torch
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

from daft.common.errors import UserError, first_line
from daft.config.schema import BackboneConfig
from daft.networks import builders, checkpoints, soundness
from daft.networks.checkpoints import LoadReport

MAPS = 4
"""Dimensions of feature maps, [B, D, h, w]."""


class FeatureExtractor(nn.Module):
    """A network without its head, normalisation built in: images to features [B, num_features]."""

    mean: Tensor
    std: Tensor
    weights: LoadReport | None = None
    """what was loaded; None: nothing, or not yet"""

    def __init__(self, network: nn.Module, num_features: int, cfg: BackboneConfig) -> None:
        super().__init__()
        self.network, self.num_features, self.input_size = network, num_features, cfg.input_size
        self.register_buffer("mean", torch.tensor(cfg.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(cfg.std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Any:
        """images: uint8, or floats in [0, 1], [B, 3, H, W] in RGB; feature maps are averaged."""
        features = self.network(self.normalised(images))
        return features.mean((2, 3)) if features.ndim == MAPS else features

    def normalised(self, images: Tensor) -> Tensor:
        """Images with the mean and standard deviation of pretraining taken out."""
        if images.dtype == torch.uint8:
            images = images.to(self.mean.dtype) / 255
        return (images - self.mean) / self.std


def load(cfg: BackboneConfig) -> FeatureExtractor:
    """The configured network in test mode with its pretrained weights, in float32 on the CPU.

    Raises UserError as `builders.build` and `checkpoints.load_into`, and if the features are not vectors or
    not as wide as configured, or the hub's weights expect another normalisation.
    """
    network = builders.build(cfg, pretrained=True)
    if cfg.weights == "file":
        weights = checkpoints.load_into(network, cfg)
    else:
        soundness.require(network, network.state_dict(), f"backbone.model={cfg.model}")
        weights = LoadReport(checkpoints.fingerprint(cfg), len(network.state_dict()), [], 0)
        if cfg.source == "import" and not weights.origin.endswith(checkpoints.state_fingerprint(network)):
            raise UserError(
                f"backbone.model={cfg.model} has other weights each time; it must seed what it draws"
            )
    if cfg.weights == "hub":
        _require_normalisation(network, cfg)
    extractor = _extractor(network, cfg)
    extractor.weights = weights
    return extractor


def untrained(cfg: BackboneConfig) -> FeatureExtractor:
    """The configured network without pretrained weights, for weights that are loaded into it afterwards."""
    return _extractor(builders.build(cfg, pretrained=False), cfg)


def _require_normalisation(network: nn.Module, cfg: BackboneConfig) -> None:
    expected = resolve_model_data_config(network)
    for key, given in (("mean", cfg.mean), ("std", cfg.std)):
        if not torch.allclose(torch.tensor(given), torch.tensor(expected[key])):
            right = ",".join(f"{value:g}" for value in expected[key])
            raise UserError(
                f"backbone.{key}={list(given)}: {cfg.model} was pretrained with another; "
                f"use backbone.{key}=[{right}]"
            )


def _extractor(network: nn.Module, cfg: BackboneConfig) -> FeatureExtractor:
    """The network as a feature extractor, tried on one image."""
    name, only = f"backbone.model={cfg.model}", cfg.input_size
    size = resolve_model_data_config(network, {"input_size": (3, only, only)} if only else None)["input_size"]
    try:
        with torch.no_grad():
            features = network.eval()(torch.zeros(1, *size))
    except Exception as error:  # an imported network may raise anything
        hint = "" if only else "; backbone.input_size is the side of the only images that a network takes"
        raise UserError(
            f"{name} takes no RGB images of {size[1]} x {size[2]}: {first_line(error)}{hint}"
        ) from error
    # timm's networks pool unless they are told not to, which is then meant for something else.
    dimensions = (2, MAPS) if cfg.source == "import" else (2,)
    if not isinstance(features, Tensor) or features.ndim not in dimensions or len(features) != 1:
        found = tuple(features.shape) if isinstance(features, Tensor) else f"a {type(features).__name__}"
        right = "(1, D)" if cfg.source == "timm" else "(1, D) or maps (1, D, h, w)"
        raise UserError(
            f"{name} with model_args={cfg.model_args}: an image's features are {found}, not {right}"
        )
    if cfg.num_features not in (None, features.shape[1]):
        raise UserError(
            f"backbone.num_features={cfg.num_features}: the features of {cfg.model} with "
            f"model_args={cfg.model_args} are {features.shape[1]} wide"
        )
    return FeatureExtractor(network, features.shape[1], cfg).eval()
