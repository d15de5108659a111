"""What the scripts say when something is wrong."""

import re

from hydra.errors import HydraException, OverrideParseException

from daft.common.errors import UserError
from daft.config.check import SECTIONS


def complaint(program: str, error: Exception) -> str:
    """One line for what the user can mend; Hydra spreads a wrong option or key over several."""
    # What Hydra was told to make complained.
    if isinstance(error, HydraException) and isinstance(error.__cause__, UserError):
        error = error.__cause__
    text = str(error)
    if launcher := re.search(
        r"In 'hydra/launcher/(\w+)': Could not (?:find|load) 'hydra/launcher/(\w+)'", text
    ):
        text = f"hydra/launcher={launcher[1]}: {launcher[2]} is not installed; pip install -e '.[sweeps]'"
    elif option := re.search(r"Could not find '([\w/]+)/([^'/]*)'", text):
        listed = re.search(r"Available options in '[\w/]+':\n(.*?)\nConfig search path", text, re.DOTALL)
        options = ", ".join(listed[1].split()) if listed else "see --help"
        text = f"{option[1]}={option[2]}: no such option; choose from {options}"
    elif key := re.search(r"Could not (?:override|find a match for) '([^']*)'", text):
        known = (
            f"{program} --cfg hydra shows them"
            if key[1].startswith("hydra.")
            else f"choose from {', '.join([*SECTIONS, 'seed'])}"
        )
        text = f"{key[1]}: no such key; {known}"
    elif ambiguous := re.search(r"Ambiguous value for argument '([^']*)'", text):
        text = f"{ambiguous[1].lstrip('+')}: several values need -m: {program} -m {ambiguous[1].lstrip('+')}"
    elif isinstance(error, OverrideParseException) and "=" not in error.override:
        text = f"{error.override}: write key=value; groups are dataset, backbone and method"
    elif isinstance(error, OverrideParseException) and error.override.endswith(","):
        text = f"{error.override.removeprefix('++')}: a list has no comma at its end"
    elif isinstance(error, OverrideParseException):
        text = f"{error.override.removeprefix('++')}: cannot be read; write \"key='value'\" with both quotes"
    elif isinstance(error, HydraException):  # the rest is advice for those who know Hydra
        text = text.splitlines()[0].replace("++", "")
    return f"{program}: {text}"
