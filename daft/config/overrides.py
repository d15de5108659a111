"""The command line as Hydra takes it: options ahead of overrides, and overrides that its grammar can read."""

import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import get_origin

from daft.common.errors import UserError
from daft.config import texts
from daft.config.options import CONF
from daft.config.schema import Config

SECTIONS = [f.name for f in fields(Config) if f.name != "seed"]
"""Top-level keys that have keys below them."""

TAKES_VALUE = re.compile(r"--?(config-(path|name|dir)|c[pnd]?|cfg|p|package|i|info|experimental-rerun)")
"""Hydra's options that are followed by a word."""

OVERRIDE = re.compile(r"(\+{0,2})([^=+~-][^=]*)=(.*)", re.DOTALL)
HOME = re.compile(r"~(/.*)?", re.DOTALL)
NAME = re.compile(r"[a-z_$][\w$-]*|0|[1-9]\d*", re.ASCII | re.IGNORECASE)
"""What Hydra's grammar takes between the dots of a key."""


def arrange(words: Sequence[str]) -> list[str]:
    """The words of a command line, options first, overrides rewritten; raises UserError for one without key.

    Hydra wants its options together and -m before the overrides; users put them anywhere.
    """
    options, overrides, rest = [], [], list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            overrides.append(word)
            continue
        options.append(word)
        if TAKES_VALUE.fullmatch(word) and rest and "=" not in rest[0]:
            options.append(rest.pop(0))
    return [*options, *rewrite_overrides(overrides)]


def rewrite_overrides(overrides: Sequence[str]) -> list[str]:
    """Overrides as Hydra's grammar takes them, with keys that it passes on for the schema to judge.

    Hydra refuses a key that no file mentions; with ++ it passes, and the schema, which knows all keys and
    their types, accepts it or says what is allowed. It has no word for a home folder, which no shell expands
    behind `dataset.root=`, and takes names such as 2018 or 1e3 for numbers.
    """
    return [_rewritten(override) for override in overrides]


def _rewritten(override: str) -> str:
    if override == "sweep=null":  # Hydra takes no null for a group
        return "~sweep"
    if override.lstrip("+").startswith("="):
        raise UserError(f"{override!r}: no key; write key=value, as in method=ft or seed=1")
    if (match := OVERRIDE.fullmatch(override)) is None:
        return override
    sign, key, value = match.groups()
    if HOME.fullmatch(value):
        value = "'{}'".format(str(Path(value).expanduser()).replace("'", r"\'"))
    if "/" in key or (CONF / key).is_dir():  # a group
        return f"{sign}{key}={','.join(texts.quote(value, str, is_option=True))}"
    path = key.split(".")
    if path[0] not in SECTIONS or not path[1:]:
        return f"{sign}{key}={value}"
    values = texts.quote(value, texts.at(key, Config))
    for i in range(1, len(path)):
        above = texts.at(".".join(path[:i]), Config)
        if get_origin(texts.plain(above)) is dict and not NAME.fullmatch(path[i]):
            key = ".".join(path[:i])
            for name in reversed(path[i:]):
                values = [f"{{{texts.escape(name)}: {value}}}" for value in values]
            break
    return f"{sign or '++'}{key}={','.join(values)}"
