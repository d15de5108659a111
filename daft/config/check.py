"""From what was composed to a typed configuration, and what is said of a key or value that makes no sense."""

import difflib
import re
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from pydantic import TypeAdapter, ValidationError

from daft.common.errors import ConfigError, first_line
from daft.config import texts
from daft.config.schema import Config

if TYPE_CHECKING:
    from omegaconf import DictConfig

T = TypeVar("T")

LONGEST = 200
"""Characters of a value that a message shows."""


def validate(cfg: "DictConfig") -> Config:
    """The composed configuration, typed and checked; raises ConfigError for the first bad key."""
    return _typed(cfg, Config, [])


def validate_section(cfg: "DictConfig", key: str, kind: type[T]) -> T:
    """One section of a composed configuration as its dataclass `kind`; raises as `validate` does."""
    return _typed(cfg[key], kind, [key])


def _typed(cfg: "DictConfig", kind: type[T], path: list[str]) -> T:
    # Hydra's; a finished run that is opened again needs neither.
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except (OmegaConfBaseException, RecursionError) as error:
        raise composition_error(error) from None
    try:
        return TypeAdapter(kind).validate_python(texts.as_text(plain, kind))
    except ValidationError as error:
        raise _config_error(error, path) from None


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as plain data, ready for JSON."""
    return TypeAdapter(Config).dump_python(config, mode="json")


def composition_error(error: Exception) -> ConfigError:
    """What OmegaConf says of a value that cannot be had, in the words of a user."""
    text = first_line(error)
    key = getattr(error, "full_key", None) or "configuration"
    if missing := re.search(r"Missing mandatory value: (\S+)$", text):
        key = missing[1] if "${" in text or "interpolation" in text else key
        return ConfigError(key, f"has no default; give it, as {key}=…")
    if null := re.search(r"interpolation '\$\{([\w.]+)\}': Incompatible value 'None'", text):
        return ConfigError(null[1], "null is not allowed")
    if section := re.search(r"node `([\w.]+)` is not a container and thus cannot contain `(\w+)`", text):
        return ConfigError(
            section[1], f"has keys of its own; set one of them, as {section[1]}.{section[2]}=…"
        )
    if isinstance(error, RecursionError) or "Recursive interpolation" in text:
        return ConfigError(key, "its value is, by way of ${…}, itself")
    if absent := re.search(r"Environment variable '(.*)' not found", text):
        return ConfigError(key, f"there is no environment variable {absent[1]!r}")
    if absent := re.search(r"Interpolation key '(.*)' not found", text):
        return ConfigError(key, f"${{{absent[1]}}} names no key of the configuration")
    return ConfigError(key, text)


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
    problem = f"{_value(first['input'])} is not allowed: {message[0].lower()}{message[1:]}"
    if first["type"] == "string_type" and isinstance(first["input"], bool | float):
        problem += f"; a name that looks like this needs quotes: \"{key}='{first['input']}'\""
    return ConfigError(key, problem)


def shown(text: str) -> str:
    """A text as a message shows it: cut if it is long."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _value(value: Any) -> str:
    """A value as YAML and the command line have it."""
    is_word = value is None or isinstance(value, bool)
    return "null" if value is None else str(value).lower() if is_word else shown(repr(value))


def _keys_at(path: list[str]) -> list[str]:
    """The allowed keys of the section at this path."""
    node: Any = Config
    for name in path:
        node = _types(node)[name] if is_dataclass(node) else get_args(node)[-1]
        if isinstance(node, UnionType):  # a section that may be null
            node = get_args(node)[0]
    return [*_types(node)]


def _types(section: Any) -> dict[str, Any]:
    """The types of a dataclass's fields, by key."""
    return {f.name: f.type for f in fields(section)}
