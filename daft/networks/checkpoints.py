"""Checkpoints: found, read without running what is in them, and loaded key by key, all or nothing."""

import hashlib
import re
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from daft.common.errors import UserError, first_line, join_first
from daft.common.files import checksum, digest
from daft.config.schema import BackboneConfig
from daft.networks import builders, torchscript

PACKAGE = "package:"
"""Prefix of checkpoints that are part of this package."""


class LoadReport(NamedTuple):
    """What was loaded into a network, and what was left in the checkpoint on purpose."""

    origin: str
    """sha256 of the checkpoint, or where else the weights are from"""
    loaded: int
    """tensors"""
    dropped: list[str]
    """names after the prefix, of the pretraining head"""
    outside: int
    """entries without the prefix: other networks in the same file"""

    def __str__(self) -> str:
        dropped = f"{len(self.dropped)} dropped" + (f" ({', '.join(self.dropped)})" if self.dropped else "")
        return f"{self.loaded} tensors loaded, {dropped}, {self.outside} outside the prefix; {self.origin}"


def path(cfg: BackboneConfig) -> Path:
    """The checkpoint's file; raises UserError if it is not there."""
    assert cfg.checkpoint is not None
    if cfg.checkpoint.startswith(PACKAGE):
        file = Path(str(resources.files("daft.networks") / "weights" / cfg.checkpoint.removeprefix(PACKAGE)))
    else:
        file = Path(cfg.checkpoint).expanduser()
    if not file.is_file():
        fetch = f"fetch it with python scripts/prepare.py backbone={cfg.name}"
        mend = fetch if cfg.urls else "put it there"
        raise UserError(f"backbone.checkpoint: there is no file {file}; {mend}, or set backbone.checkpoint")
    return file


def fingerprint(cfg: BackboneConfig) -> str:
    """What identifies the weights: for a checkpoint its sha256 and the part that is read, else their source.

    Weights that a function of yours makes are known by what they are: `state_fingerprint`. Raises UserError
    if the checkpoint is not there or fails its checksum, and as `builders.build`.
    """
    if cfg.source == "import" and cfg.weights != "file":
        return f"{cfg.weights}:{state_fingerprint(builders.build(cfg, pretrained=True))}"
    if cfg.weights == "hub":
        entry = timm.get_pretrained_cfg(cfg.model)
        return f"hub:{entry.hf_hub_id}:{entry.tag}:{entry.url}" if entry else "hub"
    if cfg.weights == "random":
        return "random"
    content = checksum(_checked_path(cfg), "sha256").removeprefix("sha256:")
    part = f"{cfg.wrapper or ''}/{cfg.prefix}"  # MoCo's file holds two encoders
    if cfg.rename:
        # In their order: the first that matches counts, of the names that are not dropped.
        part += f"/{digest([list(cfg.rename.items()), sorted(cfg.drop)])}"
    return content if part == "/" else f"{content}:{part}"


def state_fingerprint(network: nn.Module) -> str:
    """sha256 of the name, type, shape and values of every tensor in the state dict."""
    content = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        content.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        content.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    return content.hexdigest()


def load_into(network: nn.Module, cfg: BackboneConfig) -> LoadReport:
    """Copy the checkpoint into the network: every key and every shape must match, or nothing is copied.

    Raises UserError if the checkpoint is not there, fails its checksum, does not load or does not fit.
    """
    file = _checked_path(cfg)
    entries = _read(file, cfg)
    below = {k.removeprefix(cfg.prefix): value for k, value in entries.items() if k.startswith(cfg.prefix)}
    dropped = [key for key in below if key.startswith(tuple(cfg.drop))]
    kept = {key: value for key, value in below.items() if key not in dropped}
    if not any(isinstance(value, Tensor) for value in kept.values()):
        inner = [key for key, value in entries.items() if isinstance(value, dict)]
        raise UserError(
            f"backbone.checkpoint: nothing in {file} would be loaded with prefix={cfg.prefix!r} and "
            f"drop={cfg.drop}; its keys begin {join_first(list(entries))}"
            + (f"; set backbone.wrapper to {' or '.join(inner)}" if inner and not cfg.wrapper else "")
        )
    state: dict[str, Any] = {}
    for key, value in kept.items():
        if (name := _renamed(key, cfg.rename)) in state:
            raise UserError(f"backbone.rename: {key} and another entry of {file} both become {name}")
        state[name] = value
    _require_match(network.state_dict(), state, file, cfg.prefix)
    network.load_state_dict(state)
    return LoadReport(checksum(file), len(state), dropped, len(entries) - len(below))


def _checked_path(cfg: BackboneConfig) -> Path:
    file = path(cfg)
    if cfg.checksum and not (found := checksum(file, cfg.checksum)).startswith(cfg.checksum):
        raise UserError(
            f"backbone.checkpoint: {file} has {found}, not {cfg.checksum}; the file is damaged or another one"
        )
    return file


def _read(file: Path, cfg: BackboneConfig) -> dict[str, Any]:
    try:
        if file.suffix == ".safetensors":
            state = safetensors.torch.load_file(file)
        elif torchscript.is_archive(file):
            state = torchscript.read_state_dict(file)
        else:
            state: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"backbone.checkpoint: {file} does not load ({first_line(error).split('. ')[0]}); "
            "expected safetensors, a torch file of plain tensors (weights_only), or a TorchScript archive"
        ) from error
    if cfg.wrapper is not None:
        if not isinstance(state, dict) or cfg.wrapper not in state:
            keys = ", ".join(map(str, list(state)[:8])) if isinstance(state, dict) else type(state)
            raise UserError(f"backbone.wrapper={cfg.wrapper}: {file} has no such key; it has {keys}")
        state = state[cfg.wrapper]
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise UserError(f"backbone.checkpoint: {file} holds no state dict but {type(state).__name__}")
    return state


def _renamed(key: str, rename: dict[str, str]) -> str:
    for pattern, name in rename.items():
        try:
            if match := re.fullmatch(pattern, key):
                return match.expand(name)
        except (re.error, IndexError) as error:
            raise UserError(f"backbone.rename: {pattern!r} to {name!r}: {error}") from error
    return key


def _require_match(expected: dict[str, Tensor], state: dict[str, Any], file: Path, prefix: str) -> None:
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
            f"backbone.checkpoint: {file} does not fit the network"
            + "".join(
                f"\n  {what} ({len(keys)}): {join_first(keys)}" for what, keys in problems.items() if keys
            )
            + (f"\n  {_remedy(missing, unexpected, prefix)}" if missing or unexpected else "")
        )


def _remedy(missing: list[str], unexpected: list[str], prefix: str) -> str:
    """What to set so that every name fits, if a longer prefix and dropping the rest are enough."""
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
