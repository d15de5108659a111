"""Claims about L2-SP."""

import torch

from daft.config.parts import PartsConfig
from daft.methods.parts import table
from daft.methods.parts.part import Step


def test_the_distance_and_its_gradient_are_those_of_float64_and_leave_the_head_out(model):
    (part,) = table.build(PartsConfig(l2_sp=0.3))
    frozen = next(model.backbone.parameters()).requires_grad_(False)
    part.start(model)
    before = {name: p.detach().double().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter is not frozen:
                parameter.add_(torch.randn_like(parameter))
    terms = part.loss(Step(0.0), None)
    terms["loss"].backward()
    moved = {name: p.detach().double() - before[name] for name, p in model.named_parameters()}
    expected = sum(float(d.square().sum()) for name, d in moved.items() if name.startswith("backbone."))
    # Each of the n squares, and each partial sum, is rounded by 2^-24 at most.
    count = sum(p.numel() for p in model.backbone.parameters())
    tolerance = (count + 2) * 2**-24
    assert abs(float(terms["loss"].detach()) - 0.15 * expected) <= tolerance * 0.15 * expected
    assert abs(float(terms["l2_sp"]) - expected) <= tolerance * expected
    assert not terms["l2_sp"].requires_grad
    for name, parameter in model.named_parameters():
        if name.startswith("head.") or parameter is frozen:
            assert parameter.grad is None
        else:  # α (θ - θ₀): the difference, α and the product are rounded once each
            torch.testing.assert_close(parameter.grad.double(), 0.3 * moved[name], rtol=4 * 2**-24, atol=0)


def test_nothing_is_added_where_nothing_has_moved(model):
    (part,) = table.build(PartsConfig(l2_sp=1.0))
    part.start(model)
    assert float(part.loss(Step(0.0), None)["loss"].detach()) == 0
