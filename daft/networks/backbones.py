"""Pretrained networks as feature extractors: from a checkpoint, key by key, to features."""

import difflib
import socket
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies

import timm
import torch
from huggingface_hub import constants as hub
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

from daft.batchnorm import batchnorm_layers
from daft.common.errors import UserError
from daft.common.files import checksum
from daft.config.schema import BackboneConfig
from daft.networks.checkpoints import (
    _first_line,
    _load_exactly,
    _read,
    _select,
    checkpoint_path,
    fingerprint,
)


class FeatureExtractor(nn.Module):
    """A network without its head, normalisation built in: images to features [B, num_features]."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, num_features: int, cfg: BackboneConfig) -> None:
        super().__init__()
        self.network, self.num_features, self.input_size = network, num_features, cfg.input_size
        self.register_buffer("mean", torch.tensor(cfg.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(cfg.std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Any:
        """images: uint8, or floats in [0, 1], [B, 3, H, W] in RGB."""
        return self.network(self.normalised(images))

    def normalised(self, images: Tensor) -> Tensor:
        """Images as the network was pretrained on them."""
        if images.dtype == torch.uint8:
            images = images.to(self.mean.dtype) / 255
        return (images - self.mean) / self.std


class Report(NamedTuple):
    """What was loaded, and what was left in the checkpoint on purpose."""

    weights: str
    """sha256 of the checkpoint, or where else the weights are from"""
    loaded: int
    """tensors"""
    dropped: list[str]
    """names below the prefix, of the pretraining head"""
    outside: int
    """entries without the prefix: other networks in the same file"""

    def __str__(self) -> str:
        dropped = f"{len(self.dropped)} dropped" + (f" ({', '.join(self.dropped)})" if self.dropped else "")
        return f"{self.loaded} tensors loaded, {dropped}, {self.outside} outside the prefix; {self.weights}"


def load(cfg: BackboneConfig) -> FeatureExtractor:
    """The configured network in test mode with its pretrained weights, in float32 on the CPU.

    Raises UserError if the model is unknown, has no BN or features of another width than configured,
    or if the checkpoint is absent, fails its checksum, or does not match the network key by key and
    shape by shape.
    """
    if cfg.weights == "hub":
        _require_hub(cfg.model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # weights=random is one network, whatever the run's seed
        network = _create(cfg, pretrained=cfg.weights == "hub")
    if not batchnorm_layers(network):
        raise UserError(
            f"backbone.model={cfg.model} has no batch-norm layer; these methods need a network that has"
        )
    if cfg.weights == "file":
        fingerprint(cfg)  # for its check of the checksum
        path = checkpoint_path(cfg)
        _load_exactly(network, _select(_read(path, cfg), cfg, path).state, path, cfg.prefix)
    expected = resolve_model_data_config(network)
    for key, given in (("mean", cfg.mean), ("std", cfg.std)):
        if cfg.weights == "hub" and not torch.allclose(torch.tensor(given), torch.tensor(expected[key])):
            right = ",".join(f"{value:g}" for value in expected[key])
            raise UserError(
                f"backbone.{key}={list(given)}: {cfg.model} was pretrained with another; "
                f"use backbone.{key}=[{right}]"
            )
    try:
        with torch.no_grad():
            features = network.eval()(torch.zeros(1, *expected["input_size"]))
    except RuntimeError as error:
        raise UserError(f"backbone.model={cfg.model} takes no RGB images: {_first_line(error)}") from error
    if features.ndim != 2:
        raise UserError(
            f"backbone.model_args={cfg.model_args}: features have {features.ndim - 1} dimensions, not 1"
        )
    if cfg.num_features not in (None, features.shape[1]):
        raise UserError(
            f"backbone.num_features={cfg.num_features}: the features of {cfg.model} with "
            f"model_args={cfg.model_args} are {features.shape[1]} wide"
        )
    return FeatureExtractor(network, features.shape[1], cfg).eval()


def untrained(cfg: BackboneConfig) -> FeatureExtractor:
    """The configured network with random weights, for weights that are loaded into it afterwards."""
    kept = ("name", "model", "model_args", "mean", "std", "num_features", "input_size")
    return load(BackboneConfig(weights="random", **{key: getattr(cfg, key) for key in kept}))


def _create(cfg: BackboneConfig, pretrained: bool) -> nn.Module:
    """timm's network without its head; raises UserError if timm does not make one of this."""
    arguments: dict[str, Any] = {"num_classes": 0} | cfg.model_args
    try:
        return timm.create_model(cfg.model, pretrained=pretrained, **arguments)
    except Exception as error:  # timm raises RuntimeError for names, TypeError for arguments, …
        hint = _similar_models(cfg.model) if not timm.is_model(cfg.model) else ""
        raise UserError(f"backbone.model={cfg.model}: {_first_line(error)}{hint}") from error


def report(cfg: BackboneConfig) -> Report:
    """Load the network and say what was taken and what was left; raises UserError as load() does."""
    tensors = len(load(cfg).network.state_dict())
    if cfg.weights != "file":
        return Report(fingerprint(cfg), tensors, [], 0)
    path = checkpoint_path(cfg)
    found = _select(_read(path, cfg), cfg, path)
    return Report(checksum(path), len(found.state), found.dropped, found.outside)


def _require_hub(model: str) -> None:
    """Fail at once without a network; the hub's client would retry for most of a minute."""
    if hub.HF_HUB_OFFLINE or getproxies().get("https"):
        return  # the client reads its cache and says so if there is nothing in it, or asks the proxy
    endpoint = urlsplit(hub.ENDPOINT)
    try:
        socket.create_connection((endpoint.hostname, endpoint.port or 443), timeout=5).close()
    except OSError:
        raise UserError(
            f"backbone.weights=hub: no connection to {endpoint.netloc} for {model}; with the weights in "
            "the hub's cache set HF_HUB_OFFLINE=1, or use weights=file with a checkpoint"
        ) from None


def _similar_models(name: str) -> str:
    similar = difflib.get_close_matches(name, timm.list_models(), n=5)
    return f"; timm has {', '.join(similar)}" if similar else ""
