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

PART = "part"
"""The group of what is added to a method: it has no default, and several options make a list."""

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
    behind `dataset.root=`, takes names such as 2018 or 1e3 for numbers, and has no keys like `ood.1e3.path`:
    these become `{1e3: {path: …}}`. It merges mappings: `dataset.ood={}` becomes null, which is none.
    """
    rewritten: list[str] = []
    nested: dict[str, list[Tree]] = {}  # by key: the values of a sweep, or the only one
    for override in overrides:
        if override == "sweep=null":  # Hydra takes no null for a group
            rewritten.append("~sweep")
            continue
        if override.lstrip("+") == f"{PART}=null":
            continue
        sign, key, values = _parts(override)
        if key and (split := _unreadable(key.split("."))):
            above, names = ".".join(key.split(".")[:split]), key.split(".")[split:]
            trees = nested.get(above, [{}])
            nested[above] = [_grown(tree, names, value) for tree in trees for value in values]
        else:
            rewritten.append(f"{sign}{key}={','.join(values)}" if key else override)
    # With + they are no other value of a key that is given with ++.
    return [*rewritten, *(f"+{key}={','.join(map(_text, trees))}" for key, trees in nested.items())]


Tree = dict[str, "Tree | str"]


def _parts(override: str) -> tuple[str, str, list[str]]:
    """Sign, key and values of an override; no key if there is nothing to change of it."""
    if override.lstrip("+").startswith("="):
        raise UserError(f"{override!r}: no key; write key=value, as in method=ft or seed=1")
    match = OVERRIDE.fullmatch(override)
    if match is None:
        return "", "", []
    sign, key, value = match.groups()
    if HOME.fullmatch(value):
        value = "'{}'".format(str(Path(value).expanduser()).replace("'", r"\'"))
    if "/" in key or (CONF / key).is_dir():  # a group
        values = texts.quote(value, list[str] if key == PART else str, is_option=True)
        if key == PART:
            sign = sign or "+"
            _require_parts_once(values)
        return sign, key, values
    if key.split(".")[0] not in SECTIONS or "." not in key:
        return sign, key, [value]
    kind = texts.at(key, Config)
    if value == "{}" and get_origin(texts.plain(kind)) is dict:  # merged, it would change nothing
        return sign or "++", key, ["null"]
    return sign or "++", key, texts.quote(value, kind)


def _require_parts_once(values: list[str]) -> None:
    for value in values:
        names = [name.strip(" '\"") for name in value.strip().strip("[]").split(",")]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UserError(f"part={value}: {twice} stands there twice; a method has each part once")


def _unreadable(path: list[str]) -> int:
    """Where in a key a user's own name stands that Hydra's grammar does not take; 0 for nowhere."""
    for i, name in enumerate(path):
        if get_origin(texts.plain(texts.at(".".join(path[:i]), Config))) is dict and not NAME.fullmatch(name):
            return i
    return 0


def _grown(tree: Tree, names: list[str], value: str) -> Tree:
    """The tree with this value at a path."""
    first, *others = names
    below = tree.get(first, {})
    return tree | {
        first: _grown(below if isinstance(below, dict) else {}, others, value) if others else value
    }


def _text(tree: Tree | str) -> str:
    """A tree as Hydra's grammar has it."""
    if isinstance(tree, str):
        return tree
    return "{" + ", ".join(f"{texts.escape(name)}: {_text(below)}" for name, below in tree.items()) + "}"
