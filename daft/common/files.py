"""Files that exist whole or not at all, and names for them that say what is inside."""

import functools
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from daft.common import progress
from daft.common.errors import UserError

PARTIAL = ".partial"
"""Suffix of files that are being written; one that stays was cut off."""


Content = str | bytes | Callable[[Path], object]
"""Text, bytes, or a function that writes to the path it is given."""


def write_atomically(path: Path, content: Content) -> None:
    """Write a file so that a kill at any instant leaves the old one or the new one.

    Raises OSError, which names the file, for what the disk refuses; a full disk, say.
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
    except Exception as error:
        if refusal := _refusal(error, temporary):
            raise OSError(refusal.errno, refusal.strerror, str(path)) from error
        raise
    finally:
        Path(temporary).unlink(missing_ok=True)


def _refusal(error: Exception, file: str) -> OSError | None:
    """The disk's part in an error while a file was written: libraries hide it behind errors of their own."""
    if isinstance(error, OSError):
        return error
    if told := re.search(r"\(os error (\d+)\)", str(error)):  # safetensors
        return OSError(int(told[1]), os.strerror(int(told[1])))
    try:  # torch does not tell: does the file grow?
        with open(file, "ab", buffering=0) as opened:
            for _ in range(256):
                opened.write(bytes(4096))
    except OSError as refusal:
        return refusal
    return None


@contextmanager
def exclusive(lock: Path, message: str) -> Iterator[None]:
    """One process at a time: holds a lock file meanwhile, and shows `message` if it has to wait for it."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout:
        progress.console.print(message, soft_wrap=True)
        held.acquire()
    try:
        yield
    finally:
        held.release()


def cached_file(path: Path, make: Callable[[], Content]) -> Path:
    """The path of a file that is made if it is not there yet: by one process, while others that need it wait.

    make: computes what `write_atomically` then writes, and is not called for a file that exists.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):
            if not path.exists():
                write_atomically(path, make())
    return path


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
    return not isinstance(error, MemoryError | UserError) and getattr(error, "errno", None) is None
