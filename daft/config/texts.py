"""Names that look like numbers: where the schema takes only text, 2018, 01, no and 1e3 are that."""

import re
from collections import deque
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import yaml

STR = "tag:yaml.org,2002:str"
NULL = "tag:yaml.org,2002:null"
NOT_TEXT = {f"tag:yaml.org,2002:{name}" for name in ("bool", "int", "float")}

TOKEN = re.compile(
    r"""'(?:[^'\\]|\\.)*' | "(?:[^"\\]|\\.)*" | \$\{[^}]*\} | [\[\]{}(),:]
    | (?:\\. | \$(?!\{) | [^\[\]{}(),:'"\\$])+""",
    re.VERBOSE | re.DOTALL,
)
"""Of a value on the command line: quoted text, an interpolation, a sign of Hydra's grammar, anything else."""

WORD = re.compile(
    r"""[+-]?(\d[\d_]*\.?|\d*\.\d[\d_]*)(e[+-]?\d[\d_]*)? | [+-]?(inf|nan) | true | false | null
    | (?=.*[^\w\s/+.$%*@?|:-])[^'"()\\]+""",
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)
"""What Hydra's grammar takes for something else than text, or for nothing at all."""

ESCAPED = re.compile(r"[\\()\[\]{}:=, \t]")
"""What stands behind a backslash where there are no quotes."""


def at(path: str, kind: Any) -> Any:
    """The type at a dotted path below this type; None if the schema has no such key."""
    for name in path.split("."):
        kind = below(kind, name)
    return kind


def is_text(path: str, kind: Any) -> bool:
    """Whether only text can stand at a dotted path below this type."""
    return plain(at(path, kind)) is str


def below(kind: Any, name: str) -> Any:
    """The type of a key, or of an item, of this type; None if it has none."""
    kind = plain(kind)
    if is_dataclass(kind):
        return next((f.type for f in fields(kind) if f.name == name), None)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is dict:
        return arguments[1]
    return arguments[0] if origin in (list, tuple) else None


def plain(kind: Any) -> Any:
    """The type without what annotates it, and without null; None for several."""
    while (origin := get_origin(kind)) in (Annotated, UnionType, Union):
        kinds = [each for each in get_args(kind) if each is not NoneType]
        kind = kinds[0] if origin is Annotated or len(kinds) == 1 else None
    return kind


def as_text(value: Any, kind: Any) -> Any:
    """Plain data with whole numbers as text where `kind` takes only text: Hydra's functions give some.

    A mapping of users' own names that is null is empty.
    """
    if value is None and get_origin(plain(kind)) is dict:
        return {}
    if isinstance(value, dict):
        return {str(key): as_text(each, below(kind, str(key))) for key, each in value.items()}
    if isinstance(value, list):
        return [as_text(each, below(kind, "")) for each in value]
    return str(value) if type(value) is int and plain(kind) is str else value


def keep_spelling(node: yaml.Node, kind: Any, *, in_list: bool = False) -> yaml.Node:
    """A node of YAML whose plain values are the text that they are spelled as, where `kind` takes only text.

    `null` is text where it can be nothing else: as a key, or in a list.
    """
    if isinstance(node, yaml.MappingNode):
        named = get_origin(plain(kind)) is dict
        for i, (key, value) in enumerate(node.value):
            merged = key.tag == "tag:yaml.org,2002:merge"
            kept = keep_spelling(value, kind if merged else below(kind, str(key.value)))
            node.value[i] = keep_spelling(key, str, in_list=True) if named and not merged else key, kept
    elif isinstance(node, yaml.SequenceNode):
        node.value[:] = [keep_spelling(item, below(kind, ""), in_list=True) for item in node.value]
    elif (
        isinstance(node, yaml.ScalarNode)
        and (node.style is None and plain(kind) is str)
        and (node.tag in NOT_TEXT or (in_list and node.tag == NULL and node.value))
    ):
        return yaml.ScalarNode(STR, node.value, node.start_mark, node.end_mark)
    return node


def quote(value: str, kind: Any, *, is_option: bool = False) -> list[str]:
    """The values of a sweep on the command line, or the only one, with quotes where Hydra would not see text.

    is_option: of a group, so that `null` is text too. What is not complete stays as it is.
    """
    tokens = deque(TOKEN.findall(value))
    try:
        if "".join(tokens) != value:
            raise ValueError
        values = [_element(tokens, kind, is_option)]
        while tokens:
            if tokens.popleft() != ",":
                raise ValueError
            values.append(_element(tokens, kind, is_option))
    except (ValueError, IndexError, RecursionError):  # Hydra says what is wrong with it
        return [value]
    return values


def escape(name: str) -> str:
    """A name as Hydra's grammar takes it as a key of a dict."""
    return ESCAPED.sub(r"\\\g<0>", name)


def _element(tokens: deque[str], kind: Any, in_list: bool) -> str:
    """The next value, taken from `tokens`; raises IndexError or ValueError if it is not complete."""
    text = tokens.popleft() if tokens[0].isspace() else ""
    if tokens[0] == "[":
        text += tokens.popleft()
        while tokens[0] != "]":
            text += tokens.popleft() if tokens[0] == "," else _element(tokens, below(kind, ""), True)
        return text + tokens.popleft()
    if tokens[0] == "{":
        text += tokens.popleft()
        while tokens[0] != "}":
            if tokens[0] == "," or tokens[0].isspace():
                text += tokens.popleft()
                continue
            name = tokens.popleft()
            if tokens[0].isspace():
                tokens.popleft()
            if tokens.popleft() != ":":
                raise ValueError
            if name[0] in "'\"":  # the grammar has no quotes around a key
                name = escape(name[1:-1])
            text += f"{name}:{_element(tokens, below(kind, name.strip()), False)}"
        return text + tokens.popleft()
    depth = 0
    while tokens and (depth or tokens[0] not in (",", "]", "}")):
        depth += {"(": 1, ")": -1}.get(tokens[0], 0)
        text += tokens.popleft()
    if not text:
        raise ValueError
    word = text.strip()
    if plain(kind) is not str or "${" in word or (word.lower() == "null" and not in_list):
        return text
    return text.replace(word, f"'{word}'") if WORD.fullmatch(word) else text
