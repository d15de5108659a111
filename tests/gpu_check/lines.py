"""The lines of the report: what was measured, against which goal, and whether it was met."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:  # which takes seconds to import, and the driver needs lines alone
    from tests.benchmark import Row

Verdict = Literal["met", "MISSED", "FAILED", "stated"]
"""FAILED: nothing was measured, and the line says why; stated: there is no goal"""


@dataclass(frozen=True)
class Line:
    """One line of the report."""

    what: str
    goal: str
    measured: str
    verdict: Verdict

    @classmethod
    def of(cls, row: "Row") -> "Line":
        """Of a ratio of the benchmark: median, range and n."""
        spread = f"{min(row.values):.3g} to {max(row.values):.3g}, n = {len(row.values)}"
        verdict: Verdict = "met" if row.verdict == "met" else "MISSED" if row.target else "stated"
        measured = f"{median(row.values):.3g} ({spread}); {row.detail}"
        return cls(row.what.partition(". ")[2] or row.what, row.target, measured, verdict)


class Fact(NamedTuple):
    """A number that a later part needs, such as a network's rate."""

    name: str
    value: float


Found = Line | Fact


def record(found: Iterable[Found], file: Path) -> None:
    """Write what is found as it comes, so that nothing is lost when the rest fails."""
    with file.open("a", encoding="utf-8") as out:
        for each in found:
            line = {"line": asdict(each)} if isinstance(each, Line) else {"fact": list(each)}
            print(json.dumps(line), file=out, flush=True)


def recorded(file: Path) -> Iterator[Found]:
    """What a file holds; a last line that was cut off is left out."""
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    for line in text.splitlines(keepends=True):
        if line.endswith("\n"):
            entry = json.loads(line)
            yield Line(**entry["line"]) if "line" in entry else Fact(*entry["fact"])
