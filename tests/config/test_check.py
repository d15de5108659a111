"""Claims about configurations: everything composes, and what makes no sense is named."""

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from pydantic import TypeAdapter, ValidationError

from daft.common.errors import ConfigError
from daft.config import texts
from daft.config.operations import OPERATIONS
from daft.config.schema import Config

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"
REQUIRED = {"folder": ["dataset.root=/photos"], "timm": ["backbone.model=resnet18"]}


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@pytest.mark.parametrize("group", ["dataset", "backbone", "method"])
def test_every_option_composes(configure, group):
    """Every method with every backbone: test_identity.py."""
    found = options(group)
    assert found
    for option in found:
        assert getattr(configure(f"{group}={option}", *REQUIRED.get(option, [])), group).name


def test_a_home_folder_may_be_written_as_in_a_shell(configure, monkeypatch):
    monkeypatch.setenv("HOME", "/home/o'brien")
    config = configure("dataset=folder", "dataset.root=~/pets", "paths.runs=~")
    assert config.dataset.root == "/home/o'brien/pets"
    assert config.paths.runs == "/home/o'brien"


PACS = ["dataset=pacs", "dataset.root=pacs"]


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
        (["method=ft", "method.lr_head_unit=auto"], "method.lr_head_unit", ["tied", "null"]),
        (
            ["dataset=shapes_masks", "task=shapes_masks", "method.lr_head=auto"],
            "method.lr_head_unit",
            ["linear"],
        ),
        (["backbone.lr_head=much"], "backbone.lr_head", ["much", "or auto"]),
        (["dataset.eval_transform=[flip]"], "dataset.eval_transform", ["random"]),
        (["dataset.eval_transform=[{resiz: 64}]"], "dataset.eval_transform.0", ["resiz", "center_crop"]),
        (["dataset.train_transform=[{resize: 0}]"], "dataset.train_transform.0", ["resize.size", "2"]),
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
        (["backbone=timm"], "backbone.model", ["give it"]),
        (["training.weight_decay=inf"], "training.weight_decay", ["inf", "finite"]),
        (["training.weight_decay=true"], "training.weight_decay", ["true", "number"]),
        (["training.epochs=1000000"], "training.epochs", ["1000000", "100000"]),
        (["training.batch_size=9999999"], "training.batch_size", ["9999999", "1048576"]),
        (["method.lr_backbone=1e30"], "method.lr_backbone", ["1e+30", "1e-12 to 1e+06"]),
        (["method=ft", "method.head_hidden=[100000]"], "method.head_hidden.0", ["100000", "16384"]),
        (["backbone.mean=[nan,0,0]"], "backbone.mean.0", ["nan", "finite"]),
        (["backbone.mean=[123.7,116.3,103.5]"], "backbone.mean.0", ["123.7", "0 to 1", "by 255"]),
        (["backbone.std=[0,1,1]"], "backbone.std.0", ["0", "0.001 to 10"]),
        (["backbone.model_args={a: [{b: inf}]}"], "backbone.model_args", ["inf is no finite number"]),
        (["dataset.image_size=100000"], "dataset.image_size", ["100000", "65536"]),
        (["dataset.train_transform=[{resize: [1, 1]}]"], "dataset.train_transform.0", ["resize.size", "2"]),
        (
            ["dataset.train_transform=[{random_resized_crop: {size: 8, scale: [0, 0]}}]"],
            "dataset.train_transform.0",
            ["scale", "must rise"],
        ),
        (["dataset.name="], "dataset.name", ["''", "one line of characters"]),
        (["dataset.name='a\tb'"], "dataset.name", ["characters that can be seen"]),
        ([f"dataset.name={'x' * 300}"], "dataset.name", ["bytes", "too long"]),
        (["paths.runs="], "paths.runs", ["''", "must not be empty"]),
        (["paths.cache=''"], "paths.cache", ["must not be empty"]),
        (["wandb.project="], "wandb.project", ["''", "1 to 128 characters"]),
        (["wandb.project=a/b"], "wandb.project", ["'a/b'", "none of /"]),
        (["wandb.entity=a/b"], "wandb.entity", ["'a/b'", "letters"]),
        (["compute.threads=99999"], "compute.threads", ["99999", "1024"]),
        (["compute.device=cuda:99999"], "compute.device", ["'cuda:99999'"]),
        ([*PACS, "dataset.files=[{path: ../x, urls: ['http://x/y']}]"], "dataset.files.0.path", ["outside"]),
        ([*PACS, "dataset.files=[{path: /x, urls: ['http://x/y']}]"], "dataset.files.0.path", ["outside"]),
        ([*PACS, "dataset.files=[{path: ., urls: ['http://x/y']}]"], "dataset.files.0.path", ["root itself"]),
        ([*PACS, "dataset.files=[{path: x, urls: ['http://[::1']}]"], "dataset.files.0.urls.0", ["https://"]),
        (
            [*PACS, "dataset.files=[{path: x, urls: ['ftp://x/y']}]"],
            "dataset.files.0.urls.0",
            ["'ftp://x/y'"],
        ),
        (
            [*PACS, "dataset.files=[{path: x, unpack: a, gives: [../../y], urls: ['http://x/y']}]"],
            "dataset.files.0.gives.0",
            ["outside"],
        ),
        (
            ["backbone.model_args={layers: [1000000, 1, 1, 1]}"],
            "backbone.model_args",
            ["1,000,000 is above 65,536"],
        ),
        (["seed=${nope}"], "seed", ["${nope} names no key"]),
        (["seed=${seed}"], "seed", ["itself"]),
        (["dataset.root=${oc.env:NOPE_NOT_SET}"], "dataset.root", ["no environment variable 'NOPE_NOT_SET'"]),
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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["method=sgd"], ["method", "sgd", "daft", "integrated_lp_ft"]),
        (["method.lr_hed=1"], ["method.lr_hed", "lr_head"]),
        (["method.bn_mode=tran"], ["method.bn_mode", "'tran'", "'test'"]),
        (["sede=1"], ["sede", "seed"]),
        (["paths.runs=null"], ["paths.runs", "null"]),
        (["-m", "paths.runs=null", "seed=0,1"], ["paths.runs", "null"]),
        (["paths=/tmp"], ["paths: has keys of its own", "paths.runs=…"]),
        (["dataset=folder", "dataset.root=/x(y)"], ["dataset.root=/x(y)", "with both quotes"]),
        (["dataset=pacs", "paths.data=/nowhere"], ["/nowhere/pacs/sketch", "dataset.train"]),
    ],
)
def test_the_command_line_says_what_is_wrong_without_a_traceback(
    script, arguments, words, tmp_path, monkeypatch
):
    monkeypatch.setenv("DAFT_RUNS", f"{tmp_path}/runs")
    monkeypatch.setenv("DAFT_CACHE", f"{tmp_path}/cache")
    done = script("train.py", *arguments)
    assert done.code == 1
    (line,) = done.errors.splitlines()
    for word in words:
        assert word in line
    assert not list(tmp_path.glob("runs/*/record.json"))


def leaves(kind: object, where: str = "") -> Iterator[tuple[str, object]]:
    """Every type in the schema that is no section, with its key."""
    bare = texts.plain(kind)
    if is_dataclass(bare):
        for each in fields(bare):
            yield from leaves(each.type, f"{where}.{each.name}")
    elif get_origin(bare) in (dict, list, tuple):
        yield where, kind
        for item in get_args(bare):
            yield from leaves(item, f"{where}[]")
    else:
        yield where, kind


LEAVES = dict(leaves(Config))
for name, operation in OPERATIONS.items():
    LEAVES |= {f"{name}{key}": kind for key, kind in leaves(operation)}


def takes(kind: Any, value: object) -> bool:
    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError:
        return False
    return True


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, [math.inf], {"a": math.nan}, True])
def test_no_key_takes_a_number_that_is_not_finite_and_none_takes_true_for_one(value: object):
    assert len(LEAVES) > 100
    taking = {key for key, kind in LEAVES.items() if kind is not Any and takes(kind, value)}
    flags = {key for key, kind in LEAVES.items() if texts.plain(kind) is bool}
    assert taking == (flags if value is True else set())


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["method=lp"], "training.class_weights: balanced, but lp trains nothing by gradients; use null"),
        (["dataset=shapes_masks"], "training.class_weights: balanced, of pixels; use null"),
        (["training.class_weights=equal"], "training.class_weights"),
    ],
)
def test_weights_of_classes_are_refused_where_they_have_no_effect(configure, overrides, told):
    with pytest.raises(ConfigError) as caught:
        configure("training.class_weights=balanced", *overrides)
    assert told in str(caught.value)
