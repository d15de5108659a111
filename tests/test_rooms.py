"""Claims about the plan of the house: rooms import only from rooms before them, and never in circles."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]

RANKS = [
    *({"batchnorm"}, {"common"}, {"config"}, {"data", "networks"}, {"prepare"}, {"methods"}, {"training"}),
    *({"runs"}, {"experiment"}, {"sweep"}, {"report"}, {"tracking", "use"}, {"hydra_plugins", "scripts"}),
]
"""Rooms in the order in which they may build on each other; those of one rank know nothing of each other."""

NOTHING_BUT = {"prepare": {"common", "config", "data", "networks"}, "batchnorm": set[str]()}
"""Rooms that may not use all that comes before them."""


class Import(NamedTuple):
    """One line that imports."""

    file: Path
    line: int
    module: str

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {self.module}"


def room(module: str) -> str:
    """`daft.data.loader` is in `data`; the package itself and what is beside it are rooms of their own."""
    first, _, rest = module.partition(".")
    return rest.partition(".")[0] if first == "daft" and rest else first


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    module_of(file): file
    for top in ("daft", "hydra_plugins", "scripts")
    for file in (ROOT / top).rglob("*.py")
}


def imports(file: Path) -> Iterator[Import]:
    """Every import of ours in a file, late ones included; of `from package import name` the submodule."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: relative import"
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in FILES else str(node.module) for name in full]
        else:
            continue
        yield from (Import(file, node.lineno, name) for name in names if name in FILES)


def against(rank: dict[str, int], found: Import) -> bool:
    here, there = room(module_of(found.file)), room(found.module)
    if here == there:
        return False
    allowed = NOTHING_BUT.get(here)
    return (there not in allowed) if allowed is not None else rank[there] >= rank[here]


def test_no_room_imports_from_one_beside_or_after_it():
    rank = {name: i for i, names in enumerate(RANKS) for name in names}
    files = [file for module, file in FILES.items() if module != "daft"]
    unknown = {room(module) for module in FILES} - rank.keys() - {"daft"}
    assert not unknown, f"rooms without a place in RANKS: {unknown}"
    wrong = [str(found) for file in files for found in imports(file) if against(rank, found)]
    assert not wrong, "\n".join(wrong)


def test_no_modules_import_each_other_in_a_circle():
    """Scripts stand for themselves; `daft` itself imports late, what it is asked for."""
    graph = {
        module: {i.module for i in imports(file)} - {"daft"}
        for module, file in FILES.items()
        if module != "daft"
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_every_room_says_in_one_sentence_what_it_is():
    for module, file in FILES.items():
        if file.name == "__init__.py":
            (node,) = ast.parse(file.read_text()).body[:1]
            assert isinstance(node, ast.Expr), module
            text = ast.literal_eval(node.value)
            assert text.endswith("."), module
            assert "\n" not in text, module


@pytest.mark.parametrize("module", ["daft.report.tables", "daft.runs.records", "daft.data.loader"])
def test_the_rule_finds_what_breaks_it(module: str):
    rank = {name: i for i, names in enumerate(RANKS) for name in names}
    assert against(rank, Import(ROOT / "daft" / "networks" / "backbones.py", 1, module))
