"""Claims about what makes two runs the same run."""

import json
import re
from dataclasses import fields
from itertools import product
from pathlib import Path

import pytest

from daft.common.files import digest
from daft.config.compose import configuration
from daft.config.options import CONF
from daft.config.schema import (
    BackboneConfig,
    DatasetConfig,
    FewshotConfig,
    MethodConfig,
    SegmentationConfig,
    TrainingConfig,
)
from daft.runs.identity import IDENTITY_KEYS, IDENTITY_KEYS_IF_SET, OTHER_KEYS, run_identity

SECTIONS = {
    "dataset": DatasetConfig,
    "backbone": BackboneConfig,
    "method": MethodConfig,
    "training": TrainingConfig,
    "segmentation": SegmentationConfig,
    "fewshot": FewshotConfig,
}


@pytest.mark.parametrize("section", SECTIONS)
def test_every_setting_either_counts_or_does_not(section: str):
    """Whoever adds a key decides: a key in neither list would silently not count."""
    lists = [set(IDENTITY_KEYS[section]), set(IDENTITY_KEYS_IF_SET.get(section, ())), OTHER_KEYS[section]]
    known = {field.name for field in fields(SECTIONS[section])}
    assert set.union(*lists) == known
    assert sum(map(len, lists)) == len(known)


@pytest.mark.parametrize("section", IDENTITY_KEYS_IF_SET)
def test_a_younger_setting_does_not_count_at_its_default(section: str):
    defaults = {field.name: field.default for field in fields(SECTIONS[section])}
    for key, value in IDENTITY_KEYS_IF_SET[section].items():
        assert getattr(defaults[key], "default", defaults[key]) == value


def test_a_limit_of_size_counts_where_larger_images_are_left_out_and_not_where_they_are_refused():
    def facts(*overrides: str) -> str:
        return digest(run_identity(configuration(*overrides), "fp32", {}, ""))

    skip, larger = "compute.unreadable=skip", "dataset.max_megapixels=500"
    assert facts() == facts(larger) == facts(skip)
    assert facts(skip, larger) not in (facts(), facts(skip, "dataset.max_megapixels=300"))


IDS: dict[str, str] = json.loads(Path(__file__).with_name("run_ids.json").read_text())
"""Ids of runs by `dataset/backbone/method`, and of the default run with some settings changed.

A change that moves one makes every such run anew, so it must be meant: raise PROTOCOL, and write the file
again.
"""

COMBINATIONS = [name for name in IDS if name.count("/") == 2 and "=" not in name]

NEEDED = {"folder": "dataset.root=/images", "timm": "backbone.model=resnet18"}


def run_id(name: str) -> str:
    """Of the run in float32 on images and weights with these fingerprints."""
    overrides = re.split(r" (?=\w+=)", name)
    if name in COMBINATIONS:
        groups = dict(zip(("dataset", "backbone", "method"), name.split("/"), strict=True))
        overrides = [f"{group}={option}" for group, option in groups.items()]
        overrides += [NEEDED[option] for option in groups.values() if option in NEEDED]
    config = configuration(*overrides)
    assert name not in COMBINATIONS or name.endswith(f"/{config.method.name}")
    images = {split: f"images of {split}" for split in ("train", "id", *config.dataset.ood)}
    return digest(run_identity(config, "fp32", images, "weights"))


def test_every_method_composes_with_every_backbone_and_run_ids_are_what_they_were():
    """All variations, and every 23rd combination: each dataset, and each network with each method."""
    some = COMBINATIONS[::23]  # a method's η_w comes from the backbone
    assert {name.partition("/")[0] for name in some} == {name.partition("/")[0] for name in COMBINATIONS}
    assert {name.partition("/")[2] for name in some} == {name.partition("/")[2] for name in COMBINATIONS}
    chosen = [*some, *(name for name in IDS if name not in COMBINATIONS)]
    assert {name: run_id(name) for name in chosen} == {name: IDS[name] for name in chosen}


def test_every_part_and_every_task_has_an_id():
    named = " ".join(name for name in IDS if name not in COMBINATIONS)
    parts = {file.stem for file in (CONF / "part").glob("*.yaml")}
    assert {part for part in parts if f"part=[{part}]" in named} == parts
    assert {"fewshot", "maml", "shapes_masks", "segmentation"} <= set(re.findall(r"task=(\w+)", named))


def test_every_combination_has_an_id():
    folders = [CONF / group for group in ("dataset", "backbone", "method")]
    options = [sorted(file.stem for file in folder.glob("*.yaml")) for folder in folders]
    assert {"/".join(names) for names in product(*options)} == set(COMBINATIONS)


if __name__ == "__main__":  # all of them, in minutes
    changed = [name for name in IDS if run_id(name) != IDS[name]]
    print(f"{len(IDS) - len(changed)} of {len(IDS)} ids are what they were", *changed, sep="\n")
