"""YAML that people write: what cannot be read is one line with the file, the line and the column."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from yaml.reader import Reader

from daft.common.errors import UserError, first_line
from daft.config import texts

MAX_BYTES = 1 << 22
MAX_DEPTH = 50
MAX_NODES = 100_000
"""Of one file, each alias counted as all that it stands for: a few bytes can stand for billions."""

PARSER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # PyYAML may be built without libyaml


def read(file: Path) -> str:
    """The text of a YAML file that is safe to load; raises UserError if it is not."""
    with file.open("rb") as opened:
        content = opened.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise UserError(f"{file}: more than {MAX_BYTES:,} bytes; a configuration is smaller")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{file} line {line}: byte {content[error.start]:#04x} is no UTF-8; save the file as UTF-8"
        ) from None
    if found := Reader.NON_PRINTABLE.search(text):
        line, column = text.count("\n", 0, found.start()), found.start() - text.rfind("\n", 0, found.start())
        raise UserError(
            f"{file} line {line + 1} column {column}: YAML takes no character {found[0]!a}; is it text?"
        )
    with errors_of(file):
        _require_bounded(text, file)
    return text


def load(file: Path, kind: Any = None) -> Any:
    """What a YAML file says, names as they are spelled where `kind` takes text; raises UserError."""
    text = read(file)
    with errors_of(file):
        return construct(yaml.SafeLoader(text), kind)


def construct(loader: yaml.SafeLoader, kind: Any) -> Any:
    """What a loader's text says, as `load`; raises MarkedYAMLError where a value does not fit its tag."""
    inner = loader.construct_object

    def located(node: yaml.Node, deep: bool = False) -> Any:
        try:
            return inner(node, deep)
        except (ValueError, TypeError, AttributeError) as error:  # of `!!int x`, say
            raise yaml.MarkedYAMLError(problem=first_line(error), problem_mark=node.start_mark) from error

    loader.construct_object = located
    node = loader.get_single_node()
    return None if node is None else loader.construct_document(texts.keep_spelling(node, kind))


@contextmanager
def errors_of(file: Path) -> Iterator[None]:
    """Raise what a YAML library complains of in this file as a UserError with line and column."""
    try:
        yield
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f" line {mark.line + 1} column {mark.column + 1}" if mark else ""
        raise UserError(f"{file}{place}: {error.problem or error.context}") from error
    except (
        yaml.YAMLError,
        ValueError,
        TypeError,
        AttributeError,
    ) as error:  # of a tag that does not fit, say
        raise UserError(f"{file}: {' '.join(str(error).split())}") from error


def _require_bounded(text: str, file: Path) -> None:
    """Raise UserError for a file that is nested too deep, or that grows too large as aliases are expanded."""
    sizes: dict[str, int] = {}  # nodes that an anchor stands for
    around: list[tuple[str | None, int]] = []  # anchor of each open collection, and the nodes before it
    nodes = 0
    for event in yaml.parse(text, PARSER):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in around):
                raise UserError(f"{file} line {line}: *{event.anchor} stands within itself")
            nodes += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.NodeEvent):
            nodes += 1
            if isinstance(event, yaml.CollectionStartEvent):
                around.append((event.anchor, nodes - 1))
            elif event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = around.pop()
            if anchor:
                sizes[anchor] = nodes - before
        if len(around) > MAX_DEPTH:
            raise UserError(f"{file} line {line}: nested deeper than {MAX_DEPTH} levels")
        if nodes > MAX_NODES:
            raise UserError(f"{file} line {line}: its aliases stand for more than {MAX_NODES:,} values")
