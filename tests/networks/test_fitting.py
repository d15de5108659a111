"""Advice on a checkpoint that does not fit, followed word by word, leads to a network that loads."""

import functools
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from daft.common.errors import UserError
from daft.config.compose import configuration
from daft.config.schema import BackboneConfig
from daft.networks import backbones, checkpoints


@functools.cache
def embedded(*words: str) -> BackboneConfig:
    return configuration("backbone=shapes_resnet10", *words).backbone


STATE = safetensors.torch.load_file(checkpoints.path(embedded()))
ONES = torch.ones(3)


def below(prefix: str, state: dict[str, Tensor] = STATE) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in state.items()}


OTHERS = {name: value + 1 for name, value in STATE.items()}

CHECKPOINTS: dict[str, Any] = {
    "a head": STATE | {"fc.weight": ONES, "fc.bias": ONES},
    "a head within a stage": STATE | {"layer1.exit.weight": ONES, "layer1.exit.bias": ONES},
    "names without a dot": STATE | {"head": ONES, "queue_ptr": ONES},
    "compiled": below("_orig_mod."),
    "compiled, then distributed": below("module._orig_mod."),
    "distributed, with a head": below("module.") | {"module.fc.weight": ONES},
    "averaged": {"n_averaged": torch.tensor(5), **below("module.")},
    "averaged, without a prefix": {"n_averaged": torch.tensor(5), **STATE},
    "in a sequence": below("0.") | {"1.weight": ONES},
    "in a sequence, with two heads": {"state_dict": below("0.") | {"0.1.weight": ONES, "0.fc": ONES}},
    "of lightning": {"epoch": 3, "state_dict": below("model."), "hyper_parameters": {"lr": 0.1}},
    "called 2018": {"2018": STATE, "args": {"lr": 0.1}},
    "called null": {"null": STATE},
    "of vissl": {
        "phase_idx": 1,
        "classy_state_dict": {
            "base_model": {
                "model": {"trunk": below("_feature_blocks."), "heads": {"0.w": ONES}},
                "meters": {"train": {}, "loss": [1.0]},
            },
        },
    },
    "in a part whose name has dots": {"model.v1": {"net.ema": STATE}},
    "two networks": {"student": below("backbone."), "teacher": below("backbone.", OTHERS)},
}


def backbone(file: Path, *words: str) -> BackboneConfig:
    """As the command line makes it of these words, for this file."""
    return replace(embedded("backbone.checksum=null", *words), checkpoint=str(file))


def advice(cfg: BackboneConfig) -> list[list[str]]:
    """The words that a refusal advises, as a shell takes them."""
    with pytest.raises(UserError) as caught:
        backbones.load(cfg)
    told = re.search(r"the names would fit with (.+)$", str(caught.value))
    assert told, str(caught.value)
    return [shlex.split(words) for words in told[1].split(" or with ")]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_what_is_advised_leads_to_a_network_that_loads(tmp_path: Path, name: str) -> None:
    file = tmp_path / "epoch=3.ckpt"
    torch.save(CHECKPOINTS[name], file)
    found = advice(backbone(file))
    assert len(found) == (2 if name == "two networks" else 1)
    for words, expected in zip(found, [STATE, OTHERS], strict=False):
        loaded = backbones.load(backbone(file, *words)).network.state_dict()
        assert all(torch.equal(loaded[key], value.to(loaded[key].dtype)) for key, value in expected.items())


@pytest.mark.parametrize("word", ["wrapper=classy_state_dict", "wrapper=model", "prefix=_feature_blocks."])
def test_the_advice_is_of_what_is_not_set_yet(tmp_path: Path, word: str) -> None:
    torch.save(CHECKPOINTS["of vissl"], tmp_path / "net.torch")
    (found,) = advice(backbone(tmp_path / "net.torch", f"backbone.{word}"))
    assert found[0] == "backbone.wrapper=classy_state_dict.base_model.model.trunk"
    assert found[1:] == ([] if "prefix" in word else ["backbone.prefix=_feature_blocks."])


def test_advice_takes_a_translation_into_account(tmp_path: Path) -> None:
    translated = {name.replace("layer", "stage"): value for name, value in STATE.items()}
    torch.save({"model": below("encoder.", translated)}, tmp_path / "net.pt")
    rename = {r"stage(.+)": r"layer\1"}
    (words,) = advice(replace(backbone(tmp_path / "net.pt"), rename=rename))
    assert words == ["backbone.wrapper=model", "backbone.prefix=encoder."]
    backbones.load(replace(backbone(tmp_path / "net.pt", *words), rename=rename))


def test_names_that_fit_with_other_shapes_are_told_the_shapes_next(tmp_path: Path) -> None:
    wider = {name: value.repeat(2, *[1] * (value.ndim - 1)) for name, value in STATE.items() if value.ndim}
    torch.save({"state_dict": wider}, tmp_path / "net.pt")
    (words,) = advice(backbone(tmp_path / "net.pt"))
    with pytest.raises(UserError, match=r"other shape \(65\): conv1\.weight \(128, 3, 7, 7\) for \(64, 3, 7"):
        backbones.load(backbone(tmp_path / "net.pt", *words))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_parameters_without_running_statistics_are_called_so(tmp_path: Path, prefix: str) -> None:
    parameters = {name: value for name, value in STATE.items() if "running" not in name and value.ndim}
    torch.save(below(prefix, parameters), tmp_path / "net.pt")
    with pytest.raises(UserError, match=r"no running statistics of BN layers: save all of state_dict\(\)"):
        backbones.load(backbone(tmp_path / "net.pt"))


def test_a_checkpoint_of_another_network_gets_no_such_advice(tmp_path: Path) -> None:
    torch.save({"model": {"a.running_mean": ONES, "a.weight": ONES}}, tmp_path / "net.pt")
    with pytest.raises(UserError) as caught:
        backbones.load(backbone(tmp_path / "net.pt", "backbone.wrapper=model"))
    assert str(caught.value).endswith("set backbone.prefix, drop or rename, or another backbone.model")


def test_an_object_that_only_its_class_can_read_is_named_with_a_command_that_mends_it(tmp_path: Path) -> None:
    """torch.fx makes its networks anew from their code, which is not run here."""
    network = backbones.load(embedded()).network
    file = tmp_path / "it's $traced.pt"
    torch.save(torch.fx.symbolic_trace(network), file)
    with pytest.raises(UserError, match=r"no state dict but torch\.fx\.graph_module\.\w+; if you") as caught:
        backbones.load(backbone(file))
    python, c, code = shlex.split(str(caught.value).partition("is installed: ")[2])
    assert (python, c) == ("python", "-c")
    exec(code, {})
    backbones.load(backbone(tmp_path / "it's $traced.weights.pt"))
