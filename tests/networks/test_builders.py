"""Claims about networks that are not timm's: found, built, identified, trained, and refused in one line."""

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from torch import nn

from daft import experiment
from daft.common.errors import ConfigError, UserError
from daft.config.schema import BackboneConfig, Config
from daft.networks import backbones, checkpoints
from daft.runs.identity import run_identity
from daft.runs.reopened import open_run
from daft.training import evaluation
from tests.conftest import ROOT

CPU = torch.device("cpu")
README = (ROOT / "conf" / "README.md").read_text().partition("## Your own network")[2]
HEAD = "import torch\nfrom torch import nn\nPOOL = nn.AdaptiveAvgPool2d(1), nn.Flatten()\n"
NET = f"""{HEAD}
def build(width=4):
    return nn.Sequential(nn.Conv2d(3, width, 1), nn.BatchNorm2d(width), *POOL)
"""
SHARED = f"{NET}\nnetwork = build()\ndef shared(): return network\n"
OTHER = f"""{NET}
draws = torch.Generator()
def other():
    network = build()
    network[0].bias.data.uniform_(generator=draws)
    return network
"""

numbers = count()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Writes a module into the working directory and says its name, which no other test uses."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def write(code: str) -> str:
        name = f"networks_of_a_user_{next(numbers)}"
        (tmp_path / f"{name}.py").write_text(code)
        return name

    return write


def config(model: str, **changes: Any) -> BackboneConfig:
    settings: dict[str, Any] = {"name": "x", "source": "import", "model": model, "weights": "own"}
    settings |= {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    return BackboneConfig(**settings | changes)


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", README, re.DOTALL)
    assert found
    return found[1]


@pytest.fixture
def example(module: Callable[[str], str], tiny: Callable[..., Config]) -> Callable[..., Config]:
    """A run of the README's network on the embedded images."""
    settings = yaml.safe_load(block("yaml"))
    settings["model"] = f"{module(block('python'))}.{settings['model'].rpartition('.')[2]}"
    overrides = [f"backbone.{key}={value}".replace("'", "") for key, value in settings.items()]
    return lambda *more: tiny("backbone=timm", *overrides, *more)


def test_the_readmes_network_trains_is_recorded_and_opens_again(example: Callable[..., Config]) -> None:
    done = experiment.run(example("method=daft"))
    assert (done.record["status"], done.fresh) == ("finished", True)
    identity = done.record["identity"]["backbone"]
    assert (identity["source"], identity["model_args"]) == ("import", {"width": 16})
    assert re.fullmatch(r"own:[0-9a-f]{64}", identity["weights"])
    assert len({row["name"] for row in done.record["bn_shift"]}) == 2
    assert not experiment.run(example("method=daft")).fresh

    run = open_run(done.directory)
    model, images = run.network(CPU), run.images(CPU)
    cast = evaluation.autocast(CPU, "fp32")
    found = evaluation.accuracy(model.backbone, model.head, images.evaluation["neon"], cast)
    assert found == done.record["metrics"]["neon/accuracy"]
    pretrained = backbones.load(run.config.backbone).state_dict()
    key = "network.0.weight"
    assert not torch.equal(model.backbone.state_dict()[key], pretrained[key])  # it is the trained one


def test_normalised_images_become_the_functions_features(module: Callable[[str], str]) -> None:
    cfg = config(f"{module(NET)}.build", model_args={"width": 6})
    extractor = backbones.load(cfg)
    assert (extractor.num_features, extractor.training) == (6, False)
    images = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(extractor(images), extractor.network((images / 255 - 0.5) / 0.25))
    assert extractor.weights is not None
    assert extractor.weights.origin == checkpoints.fingerprint(cfg)


def test_feature_maps_are_averaged_and_names_stay(module: Callable[[str], str]) -> None:
    pooled, maps = (backbones.load(config(f"{module(code)}.build")) for code in (NET, HEAD + MAPS))
    assert maps.num_features == pooled.num_features == 4
    maps.load_state_dict(pooled.state_dict())
    images = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        # Eight bits of float32's 24 are left for sums of 64 numbers in another order.
        torch.testing.assert_close(maps(images), pooled(images), rtol=2**-16, atol=2**-16)


def test_a_checkpoint_loads_key_by_key_or_not_at_all(module: Callable[[str], str], tmp_path: Path) -> None:
    name, file = f"{module(NET)}.build", tmp_path / "net.safetensors"
    state = {f"net.{k}": v + 1 for k, v in backbones.load(config(name)).network.state_dict().items()}
    safetensors.torch.save_file(state, file)
    cfg = config(name, weights="file", checkpoint=str(file), prefix="net.")
    loaded = backbones.load(cfg).network.state_dict()
    assert all(torch.equal(loaded[key.removeprefix("net.")], value) for key, value in state.items())
    assert checkpoints.fingerprint(cfg) == checkpoints.fingerprint(replace(cfg, source="timm"))  # the file's
    with pytest.raises(UserError, match=r"would fit with backbone\.prefix=net\."):
        backbones.load(replace(cfg, prefix=""))
    with pytest.raises(UserError, match=r"other shape \(\d\): 0\.weight"):
        backbones.load(replace(cfg, model_args={"width": 5}))


def test_own_weights_are_known_by_every_name_type_shape_and_value() -> None:
    def known(name: str = "a", value: float = 1.0, dtype: Any = torch.float32, shape: Any = (2, 3)) -> str:
        network = nn.Module()
        network.register_buffer(name, torch.full(shape, value, dtype=dtype))
        network.register_buffer("count", torch.tensor(3))
        return checkpoints.state_fingerprint(network)

    assert known() == known()
    assert (
        len({known(), known("b"), known(value=1.0000001), known(dtype=torch.int32), known(shape=(3, 2))}) == 5
    )


@pytest.mark.parametrize("weights", ["own", "random"])
def test_initial_weights_depend_on_no_seed(module: Callable[[str], str], weights: str) -> None:
    cfg = config(f"{module(NET)}.build", weights=weights)
    torch.manual_seed(1)
    before = checkpoints.fingerprint(cfg)
    torch.manual_seed(2)
    assert checkpoints.fingerprint(cfg) == before
    assert before.startswith(f"{weights}:")


def test_runs_do_not_share_a_network_that_the_function_keeps(module: Callable[[str], str]) -> None:
    cfg = config(f"{module(SHARED)}.shared")
    torch.nn.init.zeros_(next(backbones.load(cfg).parameters()))
    assert next(backbones.load(cfg).parameters()).any()


def test_weights_that_nothing_identifies_are_refused(module: Callable[[str], str]) -> None:
    with pytest.raises(UserError, match=r"\.other has other weights each time; it must seed what it draws"):
        backbones.load(config(f"{module(OTHER)}.other"))


LIST = """class build(nn.BatchNorm2d):
    def __init__(self): super().__init__(3)
    def forward(self, images): return [images]
"""
MAPS = "def build(): return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))"
ROWS = "def build(): return nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(2))"
GREY = "def build(): return nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), *POOL)"
TIED = "def build(): a = nn.BatchNorm2d(3); return nn.Sequential(a, a, *POOL)"
SIDE_8 = "def build(): return nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(192, 4))"
LOCKED = """import threading
def build():
    network = nn.Sequential(nn.BatchNorm2d(3), *POOL)
    network.lock = threading.Lock()
    return network
"""
MISTAKES = {
    "def other(): pass": r"in /\S+ and on Python's path raised AttributeError: .*no attribute 'build'",
    "import nowhere_at_all": r"raised ModuleNotFoundError: No module named 'nowhere_at_all'",
    "def build(: pass": r"raised SyntaxError: ",
    "build = 3": r"raised TypeError: 'int' object is not callable",
    "def build(): raise KeyError('depth')": r"calling it with model_args=\{\} raised KeyError: 'depth'",
    "def build(): return {'a': 1}": r"returns a dict, not a torch\.nn\.Module",
    "def build(): return nn.Linear(3, 3)": r"has no batch-norm layer",
    ROWS: r"features are \(1, 3, 50176\), not \(1, D\) or maps \(1, D, h, w\)",
    LIST: r"features are a list, not \(1, D\)",
    GREY: r"takes no RGB images of 224 x 224: ",
    TIED: r"layers share a tensor",
    LOCKED: r"returns a network that cannot be copied \(TypeError: cannot pickle ",
    SIDE_8: r"backbone\.input_size is the side",
}


@pytest.mark.parametrize(("code", "message"), MISTAKES.items())
def test_a_mistake_is_one_line(module: Callable[[str], str], code: str, message: str) -> None:
    name = f"{module(HEAD + code)}.build"
    with pytest.raises(UserError, match=rf"^backbone\.model={name}\b.*{message}") as caught:
        backbones.load(config(name))
    assert len(str(caught.value).splitlines()) == 1


def test_a_module_that_is_not_there_is_named_with_where_it_was_looked_for(
    module: Callable[[str], str], tmp_path: Path
) -> None:
    module("")
    with pytest.raises(UserError, match=rf"in {tmp_path} and .* No module named 'nowhere_at_all'"):
        backbones.load(config("nowhere_at_all.networks.build"))


def test_a_network_of_one_size_needs_that_size(module: Callable[[str], str]) -> None:
    assert backbones.load(config(f"{module(HEAD + SIDE_8)}.build", input_size=8)).num_features == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("source=import model=a.b weights=hub", r"weights: hub, but source=import has file, random, own"),
        ("source=timm model=resnet18 weights=own", r"weights: own, but source=timm has file, random, hub"),
        ("source=import model=b weights=own", r"model: b; .*my_module\.function"),
        ("source=import model=a.b weights=own prefix=x", r"prefix: x, but weights=own reads no file"),
        ("source=my model=a.b", r"source: 'my' is not allowed: .*'timm' or 'import'"),
    ],
)
def test_what_makes_no_sense_together_is_refused(
    configure: Callable[..., Config], settings: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^backbone\.{message}"):
        configure("backbone=timm", *(f"backbone.{setting}" for setting in settings.split()))


def test_segmentation_of_an_imported_network_is_refused(configure: Callable[..., Config]) -> None:
    own = ("backbone=timm", "backbone.source=import", "backbone.model=a.b", "backbone.weights=own")
    with pytest.raises(ConfigError, match=r"^backbone\.source: import, but only timm's networks segment"):
        configure("dataset=shapes_masks", *own)


def test_the_key_is_in_a_runs_identity_only_if_it_is_set(configure: Callable[..., Config]) -> None:
    timm = configure("backbone=timm", "backbone.model=a.b", "backbone.weights=random")
    imported = replace(timm, backbone=replace(timm.backbone, source="import"))
    known, other = (run_identity(c, "fp32", {}, "w")["backbone"] for c in (timm, imported))
    assert known.keys() == {"model", "model_args", "mean", "std", "weights"}
    assert other == known | {"source": "import"}
