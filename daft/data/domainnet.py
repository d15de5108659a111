"""Placeholder."""

import pandas as pd

from daft.config import DatasetConfig, SplitConfig


def classes(cfg: DatasetConfig) -> list[str]:
    raise NotImplementedError


def files(cfg: DatasetConfig, split: SplitConfig, name: str, classes: list[str]) -> pd.DataFrame:
    raise NotImplementedError
