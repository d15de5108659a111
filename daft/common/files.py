"""Files that exist whole or not at all, and names for them that say what is inside."""

import errno
import functools
import hashlib
import json
import math
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

from filelock import FileLock, Timeout

from daft.common import progress
from daft.common.errors import DISK_ERRORS, UserError, first_line, shown

PARTIAL = ".partial"
"""Suffix of files that are being written; one that stays was cut off."""


LARGEST = 64 * 2**20
"""Bytes of a text that is read back."""

DEEPEST = 64
"""Levels of JSON."""

T = TypeVar("T")
Content = str | bytes | Callable[[Path], object]
"""Text, bytes, or a function that writes to the path it is given."""


def make_folder(folder: Path, key: str) -> None:
    """Make a folder that a key of the configuration names; raises UserError if it cannot be one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in DISK_ERRORS:
            raise
        raise UserError(f"{key}: {shown(folder)}: {error.strerror}; name a folder") from error


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


def write_together(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files of a folder by their names so that an error leaves those that were there, all of them.

    Raises OSError, which names the file, for what the disk refuses.
    """
    fresh = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".", suffix=PARTIAL, dir=folder) as made:
            for name, content in files.items():
                try:
                    write_atomically(Path(made, name), content)
                except OSError as error:
                    raise OSError(error.errno, error.strerror, str(folder / name)) from error
            for name in files:
                os.replace(Path(made, name), folder / name)
    finally:
        if fresh:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


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
        progress.say(message)
        held.acquire()
    try:
        yield
    finally:
        held.release()


def cached(path: Path, make: Callable[[], Content], read: Callable[[Path], T]) -> T:
    """What `read` gives of a file that is made once, by one process, while others that need it wait.

    make: computes what `write_atomically` then writes. read: raises an error for what `make` has not made;
    such a file, which a full disk or half a copy may have left, is made anew, with a word.
    """

    def found() -> tuple[T] | str:
        """What is there, or what is wrong with it."""
        try:
            require_regular(path)
            return (read(path),)
        except FileNotFoundError:
            return ""
        except Exception as error:  # what a damaged file raises can be anything
            if not is_damage(error):
                raise
            return first_line(error)

    if isinstance(known := found(), str):
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):
            if isinstance(known := found(), str):
                if known:
                    progress.say(f"{path}: damaged ({known}); it is made anew")
                    discard(path)
                write_atomically(path, make())
                known = (read(path),)
    return known[0]


def discard(path: Path) -> None:
    """Remove a file that a cache is to make anew; raises UserError for a folder that is not empty."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
    elif any(path.iterdir()):
        raise UserError(f"{path}: a folder with something in it, where a cached file belongs; remove it")
    else:
        path.rmdir()


def require_regular(path: Path) -> None:
    """Raise ValueError for a folder, a pipe or a device, which may never end; OSError if nothing is there."""
    if path.is_symlink() and not path.exists():
        raise ValueError("a link to nothing")
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise ValueError("a folder" if stat.S_ISDIR(mode) else "no regular file")


def read_text(path: Path, errors: Literal["strict", "replace", "surrogateescape"] = "strict") -> str:
    """A text in UTF-8 that this program wrote; raises ValueError if it is none, or larger than LARGEST.

    errors: what to do about bytes that are no UTF-8.
    """
    require_regular(path)
    with open(path, "rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(f"larger than {LARGEST >> 20} MiB")
    try:
        return content.decode(errors=errors)
    except UnicodeDecodeError as error:
        raise ValueError("no text in UTF-8") from error


def read_json(path: Path) -> Any:
    """What a file of JSON holds; raises as `read_text`, and ValueError for what this program never writes."""
    try:
        value = json.loads(
            read_text(path),
            parse_constant=_finite,
            parse_float=_finite,
            object_pairs_hook=_without_duplicates,
        )
    except RecursionError:
        raise ValueError("nested too deep") from None
    level = [value]
    for _ in range(DEEPEST):
        outer = [inner for inner in level if isinstance(inner, dict | list)]
        level = [inner for held in outer for inner in (held.values() if isinstance(held, dict) else held)]
    if level:
        raise ValueError("nested too deep")
    return value


def _finite(number: str) -> float:
    if not math.isfinite(value := float(number)):
        raise ValueError(f"{number} is not finite")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands there twice")
    return found


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
    code = getattr(error, "errno", None)
    # EINVAL is from a place outside a file that is cut short, where torch looks.
    return not isinstance(error, MemoryError | UserError) and code in (None, errno.EINVAL)
