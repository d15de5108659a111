"""Configurations as scripts/train.py composes them, and what Hydra complains of in the words of a user."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from daft.common.errors import UserError
from daft.config.check import SECTIONS, rewrite_overrides, validate
from daft.config.options import CONF
from daft.config.schema import Config


def composed(*overrides: str) -> DictConfig:
    """What these overrides stand for, not validated; raises UserError."""
    with hydra_errors(), initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", rewrite_overrides(list(overrides)))


def configuration(*overrides: str) -> Config:
    """The run that these overrides stand for; raises UserError, as `validate` does."""
    return validate(composed(*overrides))


@contextmanager
def hydra_errors() -> Iterator[None]:
    """Raise what Hydra and OmegaConf complain of as a UserError that says it in one line."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        if isinstance(error.__cause__, UserError):  # of what Hydra was told to make
            raise error.__cause__ from error
        raise UserError(explain(error)) from error


def explain(error: Exception) -> str:
    """One line for an error of Hydra's, which spreads a wrong option or key over several."""
    text = str(error)
    if launcher := re.search(
        r"In 'hydra/launcher/(\w+)': Could not (?:find|load) 'hydra/launcher/(\w+)'", text
    ):
        return f"hydra/launcher={launcher[1]}: {launcher[2]} is not installed; pip install -e '.[sweeps]'"
    if option := re.search(r"Could not find '([\w/]+)/([^'/]*)'", text):
        listed = re.search(r"Available options in '[\w/]+':\n(.*?)\nConfig search path", text, re.DOTALL)
        options = ", ".join(listed[1].split()) if listed else "see --help"
        return f"{option[1]}={option[2]}: no such option; choose from {options}"
    if key := re.search(r"Could not (?:override|find a match for) '([^']*)'", text):
        if key[1].startswith("hydra."):
            return f"{key[1]}: no such key; train.py --cfg hydra shows them"
        return f"{key[1]}: no such key; choose from {', '.join([*SECTIONS, 'seed'])}"
    if ambiguous := re.search(r"Ambiguous value for argument '([^']*)'", text):
        override = ambiguous[1].lstrip("+")
        return f"{override}: several values need -m: train.py -m {override}"
    if isinstance(error, OverrideParseException):
        override = error.override.removeprefix("++")
        if "=" not in override:
            return f"{override}: write key=value; groups are dataset, backbone and method"
        if override.endswith(","):
            return f"{override}: a list has no comma at its end"
        return f"{override}: cannot be read; write \"key='value'\" with both quotes"
    if isinstance(error, HydraException):  # the rest is advice for those who know Hydra
        return text.splitlines()[0].replace("++", "")
    return text
