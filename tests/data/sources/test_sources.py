"""Sources are added by one module and one line, and all have the same two functions."""

import inspect
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from pydantic import ValidationError

from daft.config.schema import DatasetConfig, SplitConfig
from daft.config.sources import SOURCES, SourceInfo
from daft.data import datasets, sources
from daft.data.labelled import Labelled


def dataset(source: str) -> DatasetConfig:
    settings = {"name": "new", "ood": {}, "train_transform": [], "eval_transform": [], "epochs": 1}
    return DatasetConfig(**settings, source=source, train=SplitConfig(path="a"), id=SplitConfig(path="b"))


def test_the_table_names_the_modules_of_the_folder():
    assert sources.__file__ is not None
    modules = {file.stem for file in Path(sources.__file__).parent.glob("*.py")} - {"__init__"}
    assert modules == set(SOURCES)


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_has_the_functions_of_the_protocol(name: str):
    module = sources.source(name)
    for function in ("classes", "read_split"):
        mine, asked = (inspect.signature(getattr(owner, function)) for owner in (module, sources.Source))
        assert [*mine.parameters] == [p for p in asked.parameters if p != "self"]
        assert mine.return_annotation == asked.return_annotation


def test_a_source_that_is_not_in_the_table_is_refused_with_those_that_are():
    with pytest.raises(ValidationError, match="choose from folder, shapes"):
        dataset("flickr")


def test_a_new_source_needs_a_module_and_a_line(monkeypatch: pytest.MonkeyPatch):
    module = ModuleType("daft.data.sources.flickr")
    images = np.zeros((4, 3, 2, 2), np.uint8)
    setattr(module, "classes", lambda cfg: ["cat", "dog"])  # noqa: B010
    setattr(  # noqa: B010
        module, "read_split", lambda cfg, split, name, classes: Labelled.of_pixels(images, np.arange(4) % 2)
    )
    monkeypatch.setitem(sys.modules, "daft.data.sources.flickr", module)
    monkeypatch.setitem(SOURCES, "flickr", SourceInfo())
    cfg = dataset("flickr")
    classes = datasets.class_names(cfg)
    assert classes == ["cat", "dog"]
    assert datasets.read_split(cfg, cfg.train, "train", classes).labels.tolist() == [0, 0, 1, 1]
