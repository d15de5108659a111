"""Claims about configurations: everything composes, and what makes no sense is named."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from daft.common.errors import ConfigError
from tests.helpers.waiting import HANG_SECONDS

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"
REQUIRED = {"folder": ["dataset.root=/photos"], "timm": ["backbone.model=resnet18"]}


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def test_every_option_composes_and_every_method_with_every_backbone(configure):
    datasets, backbones, methods = (options(group) for group in ("dataset", "backbone", "method"))
    assert all((datasets, backbones, methods))
    for dataset in datasets:
        assert configure(f"dataset={dataset}", *REQUIRED.get(dataset, [])).dataset
    for backbone, method in itertools.product(backbones, methods):  # a method's η_w comes from the backbone
        config = configure(f"backbone={backbone}", f"method={method}", *REQUIRED.get(backbone, []))
        assert config.method.name == method


def test_a_home_folder_may_be_written_as_in_a_shell(configure, monkeypatch):
    monkeypatch.setenv("HOME", "/home/o'brien")
    config = configure("dataset=folder", "dataset.root=~/pets", "paths.runs=~")
    assert config.dataset.root == "/home/o'brien/pets"
    assert config.paths.runs == "/home/o'brien"


@pytest.mark.parametrize(
    ("overrides", "key", "words"),
    [
        (["method.bn_mode=tran"], "method.bn_mode", ["'tran'", "'train'", "'test'"]),
        (["method.lr_hed=1"], "method.lr_hed", ["did you mean 'lr_head'", "lr_backbone"]),
        (["dataset.id.imags=1"], "dataset.id.imags", ["did you mean 'images'"]),
        (["seed=one"], "seed", ["'one'", "integer"]),
        (["seed=-1"], "seed", ["-1"]),
        (["training.batch_size=1"], "training.batch_size", ["1", "2"]),
        (["method.lr_backbone=-0.1"], "method.lr_backbone", ["-0.1", "from 1e-12 to 1e+06"]),
        (["method.lr_backbone=nan"], "method.lr_backbone", ["nan"]),
        (["method.head_hidden=[64]"], "method.head_init", ["zero", "[64]", "random"]),
        (["method=lp_ft", "method.head_hidden=[64]"], "method.head_init", ["probe", "random"]),
        (["method=lp", "method.bn_conversion=true"], "method.bn_conversion", ["frozen", "false"]),
        (["method=lp", "method.bn_mode=train"], "method.bn_mode", ["frozen", "test"]),
        (["method=lp", "method.lr_backbone=0.1"], "method.lr_backbone", ["0.1", "frozen"]),
        (["method=lp", "method.head_init=zero"], "method.lr_head", ["null", "probe"]),
        (["method=ft", "method.lr_head=0.1"], "method.lr_head", ["0.1", "tied", "separate"]),
        (["method=ft", "method.lr_backbone=null"], "method.lr_backbone", ["null", "tied"]),
        (["method.lr_head=null"], "method.lr_head", ["null", "separate"]),
        (["dataset.eval_transform=[flip]"], "dataset.eval_transform", ["random"]),
        (["dataset.eval_transform=[{resiz: 64}]"], "dataset.eval_transform.0", ["resiz", "center_crop"]),
        (["dataset.train_transform=[{resize: 0}]"], "dataset.train_transform.0", ["resize.size", "1"]),
        (["dataset.ood_mean=[mars]"], "dataset.ood_mean", ["'mars'", "photo"]),
        (["dataset.ood.id.path=x"], "dataset.ood.id", ["taken"]),
        (
            ["dataset=folder", "dataset.root=x", "dataset.train.part=train"],
            "dataset.train.part",
            ["eval_every"],
        ),
        (["dataset.train.part=train"], "dataset.train.part", ["seed"]),
        (["dataset.eval_every=5"], "dataset.eval_every", ["5", "drawn"]),
        (["dataset=pacs", "dataset.image_size=64"], "dataset.image_size", ["64", "null"]),
        (["dataset=pacs", "dataset.id.seed=3"], "dataset.id.seed", ["3", "0"]),
        (["training.epochs=true"], "training.epochs", ["true", "integer"]),
        (["compute.device=gpu"], "compute.device", ["'gpu'", "cuda"]),
        (["wandb.mode=on"], "wandb.mode", ["'online'", "'offline'", "'disabled'"]),
        (["backbone.weights=random"], "backbone.weights", ["random", "file"]),
        (["backbone=timm", "backbone.model=resnet18", "backbone.prefix=x"], "backbone.prefix", ["hub"]),
        (["backbone.checkpoint=null"], "backbone.checkpoint", ["null", "hub"]),
        (["backbone.checksum=abc"], "backbone.checksum", ["'abc'"]),
        (["dataset=folder"], "dataset.root", ["give it"]),
    ],
)
def test_a_bad_value_is_one_line_with_the_key_the_value_and_what_is_allowed(configure, overrides, key, words):
    with pytest.raises(ConfigError) as caught:
        configure(*overrides)
    message = str(caught.value)
    assert message.startswith(f"{key}: ")
    assert "\n" not in message
    for word in words:
        assert word in message


def train(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        env=os.environ | environment,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["method=sgd"], ["method", "sgd", "daft", "integrated_lp_ft"]),
        (["method.lr_hed=1"], ["method.lr_hed", "lr_head"]),
        (["method.bn_mode=tran"], ["method.bn_mode", "'tran'", "'test'"]),
        (["sede=1"], ["sede", "seed"]),
        (["-m", "method=ft,lp_ft", "method.lr_head=1"], ["method.lr_head", "tied"]),
        (["dataset=folder", "dataset.root=/x(y)"], ["dataset.root=/x(y)", "with both quotes"]),
        (["dataset=pacs", "paths.data=/nowhere"], ["/nowhere/pacs/sketch", "dataset.train"]),
    ],
)
def test_the_command_line_says_what_is_wrong_without_a_traceback(arguments, words, tmp_path):
    done = train(*arguments, f"paths.runs={tmp_path}/runs", f"paths.cache={tmp_path}/cache")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    for word in words:
        assert word in done.stderr
    assert not list(tmp_path.glob("runs/*/record.json"))
