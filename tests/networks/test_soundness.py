"""Weights with values that no network computes with are refused by every door, by file and tensor."""

import functools
import sys
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from daft.common.errors import UserError
from daft.config.compose import configuration
from daft.config.schema import BackboneConfig
from daft.networks import backbones, checkpoints, soundness
from daft.prepare import doctor

VARIANCE, CONVOLUTION = "layer2.0.bn1.running_var", "layer2.0.conv1.weight"

SPOILED = {
    "NaN variance": (VARIANCE, lambda t: t * torch.nan, r"\(32 of 32 NaN\)"),
    "a negative variance": (VARIANCE, lambda t: -t, r"\(32 of 32 negative\)"),
    "one infinite weight": (CONVOLUTION, lambda t: one(t, torch.inf), r"\(1 of 4608 infinite\)"),
    "one NaN weight": (CONVOLUTION, lambda t: one(t, torch.nan), r"\(1 of 4608 NaN\)"),
    "NaN in half precision": (CONVOLUTION, lambda t: one(t, torch.nan).half(), r"\(1 of 4608 NaN\)"),
    "beyond float32": (CONVOLUTION, lambda t: one(t.double(), 1e300), r"\(1 of 4608 infinite\)"),
    "infinite mean": ("bn1.running_mean", lambda t: one(t, -torch.inf), r"\(1 of 64 infinite\)"),
}


def one(tensor: Tensor, value: float) -> Tensor:
    """With this as its last value."""
    changed = tensor.clone()
    changed.view(-1)[-1] = value
    return changed


@functools.cache
def embedded() -> BackboneConfig:
    return replace(configuration("backbone=shapes_resnet10").backbone, checksum=None)


@pytest.fixture
def state() -> dict[str, Tensor]:
    return safetensors.torch.load_file(checkpoints.path(embedded()))


def in_safetensors(state: dict[str, Tensor], file: Path) -> BackboneConfig:
    safetensors.torch.save_file(state, file)
    return replace(embedded(), checkpoint=str(file))


def by_torch(state: dict[str, Tensor], file: Path) -> BackboneConfig:
    torch.save({"model": {f"module.{name}": value for name, value in state.items()}}, file)
    return replace(embedded(), checkpoint=str(file), wrapper="model", prefix="module.")


def as_torchscript(state: dict[str, Tensor], file: Path) -> BackboneConfig:
    root = nn.Module()
    for name, value in state.items():
        *path, last = name.split(".")
        module = root
        for part in path:
            if not hasattr(module, part):
                module.add_module(part, nn.Module())
            module = getattr(module, part)
        module.register_buffer(last, value)
    torch.jit.save(torch.jit.script(root), file)
    return replace(embedded(), checkpoint=str(file))


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
@pytest.mark.parametrize("save", [in_safetensors, by_torch, as_torchscript])
@pytest.mark.parametrize("kind", SPOILED)
def test_a_checkpoint_is_refused_and_the_doctor_says_so(tmp_path, state, save, kind):
    name, spoil, message = SPOILED[kind]
    cfg = save(state | {name: spoil(state[name])}, tmp_path / "net")
    with pytest.raises(UserError, match=rf"checkpoint: \S+/net has a tensor .*{cfg.prefix}{name} {message}"):
        backbones.load(cfg)
    (finding,) = doctor.check_backbone(cfg)
    assert finding.state == "damaged"
    assert name in finding.detail
    backbones.load(save(state, tmp_path / "net"))


def test_of_many_tensors_the_first_are_named_and_all_are_counted(tmp_path, state):
    broken = {name: value * torch.nan if value.ndim else value for name, value in state.items()}
    with pytest.raises(UserError, match=r"has 65 tensors that .*: (\S+ \(\d+ of \d+ NaN\), ){6}…; take"):
        backbones.load(in_safetensors(broken, tmp_path / "net"))


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, torch.bool])
def test_numbers_of_another_kind_are_not_taken_for_weights(tmp_path, state, dtype):
    state[CONVOLUTION] = state[CONVOLUTION].to(dtype)
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(UserError, match=rf"no floating-point numbers \(1\): {CONVOLUTION} {kind}$"):
        backbones.load(by_torch(state, tmp_path / "net"))


def test_a_variance_of_zero_is_that_of_a_dead_channel(tmp_path, state):
    backbones.load(in_safetensors(state | {VARIANCE: one(state[VARIANCE], 0)}, tmp_path / "net"))


def test_what_is_dropped_may_be_anything(tmp_path, state):
    cfg = in_safetensors(state | {"fc.weight": torch.full((3,), torch.nan)}, tmp_path / "net")
    backbones.load(replace(cfg, drop=["fc."]))


def test_a_mask_may_be_infinite_but_no_parameter():
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm1d(2)
            self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))

    network = Masked()
    soundness.require(network, network.state_dict(), "it")
    with pytest.raises(UserError, match=r"it has a tensor .*bn\.weight \(1 of 2 infinite\)"):
        soundness.require(network, network.state_dict() | {"bn.weight": torch.tensor([1, torch.inf])}, "it")
    with pytest.raises(UserError, match=r"mask \(1 of 2 NaN\)"):
        soundness.require(network, network.state_dict() | {"mask": torch.tensor([0, torch.nan])}, "it")


def test_the_weights_that_a_function_makes_and_those_of_the_hub_are_checked_too(tmp_path, state, monkeypatch):
    code = """
        import torch
        from torch import nn

        def spoiled():
            layers = nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
            network = nn.Sequential(*layers)
            network[1].running_var[1] = -1
            return network
    """
    (tmp_path / "own_net.py").write_text(dedent(code))
    monkeypatch.syspath_prepend(tmp_path)
    none = {"checkpoint": None, "model_args": {}}
    own = replace(embedded(), source="import", model="own_net.spoiled", weights="own", **none)
    with pytest.raises(UserError, match=r"own_net\.spoiled has .* 1\.running_var \(1 of 2 negative\)"):
        backbones.load(own)
    del sys.modules["own_net"]
    safetensors.torch.save_file(state | {VARIANCE: -state[VARIANCE]}, tmp_path / "hub.safetensors")
    local = {"pretrained_cfg_overlay": {"file": str(tmp_path / "hub.safetensors")}}  # in place of the hub's
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub = replace(embedded(), weights="hub", checkpoint=None, model_args=embedded().model_args | local)
    with pytest.raises(UserError, match=r"backbone\.model=resnet18 has .* layer2\.0\.bn1\.running_var"):
        backbones.load(hub)
