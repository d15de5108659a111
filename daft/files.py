"""Files that exist whole or not at all, and names for them that say what is inside."""

import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

PARTIAL = ".partial"
"""Suffix of files that are being written; one that stays was cut off."""


def write_atomically(path: Path, content: str | bytes | Callable[[Path], object]) -> None:
    """Write a file so that a kill at any instant leaves the old one or the new one.

    content: text, bytes, or a function that writes to the path it is given.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=PARTIAL, dir=path.parent)
    os.close(handle)
    try:
        if callable(content):
            content(Path(temporary))
        else:
            Path(temporary).write_bytes(content.encode() if isinstance(content, str) else content)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's 0o600 would lock out others who share the folder
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def made_once(path: Path) -> Iterator[bool]:
    """Whether a file that processes share is still to be made; those that need it too wait until it is."""
    if path.exists():
        yield False
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        yield not path.exists()


def checksum(path: Path, like: str = "sha256") -> str:
    """`sha256:…` or `md5:…` of a file's content, by the algorithm of the checksum `like`."""
    stat = path.stat()
    return _checksum(path.absolute(), like.split(":")[0], stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=256)  # a sweep in one process reads a checkpoint once
def _checksum(path: Path, algorithm: str, size: int, modified_ns: int) -> str:
    with open(path, "rb") as file:
        return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"


def digest(facts: Any) -> str:
    """Twelve hex digits of a hash over plain data, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def is_damage(error: Exception) -> bool:
    """Whether what a decoder raised speaks of the file, and not of the machine that reads it just now."""
    return not isinstance(error, MemoryError) and getattr(error, "errno", None) is None
