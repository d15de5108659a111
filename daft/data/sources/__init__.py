"""Where images come from: a module per source, each with the same two functions."""

from importlib import import_module
from typing import Protocol, cast

from daft.config.schema import DatasetConfig, SplitConfig
from daft.data.labelled import Labelled


class Source(Protocol):
    """A module of this package. `daft.config.sources.SOURCES` names it, and says how to add one.

    One whose images need no labels to be listed may also have `read_unlabelled(cfg, split, name)`.
    """

    def classes(self, cfg: DatasetConfig) -> list[str]:
        """Class names in label order; raises UserError if those that are configured are not the source's."""
        ...

    def read_split(self, cfg: DatasetConfig, split: SplitConfig, name: str, classes: list[str]) -> Labelled:
        """All images of one split, which messages call `dataset.{name}`.

        `Labelled.of_files`, `of_masks` and `of_pixels` make one. Raises UserError, which names the file, for
        what is absent or not as published.
        """
        ...


def source(name: str) -> Source:
    """The source of this name, imported when it is first needed."""
    return cast("Source", import_module(f"{__name__}.{name}"))
