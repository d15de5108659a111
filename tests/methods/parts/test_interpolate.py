"""Claims about interpolation between the start and the trained network."""

import pytest
import torch

from daft.common.errors import UserError
from daft.config.parts import PartsConfig
from daft.methods.parts import table
from daft.methods.parts.interpolate import Interpolate


def trained(model, alphas):
    """The part, the network at the start and the one that training ends with: all moved by noise."""
    part = table.build(PartsConfig(interpolate=alphas))[0]
    assert isinstance(part, Interpolate)
    part.start(model)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    for value in model.state_dict().values():
        value.copy_(value + torch.rand_like(value) if value.is_floating_point() else value + 7)
    return part, start, {key: value.clone() for key, value in model.state_dict().items()}


def state_of(part, model, chosen):
    """The state at which a share is measured, with the choice of that share."""
    states = {}

    def measure():
        alpha = part.alphas[len(states)]
        states[alpha] = {key: value.clone() for key, value in model.state_dict().items()}
        return {"id/accuracy": 100.0 * (alpha == chosen), "photo/accuracy": 100.0 * (alpha != chosen)}

    return states, part.after(model, measure, "id/accuracy")


def test_the_ends_are_the_two_networks_to_the_bit_and_the_middle_is_half_way(model):
    part, start, end = trained(model, [1, 0.5, 0])
    states, _ = state_of(part, model, 0)
    for key in start:
        assert torch.equal(states[0.0][key], start[key]), key
        assert torch.equal(states[1.0][key], end[key]), key
        if start[key].is_floating_point():
            middle = (start[key].double() + end[key].double()) / 2
            # One rounding each of the difference and of the sum; values are below 4.
            torch.testing.assert_close(states[0.5][key].double(), middle, rtol=0, atol=2 * 4 * 2**-24)
        else:
            assert torch.equal(states[0.5][key], end[key])


@pytest.mark.parametrize("chosen", [0.0, 0.25, 1.0])
def test_the_share_is_the_best_on_id_alone_and_the_network_is_the_one_at_it(model, chosen):
    part, *_ = trained(model, [0, 0.25, 1])
    states, said = state_of(part, model, chosen)
    assert said["alpha"] == chosen
    assert said["selected_on"] == "id/accuracy"
    assert [row["alpha"] for row in said["curve"]] == [0, 0.25, 1]
    assert [row["photo/accuracy"] for row in said["curve"]] == [100 * (a != chosen) for a in (0, 0.25, 1)]
    assert all(torch.equal(value, states[chosen][key]) for key, value in model.state_dict().items())


def test_of_equal_shares_the_lowest_is_taken(model):
    part, *_ = trained(model, [0.5, 0.25, 1])
    assert part.after(model, lambda: {"id/accuracy": 50.0}, "id/accuracy")["alpha"] == 0.25


@pytest.mark.parametrize("value", ["[]", "[0.5,0.5]", "[-0.1]", "[1.1]", "0.5"])
def test_shares_that_make_no_sense_are_refused(configure, value):
    with pytest.raises(UserError, match=r"^method\.parts\.interpolate[^\n]*$"):
        configure(f"method.parts.interpolate={value}")
