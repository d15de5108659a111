"""Networks as timm or a function of yours makes them, before a checkpoint is loaded."""

import difflib
import importlib
import os
import sys
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from daft.batchnorm import batchnorm_layers
from daft.common.errors import UserError, first_line
from daft.config.schema import BackboneConfig


def build(cfg: BackboneConfig, *, pretrained: bool) -> nn.Module:
    """The configured network; `pretrained` asks for the hub's weights where they are configured.

    Initial weights do not depend on the run's seed. Raises UserError if there is no such model or function,
    it does not take its arguments or returns no network with batch-norm layers, or the hub does not answer.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = _imported(cfg) if cfg.source == "import" else _from_timm(cfg, pretrained)
    if not batchnorm_layers(network):
        raise UserError(
            f"backbone.model={cfg.model} has no batch-norm layer; these methods need a network that has"
        )
    return network


def _from_timm(cfg: BackboneConfig, pretrained: bool) -> nn.Module:
    pretrained = pretrained and cfg.weights == "hub"
    if pretrained:
        _require_hub(cfg.model)
    import timm  # a second, which a finished run does without

    arguments: dict[str, Any] = {"num_classes": 0} | cfg.model_args
    try:
        return timm.create_model(cfg.model, pretrained=pretrained, **arguments)
    except Exception as error:  # timm raises RuntimeError for names, TypeError for arguments, …
        models = [] if timm.is_model(cfg.model) else timm.list_models()
        similar = difflib.get_close_matches(cfg.model, models, n=5)
        hint = f"; timm has {', '.join(similar)}" if similar else ""
        given = f" with model_args={cfg.model_args}" if cfg.model_args else ""
        raise UserError(f"backbone.model={cfg.model}{given}: {first_line(error)}{hint}") from error


def _imported(cfg: BackboneConfig) -> nn.Module:
    """What the function `backbone.model` returns, in float32 on the CPU."""
    module, _, function = cfg.model.rpartition(".")
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)  # as `python -m` does; a script has its own folder there
    doing = f"looking for it in {here} and on Python's path"
    try:
        make = getattr(importlib.import_module(module), function)
        doing = f"calling it with model_args={cfg.model_args}"
        network = make(**cfg.model_args)
    except Exception as error:  # the user's code may raise anything
        what = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"backbone.model={cfg.model}: {doing} raised {what}") from error
    if not isinstance(network, nn.Module):
        raise UserError(
            f"backbone.model={cfg.model} returns a {type(network).__name__}, not a torch.nn.Module"
        )
    tensors = network.state_dict(keep_vars=True).values()
    if len(set(map(id, tensors))) < len(tensors):  # safetensors, which runs are saved in, refuses them
        raise UserError(f"backbone.model={cfg.model}: layers share a tensor; each needs its own")
    try:
        return deepcopy(network).to("cpu", torch.float32)  # it may hand out one object again and again
    except Exception as error:
        what = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(
            f"backbone.model={cfg.model} returns a network that cannot be copied ({what})"
        ) from error


def _require_hub(model: str) -> None:
    """Fail at once without a network; the hub's client would retry for most of a minute."""
    import requests
    from huggingface_hub import constants as hub

    try:
        if not hub.HF_HUB_OFFLINE:  # else the client reads its cache, and says so if there is nothing in it
            requests.head(hub.ENDPOINT, timeout=5)
    except (requests.exceptions.SSLError, requests.exceptions.ProxyError):
        return  # the hub's client may have certificates and ways of its own
    except requests.RequestException:
        raise UserError(
            f"backbone.weights=hub: no connection to {hub.ENDPOINT} for {model}; with the weights in "
            "the hub's cache set HF_HUB_OFFLINE=1, or use weights=file with a checkpoint"
        ) from None
