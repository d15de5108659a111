"""Errors that a user can cause; `scripts/` show them as one line, without a traceback."""

import errno
import re
from collections.abc import Sequence
from pathlib import Path

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Numbers of OSErrors that every other run would meet too."""

UNSHOWABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What would break a line, steer a terminal, or is no text: bytes of a file name that are not UTF-8."""


class UserError(Exception):
    """Something that the user can mend; the message names the thing, the bad value and what is right."""

    def __init__(self, message: object) -> None:
        super().__init__("\n".join(map(shown, str(message).split("\n"))))


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

    def __reduce__(self) -> tuple[type["ConfigError"], tuple[str, str]]:
        """What another process, of a sweep, makes it anew from."""
        return type(self), (self.key, self.problem)


def shown(name: object) -> str:
    """A name as a message can show it: in one line, and what is no text as an escape."""
    return UNSHOWABLE.sub(_escaped, str(name))


def _escaped(found: re.Match[str]) -> str:
    byte = ord(found[0]) - 0xDC00  # what Python makes of a byte that is no UTF-8
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else ascii(found[0])[1:-1]


def join_first(names: Sequence[object], most: int = 6) -> str:
    """The first names of a long list, for a message."""
    return ", ".join(map(shown, names[:most])) + (", …" if len(names) > most else "")


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type if it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]
