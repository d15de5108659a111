"""Fetches what a dataset or a backbone needs, and says of what is there whether it is right."""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from huggingface_hub import constants as hub
from PIL import Image
from pydantic import TypeAdapter
from rich.table import Table
from rich.text import Text

from daft.common import progress
from daft.common.errors import UserError, first_line
from daft.common.files import checksum, read_json, write_atomically
from daft.common.threads import parallel_map
from daft.config.schema import BackboneConfig, DatasetConfig, FileConfig
from daft.config.sources import SOURCES
from daft.data import datasets, listing
from daft.data.folders import is_image
from daft.data.images import Streamed
from daft.data.labelled import Labelled
from daft.networks import backbones, checkpoints
from daft.prepare import archives, disk, fetch
from daft.prepare.disk import GB

SAMPLED = 16
"""Images of a split that the doctor opens, evenly spaced."""

JPEG_QUALITY = 90
"""Of images that are kept smaller than they were published."""

State = Literal["present", "absent", "damaged"]


class Finding(NamedTuple):
    """What the doctor says of one thing."""

    what: str
    state: State
    detail: str


def prepare_dataset(cfg: DatasetConfig, cache: Path, keep_archives: bool = False) -> None:
    """Fetch, verify and unpack what is not there; raises UserError for what only a person can get.

    What a user has put there is read, and never changed.
    """
    placed = [(file, _place(cfg, file)) for file in _needed(cfg)]
    manifest = _Manifest(cache, cfg.name)
    for root in dict.fromkeys(place for _, place in placed):
        _state_space(cfg.name, [file for file, place in placed if place == root], root)
    for file, root in placed:
        _bring(file, root, manifest, keep_archives, kept_side=cfg.kept_side)
    if cfg.manual and any(finding.state == "absent" for finding in check_dataset(cfg)):
        raise UserError(f"dataset={cfg.name} cannot be fetched by a program:\n{cfg.manual.rstrip()}")


def prepare_backbone(cfg: BackboneConfig, cache: Path) -> None:
    """Fetch and verify the checkpoint, if it is not there; without a published checksum it must load."""
    if cfg.weights == "hub":
        backbones.load(cfg)  # timm keeps what it fetches
        return
    if cfg.checkpoint is None or not cfg.urls:
        return

    def loads(part: Path) -> None:
        backbones.load(replace(cfg, checkpoint=str(part), checksum=None))

    path = Path(cfg.checkpoint).expanduser()
    file = FileConfig(path=path.name, urls=cfg.urls, bytes=cfg.bytes, checksum=cfg.checksum)
    _state_space(cfg.name, [file], path.parent)
    _bring(file, path.parent, _Manifest(cache, cfg.name), True, check=None if cfg.checksum else loads)


def check_dataset(cfg: DatasetConfig) -> Iterator[Finding]:
    """One finding per file that prepare.py fetches, and per split: count, classes, a sample opened."""
    if SOURCES[cfg.source].drawn:
        yield Finding("images", "present", "drawn from a seed")
        return
    complete = Path(cfg.root).expanduser().is_dir()
    for file in _needed(cfg):
        finding = _check_file(file, _place(cfg, file))
        complete &= finding.state != "absent"
        yield finding
    try:
        classes = datasets.class_names(cfg)
    except (UserError, OSError) as error:
        yield Finding("classes", "damaged" if complete else "absent", str(error))
        return
    for name, split in cfg.splits().items():
        try:
            found = datasets.read_split(cfg, split, name, classes)
            _open_sample(found, cfg.kept_side)
        except (UserError, OSError) as error:
            text = str(error).split(listing.HINT)[0].removeprefix(f"dataset.{name}: ")
            yield Finding(name, "damaged" if complete else "absent", text)
        else:
            known = "as it must be" if split.known_images else "no published number to compare with"
            held = f"{len(found.labels.unique())} of {len(classes)} classes"
            what = held if found.masks is None else "masks"
            what = "no labels read" if name.startswith(listing.UNLABELLED) else what
            detail = f"{len(found):,} images ({known}), {what}, a sample opened"
            yield Finding(name, "present", detail)


def check_backbone(cfg: BackboneConfig) -> Iterator[Finding]:
    """One finding: whether the checkpoint is there and loads, key by key; asks no server."""
    what = cfg.checkpoint or (f"{cfg.model} of the hub" if cfg.weights == "hub" else cfg.model)
    state: State = "absent"
    try:
        if cfg.weights == "file":
            checkpoints.path(cfg)
            state = "damaged"  # if it does not load
        with _offline():
            found = str(backbones.load(cfg).weights)
    except (UserError, OSError) as error:
        yield Finding(what, state, str(error).removeprefix("backbone.checkpoint: "))
    else:
        yield Finding(what, "present", found)


def remedy(cfg: DatasetConfig | BackboneConfig, findings: Iterable[Finding], command: str) -> str:
    """What to do about what is not there or not right; `command` prepares just this."""
    if isinstance(cfg, DatasetConfig):
        if cfg.manual:
            return cfg.manual.rstrip()
        fetched, key = bool(cfg.files), "dataset.root"
    else:
        fetched, key = bool(cfg.urls or cfg.weights == "hub"), "backbone.checkpoint"
    damaged = any(finding.state == "damaged" for finding in findings)
    if not fetched:
        return f"put {'another' if damaged else 'it'} there yourself, or set {key} to where it is"
    if damaged:
        return f"what is there is never overwritten: remove what is damaged, then fetch it anew: {command}"
    return f"fetch what is absent: {command}"


def table(name: str, findings: Iterable[Finding]) -> Table:
    """The findings of one dataset or backbone, for a terminal."""
    colours = {"present": "green", "absent": "yellow", "damaged": "red"}
    shown = Table(title=name, title_justify="left")
    for column in ("what", "state", "detail"):
        shown.add_column(column, overflow="fold")
    for finding in findings:
        shown.add_row(finding.what, Text(finding.state, colours[finding.state]), finding.detail)
    return shown


ENTRIES = TypeAdapter(dict[str, dict[str, Any]])


class _Manifest:
    """What was fetched for one dataset or backbone: from where, its checksum, whether it is unpacked."""

    def __init__(self, cache: Path, name: str) -> None:
        self.file = cache / "prepared" / f"{name.replace('/', '_')}.json"

    def entry(self, path: str) -> dict[str, Any]:
        """What is noted of one file; nothing of a user's own."""
        return self._entries().get(path, {})

    def note(self, path: str, entry: dict[str, Any]) -> None:
        """Keep this of one file."""
        write_atomically(self.file, json.dumps(self._entries() | {path: entry}, indent=1) + "\n")

    def _entries(self) -> dict[str, dict[str, Any]]:
        try:
            return ENTRIES.validate_python(read_json(self.file))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            progress.say_once(f"{self.file}: damaged ({first_line(error)}); what was fetched is not known")
            return {}


def _needed(cfg: DatasetConfig) -> list[FileConfig]:
    """The files that a split reads."""
    paths = [split.path for split in cfg.splits().values()]
    return [file for file in cfg.files if any(path.startswith(file.only_for) for path in paths)]


def _place(cfg: DatasetConfig, file: FileConfig) -> Path:
    """The folder that a file's path is below."""
    return Path((file.at == "annotations" and cfg.annotations) or cfg.root).expanduser()


def _state_space(name: str, files: list[FileConfig], root: Path) -> None:
    needed = disk.required_bytes(files, root)
    disk.require_free(needed, root)
    if needed:
        progress.note(f"{name}: {needed / GB:,.1f} GB of disk needed below {root}")


def _bring(
    file: FileConfig,
    root: Path,
    manifest: _Manifest,
    keep_archive: bool,
    kept_side: int | None = None,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Fetch and unpack one file, unless it is there; a kill at any time costs only what was not noted."""
    entry = manifest.entry(file.path)
    if disk.present(file, root) != "present" or not entry.get("finished", True):
        if found := fetch.fetch(file, root, check):
            address = found.url or entry.get("url")  # none: the user put it there
            entry = {**asdict(found), "url": address, "root": str(root.absolute()), "time": time.time()}
            manifest.note(file.path, entry | {"finished": False})
            if file.checksum is None:
                progress.note(f"{file.path}: {found.checksum} (none is published: pin this one)")
        if file.unpack is not None:
            archives.unpack(file, root)
            if kept_side:
                _shrink([root / name for name in file.gives], kept_side)
        manifest.note(file.path, entry | {"finished": True})
    if file.unpack is not None and entry.get("url") and not keep_archive:
        archives.discard(file, root)


def _check_file(file: FileConfig, root: Path) -> Finding:
    where = ", ".join(str(root / name) for name in file.gives or [file.path])
    found = disk.present(file, root)
    if found == "absent":
        return Finding(file.path, "absent", where)
    try:
        if found != "present":
            raise UserError(f"{where}: {found.removeprefix('damaged: ')}")
        if file.unpack is None:
            fetch.verify(file, root)
        for member, right in file.members.items():
            if not (seen := checksum(root / member, right)).startswith(right):
                raise UserError(f"{root / member} has {seen}, not {right}; remove {where}")
    except (UserError, OSError) as error:
        return Finding(file.path, "damaged", str(error))
    return Finding(file.path, "present", where)


def _shrink(folders: list[Path], side: int) -> None:
    """Rewrite larger images in the folders with this shorter side in pixels; each whole or not at all."""

    def shrink(path: Path) -> None:
        with Image.open(path) as image:
            if min(image.size) <= side:
                return
            scale = side / min(image.size)
            size = (round(image.width * scale), round(image.height * scale))
            smaller = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        write_atomically(path, lambda target: smaller.save(target, "JPEG", quality=JPEG_QUALITY))

    paths = [p for folder in folders for p in sorted(folder.rglob("*")) if is_image(p.name)]
    for _ in parallel_map(shrink, paths, None, f"resizing to {side} pixels"):
        pass


def _open_sample(split: Labelled, kept_side: int | None) -> None:
    """Decode a few files; raises UserError naming the one that does not, or is larger than kept."""
    if not isinstance(split.images, list):
        return
    files = Streamed.of(split)
    for i in range(0, len(split), max(1, len(split) // SAMPLED)):
        path = files.paths[i]
        try:
            side = min(files.read(i).shape[-2:])
        except UserError:
            raise
        except Exception as error:  # Pillow raises many kinds for damaged files
            raise UserError(f"cannot be read: {files.problem(i)}") from error
        if kept_side and side > kept_side:
            raise UserError(
                f"{path} has a shorter side of {side} pixels; the repository's results are from {kept_side} "
                f"(if yours shall stay as they are: dataset.kept_side=null)"
            )


@contextmanager
def _offline() -> Iterator[None]:
    """Let timm read the hub's cache alone."""
    before, hub.HF_HUB_OFFLINE = hub.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE = before
