"""Which settings would make a checkpoint fit a network, for messages."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from daft.config.schema import BackboneConfig
from daft.networks import pickles

MOST_PARTS = 10_000
"""Parts of a checkpoint that are looked at."""

COUNTER = ".num_batches_tracked"
"""End of the name of BN's counter of batches: old checkpoints lack it, and it moves no number."""

PLAIN = re.compile(r"(?!(null|true|false|nan|inf)$)([a-z_][\w.-]*)?", re.IGNORECASE)
"""What Hydra takes for text without quotes."""

STATISTICS = (".running_mean", ".running_var")
"""Ends of the names of BN's running statistics."""


class _Fit(NamedTuple):
    wrapper: str | None
    prefix: str
    drop: list[str]
    shapes: bool
    """whether they are right, too"""

    def words(self, cfg: BackboneConfig) -> str:
        """What to set that is not set yet."""
        settings: dict[str, str] = {}
        if self.wrapper != cfg.wrapper:
            settings["wrapper"] = "null" if self.wrapper is None else _as_text(self.wrapper)
        if self.prefix != cfg.prefix:
            settings["prefix"] = _as_text(self.prefix)
        if not {*self.drop} <= {*cfg.drop}:
            settings["drop"] = f"[{','.join(map(_as_text, self.drop))}]"
        words = [f"backbone.{key}={value}" for key, value in settings.items()]
        return " ".join(f'"{word}"' if "'" in word else word for word in words)


def advice(
    content: Any, expected: Mapping[str, Tensor], cfg: BackboneConfig, rename: Callable[[str], str]
) -> str:
    """What would make the names of a checkpoint fit those of a network; empty if nothing that is set would.

    rename: as the configuration translates a name after prefix and drop.
    """
    if fits := sorted(_fits(content, expected, rename), key=lambda fit: not fit.shapes):
        same = [fit.words(cfg) for fit in fits if fit.shapes == fits[0].shapes]
        if found := [words for words in dict.fromkeys(same) if words]:
            return f"the names would fit with {' or with '.join(found[:3])}"
    names = [name for _, part in parts(content) for name in part]
    saved = any(name.endswith(".weight") for name in names)
    if saved and not any(name.endswith(STATISTICS) for name in names):
        return "it has no running statistics of BN layers: save all of state_dict(), not the parameters alone"
    return ""


def _as_text(value: str) -> str:
    return value if PLAIN.fullmatch(value) else f"'{value}'"


def parts(content: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Everything in a checkpoint that has names, by its dotted path, the outer ones first."""
    queue, seen = [("", content)], set[int]()
    for path, value in queue:
        found = pickles.entries(value)
        if found is None or id(value) in seen or len(seen) == MOST_PARTS:
            continue
        seen.add(id(value))
        named = {name: part for name, part in found.items() if isinstance(name, str)}
        yield path, named
        inner = {name: part for name, part in named.items() if isinstance(part, dict)}
        queue += [(f"{path}.{name}" if path else name, part) for name, part in inner.items()]


def find(content: Any, path: str) -> Any:
    """The part of a checkpoint at a dotted path, whose names may have dots; KeyError if there is none."""
    found = pickles.entries(content) or {}
    if path in found:
        return found[path]
    for name, part in found.items():
        if isinstance(name, str) and path.startswith(f"{name}."):
            try:
                return find(part, path.removeprefix(f"{name}."))
            except KeyError:
                continue
    raise KeyError(path)


def _fits(content: Any, expected: Mapping[str, Tensor], rename: Callable[[str], str]) -> Iterator[_Fit]:
    needed = {name for name in expected if not name.endswith(COUNTER)}
    for path, part in parts(content):
        for prefix in _prefixes(part, len(needed)):
            below = [name.removeprefix(prefix) for name in part if name.startswith(prefix)]
            names = {name: rename(name) for name in below}
            if not needed <= {*names.values()}:
                continue
            kept = [name for name, renamed in names.items() if renamed in expected]
            surplus = [name for name in below if names[name] not in expected]
            drop = {_shortest(name, kept) for name in surplus}
            if None in drop or len({names[name] for name in kept}) < len(kept):
                continue
            shapes = (getattr(part[prefix + n], "shape", None) == expected[names[n]].shape for n in kept)
            yield _Fit(path or None, prefix, sorted(filter(None, drop)), all(shapes))


def _prefixes(names: Iterable[str], least: int) -> list[str]:
    """The dotted beginnings that so many names have, the empty one included."""
    counts = Counter(beginning for name in names for beginning in ("", *_beginnings(name)))
    return [beginning for beginning, count in counts.items() if count >= least]


def _beginnings(name: str) -> list[str]:
    """`a.`, `a.b.` of `a.b.c`."""
    words = name.split(".")
    return [".".join(words[:i]) + "." for i in range(1, len(words))]


def _shortest(name: str, kept: Sequence[str]) -> str | None:
    """The shortest beginning of a name, or itself, with which none begins that is kept."""
    for beginning in (*_beginnings(name), name):
        if not any(other.startswith(beginning) for other in kept):
            return beginning
    return None
