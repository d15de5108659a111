"""Files from elsewhere: fetched and verified; each is at its place whole or not at all."""

import hashlib
import json
import os
import re
import shutil
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit
from urllib.request import url2pathname

import requests
import urllib3
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from daft.common import progress
from daft.common.errors import UserError
from daft.common.files import read_json, write_atomically
from daft.config.schema import FileConfig
from daft.prepare import disk

TIMEOUT = (15, 60)
"""Seconds to connect, and without a byte after that."""

RETRIES = 3
"""In a row without a new byte, before an address is given up."""

BACKOFF = 0.5
"""Seconds before the first retry; they double."""

TRANSIENT = (429, 500, 502, 503, 504)
"""HTTP statuses of a server that may be well again soon."""

MAX_RETRY_AFTER = 30
"""Seconds that a server may ask for with Retry-After; who asks for more is retried as if it did not."""

LEADING_WHITESPACE = b"\xef\xbb\xbf \t\r\n"
"""What may stand before text: a byte order mark, white space."""

HTML = (b"<!doctype html", b"<html")

PAGES = {".txt": HTML, ".csv": HTML, ".json": HTML, ".html": ()}
"""How a page instead of the file begins, by the suffix of a file that is text itself."""


class Notes(TypedDict, total=False):
    """Where a part is from."""

    url: str
    validator: str | None
    """of the file there, as it was then"""
    bytes: int | None
    """of the whole"""


NOTES = TypeAdapter(Notes)


@dataclass(frozen=True)
class Fetched:
    """A file as it was received."""

    url: str | None
    """None: it was there already"""
    checksum: str
    """sha256:…"""
    bytes: int


class _UnreachableError(Exception):
    """An address gives nothing (more); the message says why."""


class _DroppedError(Exception):
    """The connection ended before the file did, or the server asks to come again."""

    def __init__(self, why: str, wait: float = 0) -> None:
        super().__init__(why)
        self.wait = wait  # seconds


INTERRUPTIONS = (
    _DroppedError,
    requests.ConnectionError,
    requests.Timeout,
    urllib3.exceptions.HTTPError,  # of the raw stream, which requests does not translate
)
"""What may go better the next time."""


def fetch(file: FileConfig, root: Path, check: Callable[[Path], None] | None = None) -> Fetched | None:
    """Fetch to `root / file.path` from the first address that gives the right file, or verify what is there.

    A download that was cut off goes on where it stopped, even in another process. None: there is no need,
    all that the archive gives is there. `check` gets what was received, under another name, before it is at
    its place, and raises UserError if it is not the right file; the next address is tried then. Raises
    UserError if no address gives the file, if it cannot be written, or if a wrong one is at its place.
    """
    path = root / file.path
    if not _needless(file, root):
        with disk.writing(path, root):
            if not _needless(file, root):  # as another process may have left it
                disk.require_vacant(file, root)
                return _fetch_from_any(file, path, check)
    return verify(file, root) if path.exists() else None


def verify(file: FileConfig, root: Path) -> Fetched:
    """Check size, checksum and kind of the file at its place; raises UserError, and leaves a wrong one."""
    path = root / file.path
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    try:
        return Fetched(None, *_examine(path, file))
    except disk.UnfitError as error:
        raise UserError(f"{path} is damaged or another file: {error}; remove it to fetch it anew") from None


def _needless(file: FileConfig, root: Path) -> bool:
    return (root / file.path).exists() or disk.present(file, root) == "present"


def _fetch_from_any(file: FileConfig, path: Path, check: Callable[[Path], None] | None) -> Fetched:
    part, reasons = disk.part_file(path), []
    if part.exists() and not part.is_file():
        raise UserError(f"{part}: no regular file, where what arrives is kept; remove it")
    for url in file.urls:
        try:
            _receive(url, part, file)
            checksum, size = _examine(part, file)
            if check:
                _apply(check, part)
        except _UnreachableError as error:
            reasons.append(f"{url}: {error}")
        except disk.UnfitError as error:
            reasons.append(f"{url}: {error}")
            part.unlink()
            _notes(part).unlink(missing_ok=True)
        else:
            os.replace(part, path)
            _notes(part).unlink(missing_ok=True)
            return Fetched(url, checksum, size)
    raise UserError(
        "\n  ".join([f"{file.path} cannot be fetched:", *reasons, f"put it at {path} by hand, or try again"])
    )


def _apply(check: Callable[[Path], None], part: Path) -> None:
    try:
        check(part)
    except UserError as error:
        raise disk.UnfitError(str(error)) from error


def _receive(url: str, part: Path, file: FileConfig) -> None:
    """Bring what is at this address to `part`; raises _UnreachableError once nothing more arrives."""
    most = failures = 0
    while True:
        try:
            return _copy(url, part) if urlsplit(url).scheme == "file" else _download(url, part, file)
        except INTERRUPTIONS as error:
            arrived = part.stat().st_size if part.exists() else 0
            failures = 0 if arrived > most else failures + 1
            most = max(most, arrived)
            if failures > RETRIES:
                raise _UnreachableError(_root_cause(error)) from error
            time.sleep(max(BACKOFF * 2**failures, getattr(error, "wait", 0)))
        except requests.RequestException as error:
            raise _UnreachableError(_root_cause(error)) from error


def _copy(url: str, part: Path) -> None:
    source = Path(url2pathname(urlsplit(url).path))
    if not source.is_file():
        raise _UnreachableError("there is no such file")
    _notes(part).unlink(missing_ok=True)
    shutil.copyfile(source, part)


def _download(url: str, part: Path, file: FileConfig) -> None:
    """One request, for what `part` lacks; for all of it if the server cannot go on with the same file."""
    notes = _read_notes(part)
    validator, total = notes.get("validator"), notes.get("bytes")
    # What was put together from two files would show by its checksum, where one is known.
    same = part.exists() and notes.get("url") == url and (file.checksum or (validator and total))
    arrived = part.stat().st_size if same else 0
    if arrived and arrived == total:
        return
    headers = {"Accept-Encoding": "identity"}
    if arrived:
        headers |= {"Range": f"bytes={arrived}-"} | ({"If-Range": validator} if validator else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        code, given = response.status_code, response.headers
        if code in TRANSIENT:
            raise _DroppedError(f"HTTP {code} {response.reason}", _retry_after(given))
        first, last, whole = _content_range(given)
        continued = (
            arrived > 0 and code == 206 and (first, last, total or whole) == (arrived, whole - 1, whole)
        )
        if arrived and code in (206, 416) and not continued:
            part.unlink()
            raise _DroppedError("the server does not go on with the same file")
        if code != 200 and not continued:
            raise _UnreachableError(f"HTTP {code} {response.reason}")
        if not file.checksum and _tells_page(given, file):
            raise _UnreachableError("a web page instead of the file")
        length = given.get("Content-Length")
        total = whole if continued else int(length) if length else None
        taken = part.stat().st_size if part.exists() else 0  # gone on with, or freed
        disk.require_free((total or 0) - taken, part.parent)
        with open(part, "ab" if continued else "wb") as out, progress.transfer() as shown:
            if not continued:  # after the old bytes are gone, before the first new one
                notes = {"url": url, "validator": _validator(given), "bytes": total}
                write_atomically(_notes(part), json.dumps(notes))
            bar = shown.add_task(part.stem, total=total, completed=arrived if continued else 0)
            # Not response.iter_content: it would decompress a .gz that is declared as an encoding.
            for chunk in response.raw.stream(disk.CHUNK, decode_content=False):
                out.write(chunk)
                shown.advance(bar, len(chunk))
            out.flush()
            os.fsync(out.fileno())
    size = part.stat().st_size
    if total not in (None, size):
        raise _DroppedError(f"the connection ended after {size:,} of {total:,} bytes")


def _notes(part: Path) -> Path:
    """The file with the notes on a part."""
    return part.with_name(f"{part.name}.json")


def _read_notes(part: Path) -> Notes:
    """Empty if there are none, or none whole."""
    try:
        return NOTES.validate_python(read_json(_notes(part)), strict=True)
    except (FileNotFoundError, ValueError):
        return {}


def _validator(headers: Mapping[str, str]) -> str | None:
    """What If-Range may compare: a strong ETag, else the date (RFC 9110, 13.1.5)."""
    etag = headers.get("ETag", "W/")
    return headers.get("Last-Modified") if etag.startswith("W/") else etag


def _retry_after(headers: Mapping[str, str]) -> int:
    """Seconds, 0 for a date or for more than MAX_RETRY_AFTER."""
    told = headers.get("Retry-After", "")
    return seconds if told.isdecimal() and (seconds := int(told)) <= MAX_RETRY_AFTER else 0


def _content_range(headers: Mapping[str, str]) -> tuple[int, int, int]:
    """First and last byte, and bytes of the whole; zeros if any of them is not told."""
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", headers.get("Content-Range", ""))
    first, last, whole = match.groups() if match else (0, 0, 0)
    return int(first), int(last), int(whole)


def _tells_page(headers: Mapping[str, str], file: FileConfig) -> bool:
    kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return kind in ("text/html", "application/json") and _suffix(file) not in PAGES


def _suffix(file: FileConfig) -> str:
    return PurePosixPath(file.path).suffix.lower()


def _root_cause(error: BaseException) -> str:
    """The system's own words, without the layers of libraries around them."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return str(error) or type(error).__name__


def _examine(path: Path, file: FileConfig) -> tuple[str, int]:
    """sha256:… and bytes; raises UnfitError if the file is not the configured one."""
    kind, size = disk.archive_kind(path), path.stat().st_size
    if size == 0:
        raise disk.UnfitError("an empty file")
    text = disk.first_bytes(path).lstrip(LEADING_WHITESPACE).lower()
    if kind is None and text.startswith(PAGES.get(_suffix(file), (b"<", b"{"))):
        raise disk.UnfitError("a web page instead of the file")
    if file.bytes not in (None, size):
        raise disk.UnfitError(f"{size:,} bytes, not {file.bytes:,}")
    found = _checksums(path, {"sha256", (file.checksum or "sha256").split(":")[0]})
    if file.checksum and not (other := found[file.checksum.split(":")[0]]).startswith(file.checksum):
        raise disk.UnfitError(f"{other}, not {file.checksum}")
    if file.unpack is not None and kind is None:
        raise disk.UnfitError("neither tar, tar.gz nor zip")
    if kind == "zip" and not zipfile.is_zipfile(path):
        raise disk.UnfitError("a zip that is cut short")
    return found["sha256"], size


def _checksums(path: Path, algorithms: set[str]) -> dict[str, str]:
    hashes = {name: hashlib.new(name, usedforsecurity=False) for name in algorithms}
    with open(path, "rb") as file, progress.transfer() as shown:
        bar = shown.add_task(f"verifying {path.name}", total=path.stat().st_size)
        while chunk := file.read(disk.CHUNK):
            for each in hashes.values():
                each.update(chunk)
            shown.advance(bar, len(chunk))
    return {name: f"{name}:{each.hexdigest()}" for name, each in hashes.items()}
