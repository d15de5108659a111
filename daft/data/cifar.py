"""CIFAR-10, CIFAR-10.1 and STL-10 as published, mapped to CIFAR-10's labels."""

import numpy as np

from daft.config import DatasetConfig, SplitConfig

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def classes(cfg: DatasetConfig) -> list[str]:
    """CIFAR-10's, in label order."""
    return [*CLASSES]


def pixels(cfg: DatasetConfig, split: SplitConfig, name: str) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [N, 3, H, W] and labels [N]."""
    raise NotImplementedError
