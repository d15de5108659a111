"""Claims about gradual unfreezing."""

import pytest
import torch
import torch.nn.functional as F

from daft.batchnorm import batchnorm_layers
from daft.common.errors import ConfigError
from daft.config.parts import PartsConfig, UnfreezeConfig
from daft.config.schema import MethodConfig
from daft.methods import preparation
from daft.methods.parts import table
from daft.methods.parts.part import Setting
from daft.networks.stages import stages


def prepared(model, **parts):
    config = MethodConfig(
        name="m",
        head_init="random",
        rates="tied",
        bn_mode="train",
        bn_conversion=False,
        lr_backbone=0.1,
        parts=PartsConfig(**parts),
    )
    found = preparation.prepare(config, model, probed_head=None, batches=[], parts=table.build(config.parts))
    for part in found.parts:
        part.start(model)
    return config, found


@pytest.mark.parametrize(("per_stage", "frozen"), [(1, 0), (2, 0), (1, 2)])
def test_in_each_epoch_exactly_the_stages_move_that_have_thawed(model, batch, per_stage, frozen):
    parts = {"unfreeze": UnfreezeConfig(epochs_per_stage=per_stage)} | ({"freeze": frozen} if frozen else {})
    config, found = prepared(model, **parts)
    optimizer = torch.optim.SGD(found.groups, momentum=0.9, weight_decay=0.1)
    for epoch in range(1, 7):
        for part in found.parts:
            part.before_epoch(epoch)
        preparation.set_train_mode(model, config)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        optimizer.zero_grad()
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()
        first = max(4 - (epoch - 1) // per_stage, frozen)  # of the stages that have thawed
        thawed = ("head.", *(f"backbone.network.{i}." for i in range(first, 4)))
        for key, value in model.state_dict().items():
            assert torch.equal(value, before[key]) != key.startswith(thawed), (epoch, key)
        with_momentum = {id(p) for p in optimizer.state}
        moving = {id(p) for name, p in model.named_parameters() if name.startswith(thawed)}
        assert with_momentum == moving
        modes = {name: layer.training for name, layer in batchnorm_layers(model).items()}
        assert modes == {f"backbone.network.{i}.1": i >= first for i in range(4)}


def test_a_stage_that_would_never_thaw_is_refused(model):
    network = model.backbone.network
    (part,) = table.build(PartsConfig(unfreeze=UnfreezeConfig(epochs_per_stage=2)))
    part.require_fit(Setting(network, stages(network), epochs=9))
    part.require_fit(Setting(network, stages(network)[1:], epochs=7))
    with pytest.raises(
        ConfigError, match=r"^method\.parts\.unfreeze: .* in epoch 9, but training\.epochs=8;"
    ):
        part.require_fit(Setting(network, stages(network), epochs=8))
