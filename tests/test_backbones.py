"""Backbones: a checkpoint loads key by key or not at all, and features are the network's own."""

import hashlib
import os
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import hydra
import pytest
import safetensors.torch
import timm
import torch
from pydantic import TypeAdapter
from torch import Tensor

from daft import backbones
from daft.config import BackboneConfig, validate
from daft.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
SMALL: dict[str, Any] = {"layers": [1, 1, 1, 1], "channels": [4, 8, 8, 8]}
"""A ResNet that is built in milliseconds."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def config(**changes: Any) -> BackboneConfig:
    settings = {"name": "x", "model": "resnet18", "model_args": SMALL, "weights": "random"}
    settings |= {"mean": MEAN, "std": STD} | changes
    return TypeAdapter(BackboneConfig).validate_python(settings)


def from_file(path: Path, **changes: Any) -> BackboneConfig:
    return config(weights="file", checkpoint=str(path), **changes)


def composed(name: str) -> BackboneConfig:
    weights = os.environ.get("DAFT_WEIGHTS", str(ROOT / "weights"))
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base=None):
        overrides = [f"backbone={name}", f"paths.weights={weights}"]
        return validate(hydra.compose("train", overrides)).backbone


@pytest.fixture
def state() -> dict[str, Tensor]:
    """A state dict for SMALL in which every tensor is noise of its own."""
    generator = torch.Generator().manual_seed(0)
    network = timm.create_model("resnet18", num_classes=0, **SMALL)
    return {
        key: torch.tensor(7) if value.ndim == 0 else torch.rand(value.shape, generator=generator) + 0.1
        for key, value in network.state_dict().items()
    }


def assert_loaded(cfg: BackboneConfig, state: dict[str, Tensor]) -> None:
    loaded = backbones.load(cfg).network.state_dict()
    assert loaded.keys() == state.keys()
    for key, value in state.items():
        assert torch.equal(loaded[key], value), key


# --- files -----------------------------------------------------------------------------------------


def test_a_safetensors_file_loads_exactly(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / "net.safetensors"
    safetensors.torch.save_file(state, path)
    assert_loaded(from_file(path), state)


@pytest.mark.parametrize("name", ["net.pt", "net.pth.tar"])
def test_a_torch_file_loads_below_its_wrapper_and_prefix_without_the_head(
    tmp_path: Path, state: dict[str, Tensor], name: str
) -> None:
    wrapped: dict[str, Any] = {f"module.encoder_q.{key}": value for key, value in state.items()}
    wrapped |= {f"module.encoder_k.{key}": value + 1 for key, value in state.items()}
    wrapped |= {"module.encoder_q.fc.0.weight": torch.ones(3), "module.queue": torch.ones(5)}
    torch.save({"epoch": 200, "arch": "resnet", "state_dict": wrapped}, tmp_path / name)
    cfg = from_file(tmp_path / name, wrapper="state_dict", prefix="module.encoder_q.", drop=["fc."])
    assert_loaded(cfg, state)
    key = replace(cfg, prefix="module.encoder_k.", drop=[])
    assert_loaded(key, {name: value + 1 for name, value in state.items()})
    # One file, two networks: what identifies the weights must tell them apart.
    assert backbones.fingerprint(cfg) != backbones.fingerprint(key)


def test_half_precision_weights_become_float32_of_the_same_value(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    path = tmp_path / "net.safetensors"
    half = {key: value.half() if value.ndim == 4 else value for key, value in state.items()}
    safetensors.torch.save_file(half, path)
    loaded = backbones.load(from_file(path)).network.state_dict()
    for key, value in half.items():
        assert loaded[key].dtype == (torch.int64 if value.ndim == 0 else torch.float32)
        assert torch.equal(loaded[key], value.to(loaded[key].dtype))


def test_missing_unexpected_and_misshapen_keys_are_all_listed(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    path = tmp_path / "net.pt"
    del state["bn1.running_var"], state["layer4.0.bn2.bias"]
    state["conv1.weight"] = torch.zeros(4, 3, 3, 3)
    broken = {**state, "fc.weight": torch.zeros(2), "epoch": 3, "bn1.bias": "text"}
    torch.save(broken, path)
    with pytest.raises(UserError) as caught:
        backbones.load(from_file(path))
    _, missing, unexpected, shape, _ = str(caught.value).splitlines()
    assert missing.strip() == "missing (2): bn1.running_var, layer4.0.bn2.bias"
    assert unexpected.strip() == "unexpected (2): fc.weight, epoch"
    assert (
        shape.strip()
        == "other shape (2): conv1.weight (4, 3, 3, 3) for (64, 3, 7, 7), bn1.bias a str for (64,)"
    )


@pytest.mark.parametrize(
    "changes",
    [{"prefix": "encoder."}, {"drop": [""]}, {"prefix": "conv1.weight.x"}, {"drop": ["c", "b", "l"]}],
)
def test_a_selection_that_matches_nothing_never_passes(
    tmp_path: Path, state: dict[str, Tensor], changes: dict[str, Any]
) -> None:
    path = tmp_path / "net.safetensors"
    safetensors.torch.save_file(state, path)
    with pytest.raises(UserError, match=r"nothing in .*net\.safetensors would be loaded.* begin bn1\.num"):
        backbones.load(from_file(path, **changes))


def test_a_forgotten_or_wrong_wrapper_is_named_with_the_files_keys(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    path = tmp_path / "net.pt"
    torch.save({"epoch": 3, "model": state}, path)
    with pytest.raises(UserError, match=r"nothing in .* begin epoch, model"):
        backbones.load(from_file(path))
    with pytest.raises(UserError, match=r"wrapper=state_dict: .* has epoch, model"):
        backbones.load(from_file(path, wrapper="state_dict"))
    with pytest.raises(UserError, match=r"no state dict but int"):
        backbones.load(from_file(path, wrapper="epoch"))
    assert_loaded(from_file(path, wrapper="model"), state)


@pytest.mark.parametrize("content", [torch.ones(3), [torch.ones(3)], {0: torch.ones(3)}])
def test_a_torch_file_of_something_else_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "net.pt")
    with pytest.raises(UserError, match=rf"no state dict but {type(content).__name__}"):
        backbones.load(from_file(tmp_path / "net.pt"))


@pytest.mark.parametrize("name", ["net.safetensors", "net.pt"])
def test_a_damaged_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"<html>404</html>")
    with pytest.raises(UserError, match=rf"{re.escape(name)} does not load"):
        backbones.load(from_file(tmp_path / name))


def test_a_wrong_checksum_names_both_and_the_right_one_passes(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    path = tmp_path / "net.safetensors"
    safetensors.torch.save_file(state, path)
    right, wrong = hashlib.sha256(path.read_bytes()).hexdigest(), "0" * 64
    assert backbones.fingerprint(from_file(path, checksum=f"sha256:{right}")) == right
    assert_loaded(from_file(path, checksum=f"sha256:{right}"), state)
    for use in (backbones.fingerprint, backbones.load):
        with pytest.raises(UserError, match=rf"has sha256:{right}, not sha256:{wrong}"):
            use(from_file(path, checksum=f"sha256:{wrong}"))


@pytest.mark.parametrize("checkpoint", ["nowhere/net.pt", "package:nothing.safetensors", "."])
def test_an_absent_file_is_named(checkpoint: str) -> None:
    with pytest.raises(UserError, match=rf"there is no file .*{re.escape(checkpoint.split(':')[-1])}"):
        backbones.load(from_file(Path(checkpoint)))


class Malice:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_of_arbitrary_objects_is_refused_and_not_run(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    trace, path = tmp_path / "trace", tmp_path / "net.pt"
    torch.save({**state, "evil": Malice(trace)}, path)
    with pytest.raises(UserError, match=r"does not load .*weights_only"):
        backbones.load(from_file(path))
    assert not trace.exists()
    torch.load(path, weights_only=False)  # it would have run
    assert trace.exists()


# --- models ----------------------------------------------------------------------------------------


def test_a_model_without_batch_norm_is_refused() -> None:
    with pytest.raises(UserError, match=r"convnext_atto has no batch-norm layer"):
        backbones.load(config(model="convnext_atto", model_args={}))


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("resnet18x", "resnet18"), ("renset50", "resnet50"), ("efficientnetb0", "efficientnet_b0")],
)
def test_an_unknown_model_suggests_similar_names(typed: str, meant: str) -> None:
    with pytest.raises(UserError, match=rf"backbone\.model={typed}: .*timm has .*\b{meant}\b"):
        backbones.load(config(model=typed, model_args={}))


def test_an_unknown_or_unfit_model_argument_is_named() -> None:
    with pytest.raises(UserError, match=r"depth"):
        backbones.load(config(model_args={"depth": 3}))
    with pytest.raises(UserError, match=r"global_pool.*3 dimensions"):
        backbones.load(config(model_args={**SMALL, "global_pool": ""}))


def test_no_weights_are_the_same_network_whatever_the_seed() -> None:
    # Its identity is the word "random", which stands for one network or for nothing.
    torch.manual_seed(1)
    first = backbones.load(config()).state_dict()
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = backbones.load(config()).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("model", "arguments", "width"),
    [("resnet18", {}, 512), ("resnet18", SMALL, 8), ("mobilenetv3_small_050", {}, 1024)],
)
def test_num_features_is_the_width_of_what_comes_out(
    model: str, arguments: dict[str, Any], width: int
) -> None:
    extractor = backbones.load(config(model=model, model_args=arguments))
    assert extractor.num_features == width
    assert extractor(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).shape == (2, width)


# --- normalisation ---------------------------------------------------------------------------------


def test_bytes_and_floats_give_the_bare_networks_features_of_normalised_input(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    path = tmp_path / "net.safetensors"
    safetensors.torch.save_file(state, path)
    extractor = backbones.load(from_file(path))
    assert not extractor.training
    bare = timm.create_model("resnet18", num_classes=0, **SMALL).eval()
    bare.load_state_dict(state)
    images = torch.randint(256, (3, 3, 40, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    normalised = torch.empty(3, 3, 40, 48)
    for channel in range(3):
        normalised[:, channel] = (images[:, channel] / 255 - MEAN[channel]) / STD[channel]
    with torch.no_grad():
        features = extractor(images)
        assert torch.equal(features, extractor(images / 255))
        # The same operations on the same numbers, except that a scalar of Python is a double where the
        # buffer is float32: one rounding (6e-8) per pixel, of which the network makes at most ~100 times.
        torch.testing.assert_close(features, bare(normalised), rtol=1e-5, atol=0)
    assert features.std() > 0


def test_normalisation_is_no_part_of_the_state_dict() -> None:
    extractor = backbones.load(config())
    assert all(key.startswith("network.") for key in extractor.state_dict())


# --- the hub ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("offline", [True, False])
def test_the_hub_without_a_network_fails_in_seconds_with_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, offline: bool
) -> None:
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "https://127.0.0.1:9")  # nobody listens at discard
    started = time.perf_counter()
    with pytest.raises(UserError) as caught:
        backbones.load(config(weights="hub", model_args={}))
    assert time.perf_counter() - started < 5
    assert len(str(caught.value).splitlines()) == 1
    assert "resnet18" in str(caught.value)
    assert offline or "127.0.0.1:9" in str(caught.value)


def test_a_hub_entry_is_identified_without_a_network() -> None:
    found = [backbones.fingerprint(config(weights="hub", model=m)) for m in ("resnet18", "resnet34")]
    assert found[0] != found[1]
    assert all(f.startswith("hub:timm/resnet") for f in found)


# --- the files of conf -----------------------------------------------------------------------------


def test_the_embedded_backbone_loads() -> None:
    cfg = composed("shapes_resnet10")
    extractor = backbones.load(cfg)
    assert extractor.num_features == 128
    stored = safetensors.torch.load_file(backbones.checkpoint_path(cfg))
    for key, value in extractor.network.state_dict().items():
        assert torch.equal(value, stored[key].to(value.dtype))


def test_the_tiny_imagenet_backbone_loads_if_it_is_there() -> None:
    cfg = composed("resnet18_tin64")
    assert cfg.checkpoint is not None
    if not Path(cfg.checkpoint).is_file():
        pytest.skip("no weights/resnet18_tin64.safetensors")
    assert backbones.fingerprint(cfg) == (cfg.checksum or "").removeprefix("sha256:")
    assert backbones.load(cfg).num_features == 512
