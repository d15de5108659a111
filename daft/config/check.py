"""From what was composed to a typed configuration, and what is said of a key or value that makes no sense."""

import difflib
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from daft.common.errors import ConfigError
from daft.config.schema import Config

SECTIONS = [f.name for f in fields(Config) if f.name != "seed"]
"""Top-level keys that have keys below them."""


def rewrite_overrides(overrides: list[str]) -> list[str]:
    """Overrides as Hydra's grammar takes them, with keys that it passes on for the schema to judge.

    Hydra refuses a key that no file mentions; with ++ it passes, and the schema, which knows all
    keys and their types, accepts it or says what is allowed. It also has no word for a home folder,
    which no shell expands behind `dataset.root=`.
    """
    below_section = re.compile(rf"({'|'.join(SECTIONS)})\.[^=]*=")
    at_home = re.compile(r"([^=]+)=(~(?:/.*)?)")
    passed = []
    for override in overrides:
        if match := at_home.fullmatch(override):
            home = str(Path(match[2]).expanduser()).replace("'", r"\'")
            override = f"{match[1]}='{home}'"
        passed.append(f"++{override}" if below_section.match(override) else override)
    return passed


T = TypeVar("T")


def validate(cfg: DictConfig) -> Config:
    """The composed configuration, typed and checked; raises ConfigError for the first bad key."""
    return _typed(cfg, Config, [])


def validate_section(cfg: DictConfig, key: str, kind: type[T]) -> T:
    """One section of a composed configuration as its dataclass `kind`; raises as `validate` does."""
    return _typed(cfg[key], kind, [key])


def _typed(cfg: DictConfig, kind: type[T], path: list[str]) -> T:
    try:
        plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key, problem = error.full_key or "configuration", str(error.msg).splitlines()[0]
        if isinstance(error, MissingMandatoryValue):
            problem = f"has no default; give it, as {key}=…"
        raise ConfigError(key, problem) from None
    try:
        return TypeAdapter(kind).validate_python(plain)
    except ValidationError as error:
        raise _config_error(error, path) from None


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as plain data, ready for JSON."""
    return TypeAdapter(Config).dump_python(config, mode="json")


def _config_error(error: ValidationError, section: list[str]) -> ConfigError:
    first = error.errors()[0]
    path = [*section, *map(str, first["loc"])]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):  # raised by a __post_init__ above, which knows its own keys
        return ConfigError(".".join([*path, cause.key]), cause.problem)
    key = ".".join(path)
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        allowed = _keys_at(path[:-1])
        guess = difflib.get_close_matches(path[-1], allowed, n=1)
        hint = f"did you mean {guess[0]!r}? " if guess else ""
        return ConfigError(key, f"no such key; {hint}allowed: {', '.join(allowed)}")
    if first["type"] == "missing":
        return ConfigError(key, "missing; it has no default")
    message = first["msg"].removeprefix("Value error, ")
    return ConfigError(key, f"{first['input']!r} is not allowed: {message[0].lower()}{message[1:]}")


def _keys_at(path: list[str]) -> list[str]:
    """The allowed keys of the section at this path."""
    node: Any = Config
    for name in path:
        node = {f.name: f.type for f in fields(node)}[name] if is_dataclass(node) else get_args(node)[-1]
        if isinstance(node, UnionType):  # a section that may be null
            node = get_args(node)[0]
    return [f.name for f in fields(node)]
