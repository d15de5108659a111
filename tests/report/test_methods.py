"""Claims about what tables and pictures know of methods."""

from daft.config.compose import configuration
from daft.report.figures import style
from daft.report.methods import METHODS, PAIRS, describe, in_order, shown_in


def test_every_method_has_a_look_of_its_own_and_one_that_is_not_listed_shares_it_with_none():
    looks = {(method.colour, method.marker) for method in METHODS.values()}
    assert len({colour for colour, _ in looks}) == len({marker for _, marker in looks}) == len(METHODS)
    others = [describe(name) for name in ("wise_ft", "l2_sp", "coral")]
    assert len(looks | {(other.colour, other.marker) for other in others}) == len(METHODS) + 3
    assert style.label("wise_ft") == "wise_ft"
    assert style.label("ft+coral") == "FT + coral (target images)"
    assert style.label("ft+freeze") == "FT + freeze"
    assert style.mark("daft") == {"color": "#009e73", "marker": "o"}


def test_the_papers_methods_come_first_in_its_order():
    assert in_order(["zeta", "daft", "alpha", "lp", "daft"]) == ["lp", "daft", "alpha", "zeta"]
    assert shown_in(1) == ["ft", "lp_ft", "daft"]
    assert shown_in(2) == shown_in(6, 7, 8, 9) == ["ft", "daft"]


def test_of_a_pair_one_method_converts_and_the_other_does_not():
    for without, converted in PAIRS.items():
        methods = [configuration("dataset=shapes", f"method={name}").method for name in (without, converted)]
        assert [method.bn_conversion for method in methods] == [False, True]
