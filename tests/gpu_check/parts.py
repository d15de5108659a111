"""The parts of the check, in the order of their worth, each a process of its own with a time limit."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.gpu_check.lines import Found

if TYPE_CHECKING:
    from tests.gpu_check.size import Size

Facts = Mapping[str, float]


@dataclass(frozen=True)
class Part:
    """Something to measure."""

    title: str
    goal: str
    """what the lines are held against, for those who only ask"""
    limit: float
    """seconds, at most"""
    find: Callable[["Size", Facts, float], Iterator[Found]]
    """given the numbers so far, and the seconds that it has"""


def _tests(size: "Size", facts: Facts, seconds: float) -> Iterator[Found]:
    from tests.gpu_check import suite

    return suite.tests(seconds)


def _rates(size: "Size", facts: Facts, seconds: float) -> Iterator[Found]:
    from tests.gpu_check import speed

    return speed.rates(size)


def _hours(size: "Size", facts: Facts, seconds: float) -> Iterator[Found]:
    from tests.gpu_check import hours, speed

    return hours.hours(facts, speed.default_precision(size))


def _conversion(size: "Size", facts: Facts, seconds: float) -> Iterator[Found]:
    from tests.gpu_check import speed

    return speed.conversion(size)


def _published(size: "Size", facts: Facts, seconds: float) -> Iterator[Found]:
    from tests.gpu_check import speed

    return speed.against_published(size)


def _pacs(size: "Size", facts: Facts, seconds: float) -> Iterator[Found]:
    from tests.gpu_check import runs

    return runs.pacs(size)


def _probe(size: "Size", facts: Facts, seconds: float) -> Iterator[Found]:
    from tests.gpu_check import speed

    return speed.probe(size)


def _at_once(size: "Size", facts: Facts, seconds: float) -> Iterator[Found]:
    from tests.gpu_check import runs

    return runs.at_once(size)


def _compiled(size: "Size", facts: Facts, seconds: float) -> Iterator[Found]:
    from tests.gpu_check import speed

    return speed.compiled(size)


PARTS = {
    "tests": Part("the tests, those that need a GPU among them", "all pass", 200, _tests),
    "rates": Part("training end to end / steps on one resident batch, bf16 and fp32", ">= 0.95", 75, _rates),
    "hours": Part("Tables 2 and 5 as device-hours, per cell and in all", "stated", 45, _hours),
    "conversion": Part("BN conversion / a test-mode pass, four networks", "<= 1.05", 60, _conversion),
    "published": Part("training from JPEGs / the authors' loop", ">= 1", 60, _published),
    "pacs": Part("a run of each method on images of PACS' size", "each finishes", 80, _pacs),
    "probe": Part("scikit-learn / the linear probe, time", ">= 3", 60, _probe),
    "at-once": Part("six small runs one after the other / two and four at a time", ">= 1.8", 100, _at_once),
    "compiled": Part("training end to end / steps on one batch, compiled", ">= 0.95", 110, _compiled),
}
"""By name. Modules are imported late: each part is a process, and needs its own alone."""
