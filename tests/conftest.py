"""What the tests share: configurations as the command line composes them, and a run small enough."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from daft.config import Config, for_schema, validate

ROOT = Path(__file__).resolve().parent.parent

FAST = ["training.epochs=2", "wandb.mode=disabled", "compute.device=cpu"]
TINY = [
    "dataset.image_size=32",
    "dataset.train.images=70",  # 64 + 6: the last batch is a smaller one
    "dataset.id.images=40",
    "dataset.ood.photo.images=40",
    "dataset.ood.neon.images=40",
    "~dataset.ood.clipart",
    "~dataset.ood.painting",
    *FAST,
]


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tests are small: threads cost more than they give, and one thread is reproducible."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def configure() -> Callable[..., Config]:
    """A validated configuration from command-line overrides."""

    def build(*overrides: str) -> Config:
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            return validate(compose("train", for_schema(list(overrides))))

    return build


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    """Overrides that keep everything a run writes below a folder of the test."""
    return [f"paths.{name}={tmp_path / name}" for name in ("runs", "cache", "data", "weights")]


@pytest.fixture
def tiny(configure: Callable[..., Config], folders: list[str]) -> Callable[..., Config]:
    """A run of seconds on the embedded images and network."""
    return lambda *overrides: configure(*TINY, *folders, *overrides)
