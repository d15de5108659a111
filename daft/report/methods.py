"""What tables and pictures know of each method; a method is added to all of them by a line in METHODS."""

from collections.abc import Iterable
from typing import NamedTuple
from zlib import crc32


class Method(NamedTuple):
    """How a method is shown."""

    title: str
    colour: str
    marker: str
    figures: tuple[int, ...] = ()
    """the figures of the paper that show it"""
    converted: str | None = None
    """the method that is this one with BN conversion"""


# In the order of rows and legends. Colour-blind safe (Okabe and Ito), and a marker each for print.
METHODS = {
    "lp": Method("LP", "#999999", "s"),
    "ft": Method("FT", "#d55e00", "^", (1, 2, 6, 7), "ft_bnc"),
    "ft_bnc": Method("FT + conversion", "#e69f00", "v"),
    "lp_ft": Method("LP-FT", "#0072b2", "D", (1,), "lp_ft_bnc"),
    "lp_ft_train": Method("LP-FT, train mode", "#1b1b1b", "X", (), "lp_ft_bnc"),
    "lp_ft_bnc": Method("LP-FT + conversion", "#56b4e9", "d"),
    "integrated_lp_ft": Method("Integrated LP-FT", "#cc79a7", "P", (), "daft"),
    "integrated_lp_ft_train": Method("Integrated, train mode", "#b59f00", "p", (), "daft"),
    "daft": Method("DAFT", "#009e73", "o", (1, 2, 8, 9)),
}

PAIRS = {name: method.converted for name, method in METHODS.items() if method.converted}
"""Methods, and the same with BN conversion."""

OTHER_COLOURS = ("#882255", "#332288", "#44aa99", "#7b3294", "#a6611a", "#117733", "#f0e442")
OTHER_MARKERS = ("<", ">", "h", "*", "8")
"""Of methods that are not in METHODS; these share none with them, and 35 pairs among each other."""


def describe(name: str) -> Method:
    """How a method is shown; one that is not in METHODS, by its name alone, in every picture the same.

    The name of a method with parts is its own with theirs: `daft+freeze`.
    """
    number = crc32(name.encode())
    colour, marker = (looks[number % len(looks)] for looks in (OTHER_COLOURS, OTHER_MARKERS))
    plain, *parts = name.split("+")
    title = METHODS[plain].title if parts and plain in METHODS else plain
    return METHODS.get(name, Method(" + ".join([title, *parts]), colour, marker))


def in_order(names: Iterable[str]) -> list[str]:
    """Each method once: those of METHODS in its order, then others by name."""
    known = list(METHODS)
    return sorted({*names}, key=lambda name: (known.index(name) if name in known else len(known), name))


def shown_in(*figures: int) -> list[str]:
    """The methods that any of these figures of the paper shows."""
    return [name for name, method in METHODS.items() if {*figures} & {*method.figures}]
