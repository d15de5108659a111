"""Configurations as scripts/train.py composes them, and what Hydra complains of in the words of a user."""

import re
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from daft.common.errors import UserError, first_line
from daft.config.check import composition_error, shown, validate
from daft.config.hydra_texts import FileConfigSource
from daft.config.options import CONF
from daft.config.overrides import SECTIONS, rewrite_overrides
from daft.config.schema import Config

OURS = ("__main__", "daft", "scripts", "hydra_plugins.staged_sweeper", "hydra_plugins._launchers")
"""Modules that Hydra calls back: what goes wrong there is not said by Hydra."""


def composed(*overrides: str) -> DictConfig:
    """What these overrides stand for, not validated; raises UserError."""
    with hydra_errors(overrides), initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", rewrite_overrides(overrides))


def configuration(*overrides: str) -> Config:
    """The run that these overrides stand for; raises UserError, as `validate` does."""
    return validate(composed(*overrides))


@contextmanager
def hydra_errors(overrides: Sequence[str] = ()) -> Iterator[None]:
    """Raise what Hydra and OmegaConf complain of, given these overrides, as a UserError in one line."""
    try:
        yield
    except UserError:
        raise
    except (HydraException, OmegaConfBaseException) as error:
        if isinstance(error.__cause__, UserError):  # of what Hydra was told to make
            raise error.__cause__ from error
        raise UserError(explain(error)) from error
    except Exception as error:
        if not _is_of_hydra(error):
            raise
        if isinstance(error, OSError):  # Hydra writes to the folder of runs alone
            where = f"{shown(error.filename)}: " if error.filename else ""
            raise UserError(f"paths.runs: {where}{error.strerror}") from error
        raise UserError(_unexplained(error, overrides)) from error


def explain(error: Exception) -> str:
    """One line for an error of Hydra's, which spreads a wrong option or key over several."""
    if isinstance(error, OmegaConfBaseException):
        return str(composition_error(error))
    text, cause = str(error), error.__cause__
    if isinstance(cause, OmegaConfBaseException) and not text:
        return explain(cause)
    if isinstance(error, OverrideParseException):
        return _explain_override(error.override.removeprefix("++"), error)
    if launcher := re.search(
        r"In 'hydra/launcher/(\w+)': Could not (?:find|load) 'hydra/launcher/(\w+)'", text
    ):
        return f"hydra/launcher={launcher[1]}: {launcher[2]} is not installed; pip install -e '.[sweeps]'"
    if option := re.search(r"Could not (?:find|load) '(?:([\w/]+)/)?([^'/]*)'", text):
        listed = re.search(r"Available options in '[\w/]+':\n(.*?)\nConfig search path", text, re.DOTALL)
        options = f"; choose from {', '.join(listed[1].split())}" if listed else ""
        by = re.match(r"In '([^']*)'", text)
        where = f"defaults of {by[1]}: " if by and by[1] not in ("train", "hydra/config") else ""
        return f"{where}{f'{option[1]}=' if option[1] else ''}{option[2]}: no such option{options}"
    if key := re.search(r"Could not (?:override|find a match for) '([^']*)'", text):
        if key[1].startswith("hydra."):
            return f"{key[1]}: no such key; train.py --cfg hydra shows them"
        return f"{key[1]}: no such key; choose from {', '.join([*SECTIONS, 'seed'])}"
    if key := re.search(r"Could not delete(?: from config\.)? '([^']*)'", text):
        return f"~{key[1]}: there is no such key to leave out"
    if several := re.search(r"(?:Ambiguous value for argument|Sweep parameters) '([^']*)'", text):
        override = several[1].lstrip("+")
        return f"{override}: several values need -m: train.py -m {override}"
    if re.match(r"(Multiple values for )?part(\.| appears more than once)", text):
        return "part: given twice; several parts are a list, part=[layer_decay,l2_sp]"
    if again := re.search(r"Multiple values for (\S+)\.|force-add of config groups .*: '\+*(.*)=", text):
        return f"+{again[1] or again[2]}: a group has one option; leave the + out"
    if again := re.search(r"An item is already at '(.*)'\.", text):
        return f"+{again[1]}: there is one already; leave the + out"
    line = first_line(error).replace("++", "")  # the rest is advice for those who know Hydra
    if isinstance(cause, OmegaConfBaseException):
        return f"{line.removeprefix('Error merging override ')}: {first_line(cause)}"
    return line


def _explain_override(override: str, error: OverrideParseException) -> str:
    """One line for an override that Hydra's grammar does not take."""
    text = shown(override)
    if "=" not in override:
        named = text if text.strip() else repr(text)
        return f"{named}: write key=value; groups are dataset, backbone and method"
    if override.endswith(","):
        return f"{text}: a list has no comma at its end"
    if called := re.search(r"while evaluating '(.*)': (.*)", str(error)):
        return f"{text}: {called[1]}: {called[2]}"
    if re.search(r"[{,]\s*['\"]?[^:,{}]*[^\x00-\x7f][^:,{}]*:", override):
        return f"{text}: on the command line keys are ASCII; put it into a file, conf/dataset/mine.yaml"
    return f"{text}: cannot be read; write \"key='value'\" with both quotes"


def _unexplained(error: Exception, overrides: Sequence[str]) -> str:
    """One line for an error of Python's in the midst of Hydra, with the words that may have led to it."""
    text = first_line(error)
    if isinstance(error, RecursionError) and "hydra._internal.defaults_list" in _modules(error):
        return f"{FileConfigSource.latest}: its defaults name the file itself, or one that leads back to it"
    if "can be specified" in text and "--multirun" in text:
        return "-m runs, and --cfg and --info only show something: leave out one of them"
    odd = [word for word in overrides if re.match(r"[+~]*hydra[./]|.*=.*\(", word)]
    what = ", ".join(map(shown, odd or overrides))
    return f"{what or 'configuration'}: Hydra does not take this ({type(error).__name__}: {text})"


def _is_of_hydra(error: Exception) -> bool:
    """Whether an error was raised by Hydra itself, not by what it calls."""
    names = _modules(error)
    if "hydra" not in {name.partition(".")[0] for name in names}:
        return False
    after = names[next(i for i, name in enumerate(names) if name.startswith("hydra.")) :]
    return not any(name.startswith(OURS) for name in after)


def _modules(error: Exception) -> list[str]:
    """The modules that an error went through, the innermost last."""
    return [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
