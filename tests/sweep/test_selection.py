"""Claims about the rule by which learning rates win; whole tables are in tests/report/test_tables.py."""

import math

from daft.sweep.selection import preference


def test_the_metric_decides_before_the_rates_and_the_backbones_rate_before_the_heads():
    ordered = [
        preference(90.0, (0.1, 1.0)),
        preference(90.0, (0.1, 0.3)),
        preference(90.0, (0.03, 10.0)),
        preference(89.9, (1.0, 10.0)),
    ]
    assert sorted(ordered, reverse=True) == ordered


def test_what_is_not_there_comes_last_as_none_or_as_nan():
    assert preference(None, (0.1, None)) == preference(math.nan, (0.1, math.nan))
    assert preference(0.0, (1e-9, None)) > preference(None, (1.0, 1.0))
    assert preference(0.0, (0.1, 1e-9)) > preference(0.0, (0.1, None))
