"""Image files in folders: all of them, whatever the links, and a word on everything that is left out."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from daft.common import progress
from daft.common.errors import shown
from daft.data.decoding import PLUGINS, image_suffixes

SYSTEM_FOLDERS = frozenset(
    {
        *("@eaDir", "@Recycle", "#recycle", "#snapshot"),
        *("$RECYCLE.BIN", "System Volume Information", "__MACOSX", "lost+found"),
    }
)
"""Folders that a disk, a server or an archive puts beside images: thumbnails, metadata, what was deleted."""

SYSTEM_FILES = frozenset(["Thumbs.db", "ehthumbs.db", "desktop.ini", "Desktop.ini"])

KINDS = 8
"""Kinds of what is left out that are told apart in a message."""


class LeftOut(Counter[str]):
    """How many entries of folders are no images of a split, by kind."""

    def __str__(self) -> str:
        kinds = [f"{count:,} {kind}" for kind, count in self.most_common(KINDS)]
        if rest := self.total() - sum(count for _, count in self.most_common(KINDS)):
            kinds.append(f"{rest:,} others")
        return ", ".join(kinds)

    def say(self, split: str, place: Path, images: int) -> None:
        """In one line on stderr, once a process; nothing if nothing is left out."""
        if self:
            progress.say_once(f"{split}: {images:,} images below {shown(place)}; left out: {self}")


def is_image(name: str) -> bool:
    """Whether a file of this name is taken for an image: by its suffix, in any case."""
    return os.path.splitext(name)[1].lower() in image_suffixes()


def image_files(folder: Path, left_out: LeftOut, wanted: Callable[[str], bool] = is_image) -> list[Path]:
    """The files with a wanted name in a folder and all below it, links to folders followed.

    A folder that is reached twice counts once. Raises OSError, which names it, for one that cannot be read.
    """
    seen = {_place(parent) for parent in {*folder.absolute().parents, *folder.resolve().parents}}

    def below(folder: Path) -> list[Path]:
        if (place := _place(folder)) in seen:
            left_out["link(s) to a folder that is read already"] += 1
            return []
        seen.add(place)
        files = []
        for entry in _entries(folder, left_out):
            path = folder / entry.name
            if _is_folder(entry):
                found = below(path)
                if not found and wanted(entry.name):
                    left_out["folder(s) named like an image"] += 1
                files += found
            elif wanted(entry.name):
                files.append(path)
            else:
                left_out[_kind(entry.name)] += 1
        return files

    return below(folder)


def class_folders(folder: Path, left_out: LeftOut) -> Iterator[Path]:
    """The folders in a folder, in order; images that lie beside them are of no class."""
    for entry in sorted(_entries(folder, left_out), key=lambda entry: entry.name):
        if _is_folder(entry):
            yield folder / entry.name
        elif is_image(entry.name) or _kind(entry.name) in SYSTEM_FILES or _suffix(entry.name) in PLUGINS:
            left_out["in no class folder" if is_image(entry.name) else _kind(entry.name)] += 1


def _entries(folder: Path, left_out: LeftOut) -> Iterator[os.DirEntry[str]]:
    """What is in a folder and neither hidden nor a system's; links last, as they may lead to the others."""
    with os.scandir(folder) as scanned:
        entries = sorted(scanned, key=lambda entry: (entry.is_symlink(), entry.name))
    for entry in entries:
        if entry.name in SYSTEM_FOLDERS and _is_folder(entry):
            left_out[f"folder(s) {entry.name}"] += 1
        elif entry.name.startswith("."):
            left_out["hidden"] += 1
        else:
            yield entry


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()  # a link may lead nowhere


def _place(folder: Path) -> tuple[int, int]:
    stat = folder.stat()
    return stat.st_dev, stat.st_ino


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _kind(name: str) -> str:
    if name in SYSTEM_FILES:
        return name
    suffix = _suffix(name)
    if suffix in PLUGINS:
        return f"{suffix} (pip install {PLUGINS[suffix]})"
    return shown(suffix) or "without suffix"
