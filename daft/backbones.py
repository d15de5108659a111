"""Pretrained networks as feature extractors: from a checkpoint, key by key, to features."""

import difflib
import re
import socket
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies

import safetensors.torch
import timm
import torch
from huggingface_hub import constants as hub
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

from daft import torchscript
from daft.batchnorm import batchnorm_layers
from daft.config import BackboneConfig
from daft.errors import UserError, some
from daft.files import checksum, digest

PACKAGE = "package:"
"""Prefix of checkpoints that are part of this package."""


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


def checkpoint_path(cfg: BackboneConfig) -> Path:
    """The checkpoint's file; raises UserError if it is not there."""
    assert cfg.checkpoint is not None
    if cfg.checkpoint.startswith(PACKAGE):
        path = Path(str(resources.files("daft") / "weights" / cfg.checkpoint.removeprefix(PACKAGE)))
    else:
        path = Path(cfg.checkpoint).expanduser()
    if not path.is_file():
        fetch = f"fetch it with python scripts/prepare.py backbone={cfg.name}"
        mend = fetch if cfg.urls else "put it there"
        raise UserError(f"backbone.checkpoint: there is no file {path}; {mend}, or set backbone.checkpoint")
    return path


def fingerprint(cfg: BackboneConfig) -> str:
    """What identifies the weights: the checkpoint's sha256, checked, and the part read; or their source."""
    if cfg.weights == "hub":
        entry = timm.get_pretrained_cfg(cfg.model)
        return f"hub:{entry.hf_hub_id}:{entry.tag}:{entry.url}" if entry else "hub"
    if cfg.weights == "random":
        return "random"
    path = checkpoint_path(cfg)
    if cfg.checksum and not (found := checksum(path, cfg.checksum)).startswith(cfg.checksum):
        raise UserError(
            f"backbone.checkpoint: {path} has {found}, not {cfg.checksum}; the file is damaged or another one"
        )
    content = checksum(path, "sha256").removeprefix("sha256:")
    part = f"{cfg.wrapper or ''}/{cfg.prefix}"  # MoCo's file holds two encoders
    if cfg.rename:
        # In their order: the first that matches counts, of the names that are not dropped.
        part += f"/{digest([list(cfg.rename.items()), sorted(cfg.drop)])}"
    return content if part == "/" else f"{content}:{part}"


def _read(path: Path, cfg: BackboneConfig) -> dict[str, Any]:
    try:
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        elif torchscript.is_archive(path):
            state = torchscript.read_state_dict(path)
        else:
            state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"backbone.checkpoint: {path} does not load ({_first_line(error).split('. ')[0]}); "
            "expected safetensors, a torch file of plain tensors (weights_only), or a TorchScript archive"
        ) from error
    if cfg.wrapper is not None:
        if not isinstance(state, dict) or cfg.wrapper not in state:
            keys = ", ".join(map(str, list(state)[:8])) if isinstance(state, dict) else type(state)
            raise UserError(f"backbone.wrapper={cfg.wrapper}: {path} has no such key; it has {keys}")
        state = state[cfg.wrapper]
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise UserError(f"backbone.checkpoint: {path} holds no state dict but {type(state).__name__}")
    return state


class _Selection(NamedTuple):
    state: dict[str, Any]
    dropped: list[str]
    outside: int


def _select(state: dict[str, Any], cfg: BackboneConfig, path: Path) -> _Selection:
    """The entries under the prefix, without the dropped ones, by the network's names."""
    below = {k.removeprefix(cfg.prefix): value for k, value in state.items() if k.startswith(cfg.prefix)}
    dropped = [key for key in below if key.startswith(tuple(cfg.drop))]
    kept = {key: value for key, value in below.items() if key not in dropped}
    if not any(isinstance(value, Tensor) for value in kept.values()):
        inner = [key for key, value in state.items() if isinstance(value, dict)]
        raise UserError(
            f"backbone.checkpoint: nothing in {path} would be loaded with prefix={cfg.prefix!r} and "
            f"drop={cfg.drop}; its keys begin {some(list(state))}"
            + (f"; set backbone.wrapper to {' or '.join(inner)}" if inner and not cfg.wrapper else "")
        )
    selected: dict[str, Any] = {}
    for key, value in kept.items():
        if (name := _renamed(key, cfg.rename)) in selected:
            raise UserError(f"backbone.rename: {key} and another entry of {path} both become {name}")
        selected[name] = value
    return _Selection(selected, dropped, len(state) - len(below))


def _renamed(key: str, rename: dict[str, str]) -> str:
    for pattern, name in rename.items():
        try:
            if match := re.fullmatch(pattern, key):
                return match.expand(name)
        except (re.error, IndexError) as error:
            raise UserError(f"backbone.rename: {pattern!r} to {name!r}: {error}") from error
    return key


def _load_exactly(network: nn.Module, state: dict[str, Any], path: Path, prefix: str) -> None:
    """Copy all entries or none; every key and every shape must match."""
    expected = network.state_dict()
    # Old checkpoints lack BN's counter of batches, which has no effect on what the network computes.
    missing = [key for key in expected if key not in state and not key.endswith(".num_batches_tracked")]
    unexpected = [key for key in state if key not in expected]
    misshapen = [
        f"{key} {_shape(state[key])} for {_shape(tensor)}"
        for key, tensor in expected.items()
        if key in state and _shape(state[key]) != _shape(tensor)
    ]
    problems = {"missing": missing, "unexpected": unexpected, "other shape": misshapen}
    if any(problems.values()):
        raise UserError(
            f"backbone.checkpoint: {path} does not fit the network"
            + "".join(f"\n  {what} ({len(keys)}): {some(keys)}" for what, keys in problems.items() if keys)
            + (f"\n  {_remedy(missing, unexpected, prefix)}" if missing or unexpected else "")
        )
    network.load_state_dict(state)


def _remedy(missing: list[str], unexpected: list[str], prefix: str) -> str:
    """What to set so that every name fits, if a further prefix and dropping the rest are enough."""
    deepest = max(missing, key=len, default="")
    prefixes = {k.removesuffix(deepest) for k in unexpected if k.endswith(deepest)} if deepest else {""}
    for further in sorted(prefixes):
        below = {k.removeprefix(further) for k in unexpected if k.startswith(further)}
        if below >= set(missing):
            rest = (k for k in below - set(missing) if not k.endswith(".num_batches_tracked"))
            drop = ",".join(sorted({"".join(k.partition(".")[:2]) for k in rest}))
            settings = [f"backbone.prefix={prefix}{further}"] * bool(further)
            return "the names would fit with " + " ".join(settings + [f"backbone.drop=[{drop}]"] * bool(drop))
    return "set backbone.prefix, drop or rename, or another backbone.model"


def _shape(value: Any) -> tuple[int, ...] | str:
    return tuple(value.shape) if isinstance(value, Tensor) else f"a {type(value).__name__}"


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


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
