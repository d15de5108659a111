"""Errors that a user can cause; `scripts/` show them as one line, without a traceback."""

from collections.abc import Sequence
from pathlib import Path


class UserError(Exception):
    """Something that the user can mend; the message names the thing, the bad value and what is right."""


class BusyError(UserError):
    """Another process does this at the moment."""

    def __init__(self, message: str, directory: Path | None = None) -> None:
        super().__init__(message)
        self.directory = directory
        """of the run that it is at"""


class ConfigError(UserError, ValueError):
    """A configuration key with a value that makes no sense."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key}: {problem}")
        self.key, self.problem = key, problem


def join_first(names: Sequence[object], most: int = 6) -> str:
    """The first names of a long list, for a message."""
    return ", ".join(map(str, names[:most])) + (", …" if len(names) > most else "")


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type if it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]
