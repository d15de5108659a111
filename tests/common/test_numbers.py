"""Claims about how numbers are shown."""

import math
from itertools import permutations

from daft.common.numbers import fixed


def test_a_mean_is_shown_alike_however_it_was_added_up():
    values = (21.9, 28.5, 56.0, 48.5)  # their mean is 38.725, halfway between two
    assert {fixed(sum(order) / 4) for order in permutations(values)} == {"38.72"}
    assert fixed(38.725 - 1e-13) == fixed(38.725 + 1e-13) == "38.72"
    assert fixed(38.735 - 1e-13) == fixed(38.735 + 1e-13) == "38.74"


def test_other_numbers_are_shown_as_python_does():
    for value in (0.0, -1.5, 99.996, 50.125, 1e-7, 12345.678):
        for digits in (0, 1, 2, 3):
            assert fixed(value, digits) == f"{value:.{digits}f}".replace("-0.00", "-0.00"), (value, digits)
    assert (fixed(math.nan), fixed(math.inf)) == ("nan", "inf")
