"""What is swept on the command line of a staged sweep."""

from collections.abc import Iterable

from hydra.core.override_parser.types import Override

from daft.common.errors import UserError
from daft.config.overrides import PART

GROUPS = ("dataset", "backbone", "method")
"""Configuration groups that name a cell."""


def sweep_axes(given: Iterable[Override]) -> list[list[tuple[str, str]]]:
    """For each key its overrides, each with what it adds to a cell's name; those of `sweep` are left out.

    Raises UserError for a key that the sweep itself sets, and for values that are no list.
    """
    axes: dict[str, list[tuple[str, str]]] = {}  # of a key that is given twice the last counts
    for override in given:
        name, key = override.key_or_group, override.get_key_element()
        of_sweep = name == "sweep" or name.startswith("sweep.")
        if name == "seed":
            raise UserError("seed: a staged sweep sets it; say what it takes by sweep.seeds=[0,1]")
        if not override.is_sweep_override():
            if not of_sweep:
                axes[key] = [(override.input_line or "", "")]
            continue
        line = (override.input_line or key).lstrip("+")
        if of_sweep or not override.is_discrete_sweep():
            right = f"{name}=[0,1]" if name.startswith("sweep.") else "lists as in method=ft,daft"
            raise UserError(f"{line}: a staged sweep takes {right}")
        values = dict.fromkeys(f"{key}={value}" for value in override.sweep_string_iterator())
        if not values:
            raise UserError(f"{line}: no value, so there is no run")
        axes[key] = [(value, "" if name in (*GROUPS, PART) else value.lstrip("+")) for value in values]
    return list(axes.values())
