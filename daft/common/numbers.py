"""How numbers are shown, the same everywhere."""

import math
from decimal import ROUND_HALF_EVEN, Decimal

DIGITS = 9
"""Decimals that are exact: what lies beyond them is how a sum was added up, and decides no rounding."""


def fixed(value: float, digits: int = 2) -> str:
    """A number with so many decimals; halfway between two it is the even one, as IEEE 754 rounds.

    A sum that is 38.725 by one order of adding and 38.72499999999999 by another is 38.72 both times.
    """
    if not math.isfinite(value):
        return f"{value}"
    exact = Decimal(f"{value:.{DIGITS}f}")
    return f"{exact.quantize(Decimal(1).scaleb(-digits), ROUND_HALF_EVEN)}"
