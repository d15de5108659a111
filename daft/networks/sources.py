"""Networks without their heads and, but for the hub's, without pretrained weights."""

import difflib
from typing import Any

import requests
import timm
import torch
from huggingface_hub import constants as hub
from torch import nn

from daft.batchnorm import batchnorm_layers
from daft.common.errors import UserError, first_line
from daft.config.schema import BackboneConfig


def build(cfg: BackboneConfig, *, pretrained: bool) -> nn.Module:
    """The configured network; `pretrained` asks for the hub's weights where they are configured.

    Initial weights do not depend on the run's seed. Raises UserError if there is no such model, it does not
    take its arguments or has no batch-norm layer, or the hub does not answer.
    """
    pretrained = pretrained and cfg.weights == "hub"
    if pretrained:
        _require_hub(cfg.model)
    arguments: dict[str, Any] = {"num_classes": 0} | cfg.model_args
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            network = timm.create_model(cfg.model, pretrained=pretrained, **arguments)
        except Exception as error:  # timm raises RuntimeError for names, TypeError for arguments, …
            models = [] if timm.is_model(cfg.model) else timm.list_models()
            similar = difflib.get_close_matches(cfg.model, models, n=5)
            hint = f"; timm has {', '.join(similar)}" if similar else ""
            raise UserError(f"backbone.model={cfg.model}: {first_line(error)}{hint}") from error
    if not batchnorm_layers(network):
        raise UserError(
            f"backbone.model={cfg.model} has no batch-norm layer; these methods need a network that has"
        )
    return network


def _require_hub(model: str) -> None:
    """Fail at once without a network; the hub's client would retry for most of a minute."""
    try:
        if not hub.HF_HUB_OFFLINE:  # else the client reads its cache, and says so if there is nothing in it
            requests.head(hub.ENDPOINT, timeout=5)
    except requests.RequestException:
        raise UserError(
            f"backbone.weights=hub: no connection to {hub.ENDPOINT} for {model}; with the weights in "
            "the hub's cache set HF_HUB_OFFLINE=1, or use weights=file with a checkpoint"
        ) from None
