"""Archives: unpacked whole or not at all, and nothing outside their folder."""

import gzip
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from daft.common import progress
from daft.common.errors import UserError
from daft.config.schema import FileConfig
from daft.prepare import disk

DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    RuntimeError,
    ValueError,
    LookupError,
)
"""What tarfile and zipfile raise for archives that they cannot read."""


def unpack(file: FileConfig, root: Path) -> None:
    """Unpack the archive at `root / file.path`; a kill leaves each folder that it gives whole or absent.

    Raises UserError if the archive is damaged, has a member that would lie outside of its folder, lacks
    something that it should give, or would write over what is there; nothing of it is left then.
    """
    archive, folder = root / file.path, file.unpack or "."
    if disk.present(file, root) == "present":
        return
    with disk.writing(archive, root):
        if disk.present(file, root) == "present":  # another process has unpacked it meanwhile
            return
        disk.require_vacant(file, root)
        if not (whole := disk.unpacked_folder(file, root)).is_dir():
            if not archive.is_file():
                raise UserError(f"{archive}: there is no such archive to unpack")
            partial = whole.with_suffix(".unpacking")
            shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
            try:
                _extract(archive, partial / folder, file.strip)
                _require_gives(archive, partial, file)
                _moves(partial, root, file.gives)
                partial.rename(whole)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
        for source, target in _moves(whole, root, file.gives):
            source.rename(target)
        shutil.rmtree(whole)


def discard(file: FileConfig, root: Path) -> None:
    """Remove an archive that has been unpacked."""
    (root / file.path).unlink(missing_ok=True)


def _require_gives(archive: Path, partial: Path, file: FileConfig) -> None:
    if missing := [name for name in file.gives if not disk.exists(partial / name)]:
        held = ", ".join(sorted(path.name for path in (partial / (file.unpack or ".")).iterdir()))
        raise UserError(f"{archive} does not hold {', '.join(missing)}, but {held or 'nothing'}")


def _moves(source: Path, target: Path, gives: list[str]) -> list[tuple[Path, Path]]:
    """What to rename, and to what, so that `source` is merged into `target`; what the archive gives last.

    Raises UserError if something is there already that is no mere folder around it.
    """
    given = {target / name for name in gives}

    def moves(source: Path, target: Path) -> Iterator[tuple[Path, Path]]:
        for entry in sorted(source.iterdir()):
            place = target / entry.name
            if not disk.exists(place):
                yield entry, place
            elif entry.is_dir() and place.is_dir() and place not in given:
                yield from moves(entry, place)
            else:
                raise UserError(f"{place} is there already, and would be written over; move it away")

    return sorted(
        moves(source, target),
        key=lambda move: any(name == move[1] or move[1] in name.parents for name in given),
    )


def _extract(archive: Path, folder: Path, strip: int) -> None:
    """Write every member below `folder`, without the first `strip` parts of its path."""
    folder.mkdir(parents=True)
    try:
        with open(archive, "rb") as raw, progress.transfer() as shown:
            bar = shown.add_task(f"unpacking {archive.name}", total=archive.stat().st_size)
            extract = {"tar": _untar, "zip": _unzip}.get(disk.archive_kind(archive) or "")
            if extract is None:
                raise UserError(f"{archive} cannot be unpacked: it is neither tar, tar.gz nor zip")
            for _ in extract(raw, folder, strip):
                shown.update(bar, completed=raw.tell())
    except tarfile.FilterError as error:
        raise UserError(f"{archive} is not safe to unpack: {error}") from error
    except disk.UnfitError as error:
        raise UserError(f"{archive} is not safe to unpack: {error}") from None
    except DAMAGE as error:
        raise UserError(
            f"{archive} is damaged or of an unknown kind ({error}); remove it to fetch it anew"
        ) from error


def _untar(raw: IO[bytes], folder: Path, strip: int) -> Iterator[None]:
    with tarfile.open(fileobj=raw) as tar:
        while member := tar.next():
            # It would remember every member: a gigabyte for a million images.
            tar.members = []  # pyrefly: ignore[missing-attribute]
            if path := _below(member.name, strip):
                link = _below(member.linkname, strip) if member.islnk() else member.linkname
                if member.islnk() and not (folder / link).is_file():
                    raise tarfile.ReadError(f"{member.name} links to {member.linkname}, which is not in it")
                tar.extract(member.replace(name=path, linkname=link, deep=False), folder, filter="data")
            yield
        # tarfile takes a cut or a broken header for the end, which two empty blocks must mark; reading on
        # checks the sum at the end of a .gz.
        rest = tar.fileobj
        if rest is None or rest.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("it ends too early")
        while rest.read(disk.CHUNK):
            pass


def _unzip(raw: IO[bytes], folder: Path, strip: int) -> Iterator[None]:
    with zipfile.ZipFile(raw) as archive:
        members = [(member, _below(member.filename, strip)) for member in archive.infolist()]
        for member, path in members:
            if stat.S_ISLNK(member.external_attr >> 16):
                raise disk.UnfitError(f"{member.filename!r} is a link")
            if path and member.is_dir():
                (folder / path).mkdir(parents=True, exist_ok=True)
            elif path:
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, open(folder / path, "wb") as target:
                    shutil.copyfileobj(source, target, disk.CHUNK)
            yield


def _below(name: str, strip: int) -> str:
    """A member's path without its first parts, empty to leave it out; raises if it leads outside."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or (path.parts[:1] and path.parts[0].endswith(":")):
        raise disk.UnfitError(f"{name!r} would lie outside of the folder")
    return "" if "__MACOSX" in path.parts else "/".join(path.parts[strip:])
