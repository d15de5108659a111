"""Claims about heads, parameter groups and BN mode (Table 1)."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from daft.batchnorm import batchnorm_layers
from daft.config.schema import BackboneConfig, MethodConfig
from daft.methods import preparation
from daft.networks import backbones
from daft.networks.classifier import Classifier, make_head

CONF = Path(__file__).resolve().parents[2] / "conf"
METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
FILELESS = ["backbone.checkpoint=null", "backbone.checksum=null"]
BACKBONES = sorted(path.stem for path in (CONF / "backbone").glob("*.yaml"))


def classifier(configure, *overrides, classes=3):
    config = configure(*overrides)
    backbone = backbones.load(config.backbone)
    head = make_head(backbone.num_features, config.method.head_hidden, classes)
    return Classifier(backbone, head), config.method


@pytest.mark.parametrize("backbone", BACKBONES)
def test_groups_partition_all_parameters_for_every_method(configure, backbone):
    named = configure(f"backbone={backbone}", *(["backbone.model=resnet50"] if backbone == "timm" else []))
    architecture = {
        key: getattr(named.backbone, key) for key in ("name", "model", "model_args", "mean", "std")
    }
    network = backbones.load(BackboneConfig(weights="random", **architecture))
    model = Classifier(network, make_head(network.num_features, [], 3))
    for name in METHODS:
        method = configure(f"method={name}").method
        groups = preparation.parameter_groups(model, method)
        grouped = [id(p) for group in groups for p in group["params"]]
        trainable = [id(p) for p in model.parameters() if p.requires_grad]
        assert sorted(grouped) == sorted(trainable), name
        assert len(set(grouped)) == len(grouped), name
        if method.rates != "frozen":
            assert len(grouped) == len(list(model.parameters())), name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lp", {}),
        ("ft", {"backbone": 0.02, "head": 0.02}),
        ("lp_ft", {"backbone": 0.02, "head": 0.02}),
        ("daft", {"backbone": 0.02, "head": 0.5}),
        ("ft_bnc", {"backbone": 0.02, "head": 0.02}),
        ("lp_ft_bnc", {"backbone": 0.02, "head": 0.02}),
        ("integrated_lp_ft", {"backbone": 0.02, "head": 0.5}),
    ],
)
def test_group_learning_rates_are_exactly_those_of_the_configuration(configure, name, expected):
    rates = ["method.lr_backbone=0.02"] if expected else []
    if expected.get("head") == 0.5:
        rates.append("method.lr_head=0.5")
    model, method = classifier(configure, f"method={name}", *rates)
    groups = preparation.parameter_groups(model, method)
    assert {group["name"]: group["lr"] for group in groups} == expected


@pytest.mark.parametrize(
    ("name", "head", "rates", "bn_mode", "conversion"),
    [  # Table 1, and Table 5 with the defaults of the protocol
        ("lp", "probe", "frozen", "test", False),
        ("ft", "random", "tied", "train", False),
        ("lp_ft", "probe", "tied", "test", False),
        ("daft", "zero", "separate", "train", True),
        ("ft_bnc", "random", "tied", "train", True),
        ("lp_ft_bnc", "probe", "tied", "train", True),
        ("integrated_lp_ft", "zero", "separate", "test", False),
    ],
)
def test_methods_are_the_rows_of_the_papers_tables(configure, name, head, rates, bn_mode, conversion):
    method = configure(f"method={name}").method
    found = (method.name, method.head_init, method.rates, method.bn_mode, method.bn_conversion)
    assert found == (name, head, rates, bn_mode, conversion)


def test_a_parameter_that_no_group_covers_is_named(configure):
    model, method = classifier(configure)
    model.register_parameter("scale", nn.Parameter(torch.ones(1)))
    with pytest.raises(ValueError, match="'scale'"):
        preparation.parameter_groups(model, method)


def one_step(model: Classifier, method: MethodConfig) -> dict[str, torch.Tensor]:
    """State before a step that gives every trainable parameter a gradient."""
    groups = preparation.parameter_groups(model, method)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    preparation.set_train_mode(model, method)
    torch.manual_seed(0)
    F.cross_entropy(model(torch.rand(8, 3, 32, 32)), torch.arange(8) % 3).backward()
    torch.optim.SGD(groups, lr=1.0).step()
    return before


def test_a_frozen_backbone_is_bit_identical_after_a_step(configure):
    frozen = ["method=lp", "method.head_init=random", "method.lr_head=0.1"]
    model, method = classifier(configure, *frozen)
    before = one_step(model, method)
    after = model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before if k.startswith("backbone."))
    assert not torch.equal(before["head.linear1.weight"], after["head.linear1.weight"])


@pytest.mark.parametrize("mode", ["train", "test"])
def test_bn_mode_decides_whether_statistics_move_and_affine_parameters_always_learn(configure, mode):
    model, method = classifier(configure, "method=ft", f"method.bn_mode={mode}")
    before = one_step(model, method)
    after = model.state_dict()
    for name in batchnorm_layers(model):
        for key in ("running_mean", "running_var"):
            moved = not torch.equal(before[f"{name}.{key}"], after[f"{name}.{key}"])
            assert moved == (mode == "train"), f"{name}.{key}"
        assert not torch.equal(before[f"{name}.weight"], after[f"{name}.weight"]), name


def test_test_mode_is_restored_each_time_the_network_is_put_in_train_mode(configure):
    model, method = classifier(configure, "method=lp_ft")
    model.train()  # anyone may call it
    preparation.set_train_mode(model, method)
    assert model.training
    assert not any(layer.training for layer in batchnorm_layers(model).values())


def prepare(configure, *overrides):
    torch.manual_seed(0)
    model, method = classifier(configure, *overrides)
    batches = torch.randint(256, (2, 8, 3, 32, 32), dtype=torch.uint8)
    probe = {"linear1.weight": torch.full((3, 128), 2.0), "linear1.bias": torch.tensor([1.0, 2.0, 3.0])}
    return preparation.prepare(method, model, probed_head=probe, batches=batches)


def test_heads_start_zero_from_the_probe_or_random(configure):
    heads = {}
    for name in ("daft", "lp_ft", "ft"):
        linear = next(prepare(configure, f"method={name}").model.head.children())
        assert isinstance(linear, nn.Linear)
        heads[name] = linear
    assert not heads["daft"].weight.any()
    assert not heads["daft"].bias.any()
    assert torch.equal(heads["lp_ft"].weight, torch.full((3, 128), 2.0))
    assert torch.equal(heads["lp_ft"].bias, torch.tensor([1.0, 2.0, 3.0]))
    # torch's default for a linear layer: uniform within ± 1/√fan_in
    assert 0 < float(heads["ft"].weight.detach().abs().max()) <= 128**-0.5


def test_only_methods_with_conversion_convert(configure):
    for name in METHODS:
        prepared = prepare(configure, f"method={name}")
        converts = configure(f"method={name}").method.bn_conversion
        assert len(prepared.shift) == (13 if converts else 0), name  # ResNet-10: stem, 8, 4 shortcuts


def test_a_head_of_several_layers_has_their_widths_and_learns_with_the_heads_rate(configure):
    several = ["method=daft", "method.head_init=random", "method.head_hidden=[16,8]"]
    prepared = prepare(configure, *several)
    shapes = [tuple(m.weight.shape) for m in prepared.model.head.children() if isinstance(m, nn.Linear)]
    assert shapes == [(16, 128), (8, 16), (3, 8)]
    assert len(prepared.groups[1]["params"]) == 6


@pytest.mark.parametrize("name", METHODS)
def test_parameters_decide_whether_the_backbone_is_trained_and_not_the_names_of_groups(configure, name):
    model, method = classifier(configure, *FILELESS, "backbone.weights=random", f"method={name}")
    batches = [(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.zeros(4))]
    probed = {key: value.clone() for key, value in model.head.state_dict().items()}
    prepared = preparation.prepare(method, model, probed_head=probed, batches=batches)
    for group in prepared.groups:
        group["name"] = "anything"
    before = {key: value.clone() for key, value in model.backbone.named_parameters()}
    if prepared.groups:
        optimizer = torch.optim.SGD(prepared.groups, lr=1.0)
        model(torch.rand(4, 3, 32, 32)).square().sum().backward()
        optimizer.step()
    moved = any(not torch.equal(value, before[key]) for key, value in model.backbone.named_parameters())
    assert prepared.trains_backbone == (method.rates != "frozen")
    assert moved <= prepared.trains_backbone
