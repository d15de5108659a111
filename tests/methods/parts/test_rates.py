"""Claims about layer-wise rates and frozen stages."""

from typing import Literal

import pytest
import torch
import torch.nn.functional as F

from daft.batchnorm import batchnorm_layers
from daft.common.errors import ConfigError, UserError
from daft.config.parts import PartsConfig
from daft.config.schema import MethodConfig
from daft.methods import preparation
from daft.methods.parts import table
from daft.methods.parts.part import Setting
from daft.methods.preparation import Prepared
from daft.networks.classifier import Classifier
from daft.networks.stages import stages


def method(
    rates: Literal["tied", "separate"] = "tied", lr_head: float | None = None, **parts
) -> MethodConfig:
    return MethodConfig(
        name="m",
        head_init="random",
        rates=rates,
        bn_mode="train",
        bn_conversion=True,
        lr_backbone=1e-3,
        lr_head=lr_head,
        parts=PartsConfig(**parts),
    )


def prepare(model: Classifier, config: MethodConfig, batch) -> Prepared:
    parts = table.build(config.parts)
    return preparation.prepare(config, model, probed_head=None, batches=[batch], parts=parts)


def test_rates_are_those_of_the_worked_example(model, batch):
    """γ = 0.3, L = 5, η = 1e-3."""
    prepared = prepare(model, method(layer_decay=0.3), batch)
    rates = {group["name"]: group["lr"] for group in prepared.groups}
    expected = [8.1e-6, 2.7e-5, 9e-5, 3e-4, 1e-3]
    assert list(rates) == ["backbone.1", "backbone.2", "backbone.3", "backbone.4", "head"]
    assert list(rates.values()) == pytest.approx(expected, rel=1e-12)
    assert [row["lr"] for row in prepared.stages] == list(rates.values())
    grouped = [id(p) for group in prepared.groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    assert all(group["lr"] == group["initial_lr"] for group in prepared.groups)


def test_a_head_with_a_rate_of_its_own_keeps_it_and_bn_learns_with_its_layer(model, batch):
    prepared = prepare(model, method("separate", lr_head=0.5, layer_decay=0.1), batch)
    assert [group["lr"] for group in prepared.groups] == pytest.approx([1e-7, 1e-6, 1e-5, 1e-4, 0.5])
    first = {id(p) for p in prepared.groups[0]["params"]}
    assert first == {id(p) for p in model.backbone.network[0].parameters()}


def test_the_rates_of_a_decay_of_1_are_those_of_none(model, batch):
    prepared = prepare(model, method(layer_decay=1.0), batch)
    assert {group["lr"] for group in prepared.groups} == {1e-3}


def train(prepared: Prepared, config: MethodConfig, batch, steps: int = 3) -> None:
    optimizer = torch.optim.SGD(prepared.groups, lr=1.0, momentum=0.9, weight_decay=0.1)
    for _ in range(steps):
        preparation.set_train_mode(prepared.model, config)
        optimizer.zero_grad()
        F.cross_entropy(prepared.model(batch[0]), batch[1]).backward()
        optimizer.step()


def test_frozen_stages_are_bit_equal_after_training_and_the_others_are_not(model, batch):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    config = method(freeze=2, layer_decay=0.5)
    prepared = prepare(model, config, batch)
    train(prepared, config, batch)
    frozen = ("backbone.network.0.", "backbone.network.1.")
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]) == key.startswith(frozen), key
    assert [row["lr"] for row in prepared.stages] == [None, None, 2.5e-4, 5e-4, 1e-3]
    assert prepared.trains_backbone


def test_bn_of_frozen_stages_is_neither_converted_nor_in_train_mode(model, batch):
    config = method(freeze=3)
    prepared = prepare(model, config, batch)
    assert [*prepared.shift] == ["backbone.network.3.1"]
    preparation.set_train_mode(model, config)
    modes = {name: layer.training for name, layer in batchnorm_layers(model).items()}
    assert modes == {f"backbone.network.{i}.1": i == 3 for i in range(4)}


def test_as_many_stages_as_there_are_cannot_be_frozen(model):
    (part,) = table.build(PartsConfig(freeze=4))
    setting = Setting(model.backbone.network, [], epochs=1)
    with pytest.raises(ConfigError, match=r"method\.parts\.freeze: 4, but the network has 4 stages"):
        part.require_fit(setting)
    (part,) = table.build(PartsConfig(freeze=3))
    part.require_fit(setting)


@pytest.mark.parametrize("backbone", ["shapes_resnet10", "efficientnet_lite0"])
def test_every_network_of_ours_has_stages_that_partition_it(configure, backbone):
    from daft.networks import builders

    network = builders.build(configure(f"backbone={backbone}").backbone, pretrained=False)
    found = [id(p) for stage in stages(network) for p in stage.parameters]
    assert sorted(found) == sorted(id(p) for p in network.parameters())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("layer_decay=0", "greater than 0"),
        ("layer_decay=1.5", "less than or equal to 1"),
        ("layer_decay=.nan", "valid number|finite"),
        ("freeze=0", "greater than or equal to 1"),
        ("freeze=1.5", "integer"),
        ("l2_sp=-1", "greater than 0"),
        ("nonsense=1", "no such key"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_its_key(configure, override, message):
    key = override.partition("=")[0]
    with pytest.raises(UserError, match=rf"(?s)^method\.parts\.{key}: [^\n]*({message})[^\n]*$"):
        configure(f"method.parts.{override}")
