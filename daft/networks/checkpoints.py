"""Checkpoints: found, read without running what is in them, and loaded key by key, all or nothing."""

import re
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from daft.common.errors import UserError, some
from daft.common.files import checksum, digest
from daft.config.schema import BackboneConfig
from daft.networks import torchscript

PACKAGE = "package:"
"""Prefix of checkpoints that are part of this package."""


def checkpoint_path(cfg: BackboneConfig) -> Path:
    """The checkpoint's file; raises UserError if it is not there."""
    assert cfg.checkpoint is not None
    if cfg.checkpoint.startswith(PACKAGE):
        path = Path(str(resources.files("daft.networks") / "weights" / cfg.checkpoint.removeprefix(PACKAGE)))
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


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
