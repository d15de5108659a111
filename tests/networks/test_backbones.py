"""Backbones: a checkpoint loads key by key or not at all, and features are the network's own."""

import hashlib
import os
import pickle
import re
import socket
import zipfile
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import hydra
import pytest
import safetensors.torch
import timm
import torch
from pydantic import TypeAdapter
from timm.models.byobnet import ByobNet, checkpoint_filter_fn
from torch import Tensor, nn

from daft import experiment
from daft.batchnorm import batchnorm_layers, convert_batchnorm
from daft.common.errors import UserError
from daft.config.check import validate
from daft.config.schema import BackboneConfig, Config
from daft.networks import backbones, checkpoints, torchscript
from tests.helpers import fabricate_weights

ROOT = Path(__file__).resolve().parents[2]
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
    assert checkpoints.fingerprint(cfg) != checkpoints.fingerprint(key)


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
    _, missing, unexpected, shape, hint = str(caught.value).splitlines()
    assert "backbone.prefix, drop or rename" in hint
    assert missing.strip() == "missing (2): bn1.running_var, layer4.0.bn2.bias"
    assert unexpected.strip() == "unexpected (2): fc.weight, epoch"
    assert (
        shape.strip()
        == "other shape (2): conv1.weight (4, 3, 3, 3) for (64, 3, 7, 7), bn1.bias a str for (64,)"
    )


@pytest.mark.parametrize(
    ("extra", "prefix", "remedy"),
    [
        (["fc.weight", "fc.bias"], "", "backbone.drop=[fc.]"),
        ([], "module.net.", "backbone.prefix=module.net."),
        (
            ["module.net.fc.0.weight", "head"],
            "module.net.",
            "backbone.prefix=module.net. backbone.drop=[fc.]",
        ),
    ],
)
def test_a_message_says_with_which_settings_the_file_would_fit_and_they_do(
    tmp_path: Path, state: dict[str, Tensor], extra: list[str], prefix: str, remedy: str
) -> None:
    path = tmp_path / "net.pt"
    torch.save({prefix + k: v for k, v in state.items()} | dict.fromkeys(extra, torch.ones(1)), path)
    with pytest.raises(UserError) as caught:
        backbones.load(from_file(path))
    assert str(caught.value).splitlines()[-1] == f"  the names would fit with {remedy}"
    settings = dict(word.removeprefix("backbone.").split("=") for word in remedy.split())
    drop = settings.get("drop", "[]")[1:-1].split(",") if "drop" in settings else []
    assert_loaded(from_file(path, prefix=settings.get("prefix", ""), drop=drop), state)


@pytest.mark.parametrize(
    "changes",
    [{"prefix": "encoder."}, {"prefix": "conv1.weight.x"}, {"drop": ["c", "b", "l"]}],
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
    told = r"epoch, model; the names would fit with backbone\.wrapper=model"
    with pytest.raises(UserError, match=rf"nothing in .* begin {told}"):
        backbones.load(from_file(path))
    with pytest.raises(UserError, match=rf"wrapper=state_dict: .* has {told}"):
        backbones.load(from_file(path, wrapper="state_dict"))
    with pytest.raises(UserError, match=r"no state dict but int"):
        backbones.load(from_file(path, wrapper="epoch"))
    assert_loaded(from_file(path, wrapper="model"), state)


@pytest.mark.parametrize("content", [torch.ones(3), [torch.ones(3)], {0: torch.ones(3)}])
def test_a_torch_file_of_something_else_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "net.pt")
    with pytest.raises(UserError, match=rf"no state dict but {type(content).__name__}"):
        backbones.load(from_file(tmp_path / "net.pt"))


def test_a_file_that_cannot_be_read_is_named_with_its_key(tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_bytes(b"<html>404</html>")
    with pytest.raises(UserError, match=r"^backbone\.checkpoint: /\S+/net\.pt is a web page"):
        backbones.load(from_file(tmp_path / "net.pt"))


def test_a_wrong_checksum_names_both_and_the_right_one_passes(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    path = tmp_path / "net.safetensors"
    safetensors.torch.save_file(state, path)
    right, wrong = hashlib.sha256(path.read_bytes()).hexdigest(), "0" * 64
    assert checkpoints.fingerprint(from_file(path, checksum=f"sha256:{right}")) == right
    assert_loaded(from_file(path, checksum=f"sha256:{right}"), state)
    first_digits = hashlib.md5(path.read_bytes()).hexdigest()[:8]  # all that some authors publish
    assert_loaded(from_file(path, checksum=f"md5:{first_digits}"), state)
    for use in (checkpoints.fingerprint, backbones.load):
        with pytest.raises(UserError, match=rf"has sha256:{right}, not sha256:{wrong}"):
            use(from_file(path, checksum=f"sha256:{wrong}"))


@pytest.mark.parametrize("checkpoint", ["nowhere/net.pt", "package:daft/nothing.safetensors"])
def test_an_absent_file_is_named(checkpoint: str) -> None:
    with pytest.raises(UserError, match=rf"there is no file .*{re.escape(checkpoint.rpartition('/')[2])}"):
        backbones.load(from_file(Path(checkpoint)))


def test_a_folder_or_a_pipe_is_no_checkpoint_and_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").touch()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"model is a folder; name a file in it: model\.safetensors"):
        backbones.load(from_file(tmp_path / "model"))
    with pytest.raises(UserError, match=r"pipe is no regular file"):
        backbones.load(from_file(tmp_path / "pipe"))


def test_a_checkpoint_at_home_or_behind_a_link_is_found(
    tmp_path: Path, state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save(state, tmp_path / "net.pt")
    (tmp_path / "link").symlink_to("net.pt")
    for checkpoint in ("~/net.pt", "~/link"):
        assert_loaded(from_file(Path(checkpoint)), state)


def test_what_can_be_fetched_names_the_command_that_does() -> None:
    cfg = from_file(Path("nowhere.pt"), urls=["http://127.0.0.1/net.pt"])
    with pytest.raises(UserError, match=r"no file nowhere\.pt; .* python scripts/prepare\.py backbone=x, or"):
        backbones.load(cfg)


def test_names_are_translated_whole_and_by_the_first_pattern_that_matches(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    path = tmp_path / "net.pt"
    translated = {
        re.sub(r"^layer(\d)\.0\.(conv|bn)", r"stage\1.\2_", key): value for key, value in state.items()
    }
    torch.save(translated, path)
    rename = {
        r"stage(\d)\.(conv|bn)_(\d\..+)": r"layer\1.0.\2\3",
        r"stage.*": r"never",
        r"conv": r"never",  # a part of conv1.weight
    }
    cfg = from_file(path, rename=rename)
    with pytest.raises(UserError, match=r"unexpected .*stage1\.conv_1\.weight"):
        backbones.load(replace(cfg, rename={}))
    assert_loaded(cfg, state)
    reordered = replace(cfg, rename=dict(reversed(rename.items())))
    prints = {checkpoints.fingerprint(c) for c in (cfg, reordered, replace(cfg, rename={}))}
    assert len(prints) == 3


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        ({r"bn1\.(.+)": "one"}, r"bn1\.bias and another entry .* both become one"),
        ({"(": "x"}, r"'\(' to 'x': missing \)"),
        ({"bn1.+": r"\1"}, r"invalid group reference"),
    ],
)
def test_a_translation_that_makes_no_sense_is_refused(
    tmp_path: Path, state: dict[str, Tensor], rename: dict[str, str], message: str
) -> None:
    torch.save(state, tmp_path / "net.pt")
    with pytest.raises(UserError, match=rf"backbone\.rename: .*{message}"):
        backbones.load(from_file(tmp_path / "net.pt", rename=rename))


def test_batch_counters_alone_may_be_absent(tmp_path: Path, state: dict[str, Tensor]) -> None:
    counters = {key for key in state if key.endswith("num_batches_tracked")}
    torch.save({key: value for key, value in state.items() if key not in counters}, tmp_path / "net.pt")
    loaded = backbones.load(from_file(tmp_path / "net.pt")).network.state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in state.keys() - counters)


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
    with pytest.raises(UserError, match=r"does not load .*asks for \w+\.mkdir, which weights do not need"):
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
    with pytest.raises(UserError, match=r"global_pool.*features are \(1, 8, 7, 7\), not \(1, D\)"):
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


def test_another_width_than_configured_is_refused() -> None:
    assert backbones.load(config(num_features=8)).num_features == 8
    with pytest.raises(UserError, match=r"backbone\.num_features=2048: .*resnet18 .* are 8 wide"):
        backbones.load(config(num_features=2048))


def test_images_of_another_size_than_configured_are_refused(tiny: Callable[..., Config]) -> None:
    with pytest.raises(UserError, match=r"takes images of 224 x 224 pixels only, not of 32 x 32, as .*train"):
        experiment.run(tiny("backbone.input_size=224"))


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
def test_the_hub_without_a_network_fails_at_once_with_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, offline: bool
) -> None:
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "https://127.0.0.1:9")  # nobody listens at discard
    connect, tried = socket.socket.connect, []
    monkeypatch.setattr(socket.socket, "connect", lambda self, to: (tried.append(to), connect(self, to)))
    with pytest.raises(UserError) as caught:
        backbones.load(config(weights="hub", model_args={}))
    assert tried == ([] if offline else [("127.0.0.1", 9)])  # the hub's client would try for most of a minute
    assert len(str(caught.value).splitlines()) == 1
    assert "resnet18" in str(caught.value)
    assert offline or "127.0.0.1:9" in str(caught.value)


def test_a_hub_entry_is_identified_without_a_network() -> None:
    found = [checkpoints.fingerprint(config(weights="hub", model=m)) for m in ("resnet18", "resnet34")]
    assert found[0] != found[1]
    assert all(f.startswith("hub:timm/resnet") for f in found)


# --- the paper's networks --------------------------------------------------------------------------


class Published(NamedTuple):
    """Fabricated checkpoints under the names of the real ones, and the networks that are in them."""

    folder: Path
    resnet: nn.Module
    visual: nn.Module

    def config(self, name: str) -> BackboneConfig:
        """conf/backbone/<name>.yaml for the fabricated file, whose checksum is another."""
        cfg = composed(name)
        return replace(cfg, checkpoint=str(self.folder / Path(cfg.checkpoint or "").name), checksum=None)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    folder = tmp_path_factory.mktemp("published")
    resnet, visual = fabricate_weights.resnet50(), fabricate_weights.clip_visual()
    state = resnet.state_dict()
    fabricate_weights.moco(folder / "moco_v2_800ep_pretrain.pth.tar", state)
    fabricate_weights.moco(folder / "moco_tp.pth.tar", state, zipped=False)
    fabricate_weights.swav(folder / "swav_800ep_pretrain.pth.tar", state)
    fabricate_weights.clip(folder / "RN50.pt", visual)
    return Published(folder, resnet, visual)


def images_of(side: int) -> Tensor:
    """A bright image of noise and a dark one."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(256, (2, 3, side, side), dtype=torch.uint8, generator=generator)
    return images // torch.tensor([1, 4], dtype=torch.uint8).view(2, 1, 1, 1)


def normalised(images: Tensor, cfg: BackboneConfig) -> Tensor:
    mean, std = torch.tensor(cfg.mean).double(), torch.tensor(cfg.std).double()
    return ((images.double() / 255).movedim(1, -1) - mean).div(std).movedim(-1, 1)


def assert_same_features(found: Tensor, expected: Tensor) -> None:
    """Up to what float64 rounds.

    A sum of n ≤ 4608 products is off by n·ε of the sum of their sizes, which exceeds the sum by √n or so:
    over 50 layers 50 · 4608 · 68 · 1e-16 ≈ 2e-9 at worst. Two images differ by far more.
    """
    size = expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-9 * size)
    assert (expected[0] - expected[1]).abs().max() > 0.01 * size


@pytest.mark.parametrize("name", ["moco_v2", "swav"])
@torch.no_grad()
def test_a_published_resnet_gives_torchvisions_features(published: Published, name: str) -> None:
    cfg = published.config(name)
    extractor = backbones.load(cfg).double()
    assert cfg.std == (0.228, 0.224, 0.225)  # sic, as in LP-FT and the authors' code
    assert len(batchnorm_layers(extractor)) == 53
    assert extractor.num_features == 2048
    images, oracle = images_of(64), deepcopy(published.resnet).double()
    assert_same_features(extractor(images), oracle(normalised(images, cfg)))


def test_what_was_loaded_accounts_for_every_entry_of_the_file(published: Published) -> None:
    found = backbones.load(published.config("moco_tp")).weights
    assert found is not None
    content = (published.folder / "moco_tp.pth.tar").read_bytes()
    assert found.origin == f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert found.loaded == 53 * (1 + 5)  # as many convolutions as BN layers, of five tensors each
    assert found.dropped == ["fc.0.weight", "fc.0.bias", "fc.2.weight", "fc.2.bias"]
    assert found.outside == found.loaded + 4 + 2  # the other encoder, queue and queue_ptr
    assert str(found).startswith("318 tensors loaded, 4 dropped (fc.0.weight, fc.0.bias, ")
    random = backbones.load(config())
    assert random.weights == ("random", len(random.network.state_dict()), [], 0)
    assert backbones.untrained(config()).weights is None


def test_a_swav_checkpoint_of_its_training_needs_its_wrapper(published: Published, tmp_path: Path) -> None:
    path = tmp_path / "swav.pth"
    fabricate_weights.swav(path, published.resnet.state_dict(), wrapped=True)
    cfg = replace(published.config("swav"), checkpoint=str(path))
    with pytest.raises(UserError, match=r"nothing in .* begin epoch, state_dict"):
        backbones.load(cfg)
    found = backbones.load(replace(cfg, wrapper="state_dict")).weights
    assert found is not None
    assert (found.loaded, len(found.dropped), found.outside) == (318, 10, 0)
    assert all(name.startswith(("projection_head.", "prototypes.")) for name in found.dropped)


def test_a_checkpoint_of_another_architecture_is_refused(published: Published) -> None:
    cfg = published.config("moco_v2")
    with pytest.raises(UserError, match=r"does not fit the network\n  unexpected \(102\): layer1\.0\.conv3"):
        backbones.load(replace(cfg, model="resnet34", num_features=512))


@pytest.fixture(scope="module")
def clip(published: Published) -> backbones.FeatureExtractor:
    return backbones.load(published.config("clip_rn50"))


def test_clips_names_become_what_timm_makes_of_them(
    published: Published, clip: backbones.FeatureExtractor
) -> None:
    stored = torchscript.read_state_dict(published.folder / "RN50.pt")
    assert isinstance(clip.network, ByobNet)
    expected = checkpoint_filter_fn(stored, clip.network)
    loaded = clip.network.state_dict()
    assert loaded.keys() == expected.keys()
    for key, value in expected.items():
        assert loaded[key].dtype == (torch.float32 if value.is_floating_point() else torch.int64)
        assert torch.equal(loaded[key], value.to(loaded[key].dtype)), key
    assert {value.dtype for value in stored.values()} == {torch.float16, torch.float32, torch.int64}


@torch.no_grad()
def test_clips_features_are_its_image_embedding_and_stay_so_under_conversion(
    published: Published, clip: backbones.FeatureExtractor
) -> None:
    cfg, extractor, images = published.config("clip_rn50"), deepcopy(clip).double(), images_of(224)
    assert (extractor.num_features, extractor.input_size) == (1024, 224)
    assert len(batchnorm_layers(extractor)) == 55
    expected = deepcopy(published.visual).double()(normalised(images, cfg))
    assert expected.shape == (2, 1024)
    assert_same_features(extractor(images), expected)

    shifts = convert_batchnorm(extractor, [images])
    assert all(not torch.allclose(s.source_var, s.target_var, rtol=0.01) for s in shifts.values())
    assert_same_features(extractor(images), expected)


def test_the_hubs_copy_of_clip_keeps_its_projection(
    clip: backbones.FeatureExtractor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(clip.network.state_dict(), path)
    cfg = composed("clip_rn50_hub")
    local = {"pretrained_cfg_overlay": {"file": str(path)}}  # timm reads it in place of the hub's
    loaded = backbones.load(replace(cfg, model_args=cfg.model_args | local))
    assert (loaded.num_features, loaded.input_size) == (1024, 224)
    assert all(torch.equal(v, clip.state_dict()[key]) for key, v in loaded.state_dict().items())
    assert (cfg.mean, cfg.std) == (composed("clip_rn50").mean, composed("clip_rn50").std)
    assert checkpoints.fingerprint(cfg).startswith("hub:timm/resnet50_clip.openai:openai:")


def test_an_archive_is_known_by_its_content_not_by_its_name(published: Published, tmp_path: Path) -> None:
    path = tmp_path / "clip.pth.tar"
    path.symlink_to(published.folder / "RN50.pt")
    with pytest.raises(UserError, match=r"(?s)does not fit the network.* unexpected .*stem"):
        backbones.load(from_file(path, prefix="visual.", rename=composed("clip_rn50").rename))


def test_a_cut_off_or_evil_archive_is_refused_by_its_name(published: Published, tmp_path: Path) -> None:
    path = tmp_path / "RN50.pt"
    path.write_bytes((published.folder / "RN50.pt").read_bytes()[: 2**20])
    with pytest.raises(UserError, match=r"backbone\.checkpoint: .*RN50\.pt is a zip, .* that is cut short"):
        backbones.load(from_file(path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps(Malice(tmp_path / "trace")))
        archive.writestr("x/constants.pkl", b"")
    with pytest.raises(UserError, match=r"backbone\.checkpoint: .*RN50\.pt.* asks for \w+\.mkdir"):
        backbones.load(from_file(path))
    assert not (tmp_path / "trace").exists()


# --- the files of conf -----------------------------------------------------------------------------


def test_the_embedded_backbone_loads() -> None:
    cfg = composed("shapes_resnet10")
    extractor = backbones.load(cfg)
    assert extractor.num_features == 128
    stored = safetensors.torch.load_file(checkpoints.path(cfg))
    for key, value in extractor.network.state_dict().items():
        assert torch.equal(value, stored[key].to(value.dtype))


def test_the_tiny_imagenet_backbone_loads_if_it_is_there() -> None:
    cfg = composed("resnet18_tin64")
    assert cfg.checkpoint is not None
    if not Path(cfg.checkpoint).is_file():
        pytest.skip("no weights/resnet18_tin64.safetensors")
    assert checkpoints.fingerprint(cfg) == (cfg.checksum or "").removeprefix("sha256:")
    assert backbones.load(cfg).num_features == 512
