"""The parts of the check, in the order of their worth, each a process of its own with a time limit."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

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


def _late(module: str) -> Any:
    """A module of this package, imported late: each part is a process, and takes its own alone."""
    return import_module(f"tests.gpu_check.{module}")


PARTS = {
    "tests": Part(
        "the tests, those that need a GPU among them",
        "all pass",
        130,
        lambda size, facts, seconds: _late("suite").tests(seconds),
    ),
    "rates": Part(
        "training end to end / steps on one resident batch, bf16 and fp32",
        ">= 0.95",
        120,
        lambda size, facts, seconds: _late("speed").rates(size),
    ),
    "hours": Part(
        "Tables 2 and 5 as device-hours, per cell and in all",
        "stated",
        45,
        lambda size, facts, seconds: _late("hours").hours(facts, _late("speed").default_precision(size)),
    ),
    "conversion": Part(
        "BN conversion / a test-mode pass, four networks",
        "<= 1.05",
        60,
        lambda size, facts, seconds: _late("speed").conversion(size),
    ),
    "published": Part(
        "training from JPEGs / the authors' loop",
        ">= 1",
        110,
        lambda size, facts, seconds: _late("speed").against_published(size),
    ),
    "pacs": Part(
        "a run of each method on images of PACS' size",
        "each finishes",
        110,
        lambda size, facts, seconds: _late("runs").pacs(size),
    ),
    "probe": Part(
        "scikit-learn / the linear probe, time",
        ">= 3",
        70,
        lambda size, facts, seconds: _late("speed").probe(size),
    ),
    "at-once": Part(
        "six small runs one after the other / two and four at a time",
        ">= 1.8",
        120,
        lambda size, facts, seconds: _late("runs").at_once(size),
    ),
    "compiled": Part(
        "training end to end / steps on one batch, compiled",
        ">= 0.95",
        120,
        lambda size, facts, seconds: _late("speed").compiled(size),
    ),
}
"""By name."""
