"""Claims about MAML: its meta-gradient against finite differences in float64, and what BN normalises by."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from daft.batchnorm import batchnorm_layers
from daft.config.schema import MamlConfig
from daft.training.maml import Learner

CFG = MamlConfig(lr=0.3, steps=2, order="second", statistics="support")
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])
WAYS = torch.tensor([0, 1, 2, 0, 1])


def network() -> nn.Sequential:
    """Smooth, so that finite differences are of its derivatives; in float64."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Softplus(), nn.Flatten(), nn.Linear(12, 4)]
    model = nn.Sequential(*layers, nn.BatchNorm1d(4), nn.Softplus(), nn.Linear(4, 3)).double()
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    return model


def images(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, 3, 3, generator=generator, dtype=torch.float64) + seed


def loss_of(model: nn.Module, cfg: MamlConfig, by_episode: bool = True) -> Tensor:
    layers = batchnorm_layers(model) if by_episode else {}
    learner = Learner(model.train(by_episode), cfg, layers)
    return F.cross_entropy(learner.query_logits(images(6, 1), LABELS, images(5, 2), meta=True), WAYS)


@pytest.mark.parametrize(
    ("statistics", "by_episode"), [("support", True), ("transductive", True), ("support", False)]
)
def test_the_second_order_meta_gradient_is_that_of_finite_differences(statistics, by_episode):
    """In every coordinate; a central difference at h = 1e-5 is right to about h² and 1e-16 / h: 1e-10."""
    model, cfg = network(), replace(CFG, statistics=statistics)
    loss_of(model, cfg, by_episode).backward()
    for name, parameter in model.named_parameters():
        expected, h = torch.zeros_like(parameter), 1e-5
        for i in range(parameter.numel()):
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    parameter.view(-1)[i] += sign * h
                values.append(loss_of(model, cfg, by_episode).item())
                with torch.no_grad():
                    parameter.view(-1)[i] -= sign * h
            expected.view(-1)[i] = (values[0] - values[1]) / (2 * h)
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-6, atol=1e-8, msg=name)


def adapted_by_hand(model: nn.Module, cfg: MamlConfig) -> nn.Module:
    """A copy of the network after the steps of the adaptation, by torch's own SGD and BN in train mode."""
    copy = network()
    copy.load_state_dict(model.state_dict())
    optimizer = torch.optim.SGD(copy.train().parameters(), lr=cfg.lr)
    for _ in range(cfg.steps):
        optimizer.zero_grad()
        F.cross_entropy(copy(images(6, 1)), LABELS).backward()
        optimizer.step()
    return copy


def test_the_first_order_meta_gradient_is_the_gradient_at_the_adapted_weights():
    model, cfg = network(), replace(CFG, order="first", statistics="transductive")
    loss_of(model, cfg).backward()
    copy = adapted_by_hand(model, cfg)
    copy.zero_grad()
    F.cross_entropy(copy(images(5, 2)), WAYS).backward()
    for (name, mine), other in zip(model.named_parameters(), copy.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, msg=name)
    second = network()
    loss_of(second, replace(cfg, order="second")).backward()
    (first_kernel, *_), (second_kernel, *_) = ([*each.parameters()] for each in (model, second))
    assert first_kernel.grad is not None
    assert second_kernel.grad is not None
    assert not torch.allclose(first_kernel.grad, second_kernel.grad, rtol=1e-3)


def answers(model: nn.Module, cfg: MamlConfig, query: Tensor, meta: bool = False) -> Tensor:
    learner = Learner(model, cfg, batchnorm_layers(model))
    return learner.query_logits(images(6, 1), LABELS, query, meta=meta).detach()


def test_queries_are_normalised_by_the_support_or_by_themselves():
    model, query = network().eval(), images(5, 2)
    alone = answers(model, CFG, query[:1])
    torch.testing.assert_close(answers(model, CFG, query)[:1], alone)
    transductive = replace(CFG, statistics="transductive")
    assert not torch.allclose(
        answers(model, transductive, query)[:1], answers(model, transductive, query[:3])[:1]
    )
    by_hand = adapted_by_hand(model, CFG)
    torch.testing.assert_close(answers(model, transductive, query), by_hand(query).detach())
    # By the support: BN in test mode with the statistics that the support has in the adapted network.
    for layer in batchnorm_layers(by_hand).values():
        layer.momentum = 1.0
    by_hand(images(6, 1))
    for name, layer in batchnorm_layers(by_hand).items():
        count = 6 * (4 if name == "1" else 1)  # torch keeps the unbiased variance
        assert layer.running_var is not None
        layer.running_var *= (count - 1) / count
    torch.testing.assert_close(answers(model, CFG, query), by_hand.eval()(query).detach())


def test_the_network_stays_as_it_is_and_its_running_statistics_follow_the_support_in_training_alone():
    model = network().eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    answers(model, CFG, images(5, 2))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(layer.training for layer in batchnorm_layers(model).values())
    answers(model, CFG, images(5, 2), meta=True)
    copy = network()
    copy.load_state_dict(before)
    copy.train()(images(6, 1))
    for key, value in copy.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, msg=key)
    for parameter in model.parameters():
        assert parameter.grad is None
