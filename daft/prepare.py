"""Fetches what a dataset or a backbone needs, and says of what is there whether it is right."""

import json
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Literal, NamedTuple

from PIL import Image
from rich.table import Table

from daft import backbones, data, fetch, progress
from daft.config import BackboneConfig, DatasetConfig, FileConfig
from daft.data.folder import EXTENSIONS
from daft.data.images import Labelled, read_image
from daft.errors import UserError
from daft.fetch import GB
from daft.files import write_atomically

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
    """Fetch, verify and unpack what is not there; raises UserError for what only a person can get."""
    root = Path(cfg.root).expanduser()
    missing = [file for file in cfg.files if fetch.present(file, root) != "present"]
    _fetch(cfg.name, missing, root, cache, keep_archives)
    if cfg.kept_side:
        _shrink(root, cfg.kept_side)
    if cfg.manual and any(finding.state == "absent" for finding in check_dataset(cfg)):
        raise UserError(f"dataset={cfg.name} cannot be fetched by a program:\n{cfg.manual.rstrip()}")


def prepare_backbone(cfg: BackboneConfig, cache: Path) -> None:
    """Fetch and verify the checkpoint, if it is not there."""
    if cfg.weights == "hub":
        backbones.load(cfg)  # timm keeps what it fetches
    elif file := checkpoint_file(cfg):
        root = Path(file.path).parent
        if fetch.present(file, root) != "present":
            _fetch(cfg.name, [file], root, cache, keep_archives=True)


def checkpoint_file(cfg: BackboneConfig) -> FileConfig | None:
    """The checkpoint as a file to fetch; None where the configuration names no address."""
    if not cfg.urls or cfg.checkpoint is None:
        return None
    path = str(Path(cfg.checkpoint).expanduser().absolute())
    return FileConfig(path=path, urls=cfg.urls, bytes=cfg.bytes, checksum=cfg.checksum)


def check_dataset(cfg: DatasetConfig) -> Iterator[Finding]:
    """One finding per file that prepare.py fetches, and per split: count, classes, a sample opened."""
    root = Path(cfg.root).expanduser()
    complete = root.is_dir()
    for file in cfg.files:
        finding = _check_file(file, root)
        complete &= finding.state != "absent"
        yield finding
    splits = {"train": cfg.train, "id": cfg.id} | {f"ood.{name}": s for name, s in cfg.ood.items()}
    try:
        classes = data.class_names(cfg)
    except UserError as error:
        yield Finding("classes", "absent", str(error))
        return
    for name, split in splits.items():
        try:
            found = data.read_split(cfg, split, name, classes)
            _open_sample(found)
        except UserError as error:
            state = "damaged" if complete else "absent"
            yield Finding(name, state, str(error).split(data.HINT)[0].removeprefix(f"dataset.{name}: "))
        else:
            known = "as it must be" if split.known_images else "no published number to compare with"
            held = len(found.labels.unique())
            detail = f"{len(found):,} images ({known}), {held} of {len(classes)} classes, a sample opened"
            yield Finding(name, "present", detail)


def check_backbone(cfg: BackboneConfig) -> Iterator[Finding]:
    """One finding: whether the checkpoint loads, key by key."""
    what = cfg.checkpoint or f"{cfg.model} of the hub"
    try:
        if cfg.weights == "file":
            backbones.checkpoint_path(cfg)
    except UserError as error:
        yield Finding(what, "absent", str(error).removeprefix("backbone.checkpoint: "))
        return
    try:
        found = str(backbones.report(cfg))
    except UserError as error:
        yield Finding(what, "damaged", str(error).removeprefix("backbone.checkpoint: "))
    else:
        yield Finding(what, "present", found)


def remedy(cfg: DatasetConfig | BackboneConfig) -> str:
    """What to do about what is not there."""
    if isinstance(cfg, DatasetConfig):
        if cfg.manual:
            return cfg.manual.rstrip()
        group, fetched, key = "dataset", bool(cfg.files), f"dataset.root={cfg.root}"
    else:
        group, fetched = "backbone", bool(cfg.urls or cfg.weights == "hub")
        key = f"backbone.checkpoint={cfg.checkpoint}"
    if fetched:
        return f"fetch what is absent: python scripts/prepare.py {group}={cfg.name}  (or set {key})"
    return f"put it there yourself, or set {key} to where it is"


def table(name: str, findings: Iterable[Finding]) -> Table:
    """The findings of one dataset or backbone, for a terminal."""
    colours = {"present": "green", "absent": "yellow", "damaged": "red"}
    shown = Table(title=name, title_justify="left")
    for column in ("what", "state", "detail"):
        shown.add_column(column, overflow="fold")
    for finding in findings:
        shown.add_row(finding.what, f"[{colours[finding.state]}]{finding.state}", finding.detail)
    return shown


def _check_file(file: FileConfig, root: Path) -> Finding:
    where = ", ".join(str(root / name) for name in file.gives or [file.path])
    found = fetch.present(file, root)
    if found == "absent":
        return Finding(file.path, "absent", where)
    try:
        if found != "present":
            raise UserError(f"{where}: {found.removeprefix('damaged: ')}")
        if file.unpack is None:
            fetch.verify(file, root)
    except UserError as error:
        return Finding(file.path, "damaged", str(error))
    return Finding(file.path, "present", where)


def _fetch(name: str, files: list[FileConfig], root: Path, cache: Path, keep_archives: bool) -> None:
    """Fetch, unpack and note in the manifest; all that is needed must fit on the disk first."""
    fetch.require_space(files, root)
    if needed := fetch.required_bytes(files, root):
        progress.console.print(f"{name}: {needed / GB:,.1f} GB of disk needed below {root}")
    manifest = cache / "prepared" / f"{name}.json"
    for file in files:
        if (found := fetch.fetch(file, root)) is None:
            continue
        if file.checksum is None:
            progress.console.print(f"{file.path}: {found.checksum} (none is published: pin this one)")
        if file.unpack is not None:
            fetch.unpack(file, root)
            if found.url and not keep_archives:  # one that was there already is the user's
                fetch.discard(file, root)
        noted = json.loads(manifest.read_text()) if manifest.exists() else {}
        noted[file.path] = {**asdict(found), "root": str(root.absolute()), "time": time.time()}
        write_atomically(manifest, json.dumps(noted, indent=1) + "\n")


def _shrink(root: Path, side: int) -> None:
    """Rewrite larger images below `root` with this shorter side in pixels; each whole or not at all."""

    def shrink(path: Path) -> None:
        with Image.open(path) as image:
            if min(image.size) <= side:
                return
            scale = side / min(image.size)
            size = (round(image.width * scale), round(image.height * scale))
            smaller = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        write_atomically(path, lambda target: smaller.save(target, "JPEG", quality=JPEG_QUALITY))

    paths = [p for p in sorted(root.rglob("*")) if p.suffix.lower() in EXTENSIONS]
    with ThreadPoolExecutor() as pool:
        for _ in progress.track(pool.map(shrink, paths), f"resizing to {side} pixels", len(paths)):
            pass


def _open_sample(split: Labelled) -> None:
    """Decode a few files; raises UserError naming the one that does not."""
    if isinstance(split.images, list):
        for path in split.images[:: max(1, len(split) // SAMPLED)]:
            try:
                read_image(path)
            except Exception as error:  # Pillow raises many kinds for damaged files
                raise UserError(f"{path} cannot be read ({error})") from error
