"""Files of a dataset on this disk: what is there, what room is left, and which process may write."""

import errno
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from daft.common.errors import UserError
from daft.common.files import exclusive
from daft.config.schema import FileConfig

CHUNK = 1 << 18
"""Bytes that are received, hashed or unpacked at a time."""

GB = 1e9

ELSEWHERE = "set dataset.root, paths.data or paths.weights to another folder"


class UnfitError(Exception):
    """A file, or a member of an archive, is not what it should be; the message says why."""


def present(file: FileConfig, root: Path) -> str:
    """`present`, `absent` or `damaged: why`, by a look at names and sizes alone.

    Of an archive what it gives counts, not the archive.
    """
    if file.unpack is not None:
        missing = [name for name in file.gives if not exists(root / name)]
        if 0 < len(missing) < len(file.gives):
            found = next(name for name in file.gives if name not in missing)
            return f"damaged: {found} is there without {', '.join(missing)}"
        return "absent" if missing else "present"
    path = root / file.path
    if not path.exists():
        return "absent"
    size = path.stat().st_size
    return "present" if file.bytes in (None, size) else f"damaged: {size:,} bytes, not {file.bytes:,}"


def required_bytes(files: Iterable[FileConfig], root: Path) -> int:
    """Disk space that what is absent still needs, as far as the configuration tells sizes."""
    needed = 0
    for file in files:
        if present(file, root) == "absent":
            path = root / file.path
            arrived = next((p.stat().st_size for p in (path, part_file(path)) if p.exists()), 0)
            needed += max((file.bytes or 0) + (file.unpacked_bytes or 0) - arrived, 0)
    return needed


def require_free(needed: int, folder: Path) -> None:
    """Raises UserError if the disk of a folder has fewer bytes free."""
    place = folder.absolute()
    free = shutil.disk_usage(next(p for p in (place, *place.parents) if p.exists())).free
    if needed > free:
        raise UserError(
            f"{folder}: {needed / GB:,.1f} GB are needed, but only {free / GB:,.1f} GB are free; "
            f"make room, or {ELSEWHERE}"
        )


@contextmanager
def writing(path: Path, root: Path) -> Iterator[None]:
    """Keep other processes from this file meanwhile; raises UserError if something cannot be written."""
    lock = path.with_name(f".{path.name}.lock")
    try:
        with exclusive(lock, f"{path}: waiting for another process that is at work on it"):
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
    except OSError as error:
        what = f"cannot write below {root} ({error.filename or path}: {error.strerror or error})"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(f"{what}; make room and run the same command again") from error
        raise UserError(f"{what}; {ELSEWHERE}") from error


def require_vacant(file: FileConfig, root: Path) -> None:
    """Raises UserError if some of what the archive gives is there, and is not from a run that was killed."""
    state = present(file, root)
    if state.startswith("damaged") and not unpacked_folder(file, root).is_dir():
        raise UserError(f"{root}: {state}; move away what is there to have {file.path} unpacked anew")


def archive_kind(path: Path) -> Literal["tar", "zip"] | None:
    """The kind of archive that a file is, by its first bytes."""
    start = first_bytes(path)
    if start.startswith(b"\x1f\x8b") or start[257:262] == b"ustar":
        return "tar"
    return "zip" if start.startswith((b"PK\x03\x04", b"PK\x05\x06")) else None


def unpacked_folder(file: FileConfig, root: Path) -> Path:
    """Where all that an archive holds lies, laid out as below `root`, until it is moved there."""
    return root / f".{file.path.replace('/', '_')}.unpacked"


def first_bytes(path: Path) -> bytes:
    """512 of them, or the whole file."""
    with open(path, "rb") as file:
        return file.read(512)


def exists(path: Path) -> bool:
    """Whether a file or a folder is there; an empty folder does not count."""
    return any(path.iterdir()) if path.is_dir() else path.exists()


def part_file(path: Path) -> Path:
    """Where what has arrived of a file is kept until it is whole."""
    return path.with_name(f"{path.name}.part")
