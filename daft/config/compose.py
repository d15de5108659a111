"""Configurations as scripts/train.py composes them, for what asks without running."""

from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from daft.config.check import for_schema, validate
from daft.config.schema import Config

CONF = Path(__file__).resolve().parents[2] / "conf"


def composed(*overrides: str) -> DictConfig:
    """What these overrides stand for, not validated; raises Hydra's errors, which daft.cli puts in a line."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", for_schema(list(overrides)))


def configuration(*overrides: str) -> Config:
    """The run that these overrides stand for; raises also as `validate` does."""
    return validate(composed(*overrides))
