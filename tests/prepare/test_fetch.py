"""Fetching, verifying and unpacking, against a web server on this machine that misbehaves on request."""

import hashlib
import io
import json
import os
import re
import resource
import socket
import stat
import subprocess
import sys
import tarfile
import textwrap
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal
from unittest.mock import Mock

import numpy as np
import pytest

from daft.common.errors import UserError
from daft.config.schema import FileConfig
from daft.prepare import archives, disk, fetch
from tests.helpers.upstream import (
    PAGE,
    Drop,
    Hold,
    Instead,
    Length,
    NoIfRange,
    NoRange,
    NoValidator,
    Server,
    Status,
)
from tests.helpers.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
CONTENT = np.random.default_rng(0).bytes(1_000_000)
OTHER = np.random.default_rng(1).bytes(1_000_000)
SHA256 = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
MEMBERS = {"set/cat/1.jpg": b"one", "set/cat/2.jpg": b"two", "set/dog/3.jpg": b"three", "README": b"read"}

Archiver = Callable[..., Path]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(fetch, "BACKOFF", 0)
    folder = tmp_path / "upstream"
    folder.mkdir()
    (folder / "a").write_bytes(CONTENT)
    (folder / "mirror").write_bytes(CONTENT)
    with Server(folder) as server:
        yield server


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


def wanted(server: Server, *names: str, **facts: Any) -> FileConfig:
    """The file `a`, from these names of the server."""
    return FileConfig(path="a", urls=[server.url(name) for name in names or ["a"]], **facts)


def fetched(file: FileConfig, root: Path) -> fetch.Fetched:
    found = fetch.fetch(file, root)
    assert found is not None
    return found


def ranges(server: Server) -> list[str | None]:
    return [request.headers.get("Range") for request in server.requests]


def left(folder: Path) -> list[str]:
    """Everything below a folder, hidden files included."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def interrupt(server: Server, root: Path) -> None:
    """Leave the first 300,000 bytes of `a`, as a run that ends in the middle does."""
    server.faults["a"] = Drop(after=300_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch, "RETRIES", -1)
        with pytest.raises(UserError, match=r"ended after 300,000 of 1,000,000 bytes|IncompleteRead"):
            fetch.fetch(wanted(server), root)
    del server.faults["a"]
    server.requests.clear()


def interrupt_without_validator(server: Server, root: Path, total: int | None) -> None:
    """Leave the first 300,000 bytes of `a`, noted with this size, from a server that names no version."""
    die_before_verifying(wanted(server), root)
    os.truncate(root / "a.part", 300_000)
    (root / "a.part.json").write_text(json.dumps({"url": server.url("a"), "validator": None, "bytes": total}))
    server.requests.clear()


def die_before_verifying(file: FileConfig, root: Path) -> None:
    """Receive all of the file, and end before it is at its place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch, "_examine", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fetch.fetch(file, root)


def die_while_moving(file: FileConfig, root: Path, moved: int) -> None:
    """Unpack, and end when this many folders are at their place."""
    rename, renamed = Path.rename, []

    def until(source: Path, target: Path) -> Path:
        if source.parent.suffix == ".unpacked":
            if len(renamed) == moved:
                raise KeyboardInterrupt
            renamed.append(target)
        return rename(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "rename", until)
        with pytest.raises(KeyboardInterrupt):
            archives.unpack(file, root)


@contextmanager
def full_disk(after: int) -> Iterator[None]:
    """No file can grow beyond this: the system refuses as on a full disk, with another number."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (after, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def start(code: str) -> subprocess.Popen[bytes]:
    """Another process of Python that runs this with archives, disk, fetch and FileConfig at hand."""
    header = (
        "from pathlib import Path\n"
        "from daft.config.schema import FileConfig\n"
        "from daft.prepare import archives, disk, fetch\n"
    )
    return subprocess.Popen([sys.executable, "-c", header + textwrap.dedent(code)], cwd=ROOT)


def running(process: subprocess.Popen[bytes]) -> None:
    assert process.poll() is None


def write_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def write_tar(
    path: Path, members: Mapping[str, bytes | tarfile.TarInfo], mode: Literal["w", "w:gz"] = "w"
) -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


ARCHIVERS: dict[str, Archiver] = {
    "zip": write_zip,
    "tar": write_tar,
    "tar.gz": lambda path, members: write_tar(path, members, "w:gz"),
}


@pytest.fixture(params=ARCHIVERS)
def archive(request: pytest.FixtureRequest, root: Path) -> Path:
    """An archive of MEMBERS at its place, of each kind in turn."""
    root.mkdir()
    return ARCHIVERS[request.param](root / f"set.{request.param}", MEMBERS)


def archived(path: Path | str, **facts: Any) -> FileConfig:
    facts = {"unpack": ".", "gives": ["set"], **facts}
    return FileConfig(path=Path(path).name, urls=["http://127.0.0.1:9/nowhere"], **facts)


def test_a_file_is_fetched_whole_and_its_checksum_told(server: Server, root: Path):
    url = server.url("a")
    assert fetch.fetch(wanted(server, bytes=len(CONTENT)), root) == fetch.Fetched(url, SHA256, len(CONTENT))
    assert (root / "a").read_bytes() == CONTENT
    assert left(root) == ["a"]


def test_what_is_there_is_verified_without_a_request(server: Server, root: Path):
    file = wanted(server, checksum=SHA256)
    fetch.fetch(file, root)
    assert fetch.fetch(file, root) == fetch.Fetched(None, SHA256, len(CONTENT))
    assert len(server.requests) == 1


def test_a_dropped_connection_is_taken_up_where_it_broke(server: Server, root: Path):
    server.faults["a"] = Drop(after=300_000, times=2)
    fetch.fetch(wanted(server), root)
    assert (root / "a").read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=300000-", "bytes=600000-"]


def test_connections_may_drop_as_often_as_something_new_arrives(server: Server, root: Path):
    server.faults["a"] = Drop(after=100_000)
    fetch.fetch(wanted(server), root)
    assert (root / "a").read_bytes() == CONTENT
    assert len(server.requests) == 10 > fetch.RETRIES


def test_a_later_run_goes_on_with_what_has_arrived(server: Server, root: Path):
    interrupt(server, root)
    assert left(root) == ["a.part", "a.part.json"]
    fetch.fetch(wanted(server), root)
    assert (root / "a").read_bytes() == CONTENT
    assert ranges(server) == ["bytes=300000-"]
    assert left(root) == ["a"]


def test_a_killed_process_leaves_what_the_next_one_goes_on_with(server: Server, root: Path):
    server.faults["a"] = Hold(after=600_000)
    file, part = wanted(server), root / "a.part"
    process = start(f"disk.CHUNK = 10_000\nfetch.fetch({file!r}, Path({str(root)!r}))")
    wait_until(lambda: part.exists() and part.stat().st_size > 50_000, lambda: running(process))
    process.kill()
    process.wait()
    arrived = part.stat().st_size
    assert arrived <= 600_000
    del server.faults["a"]
    fetch.fetch(file, root)
    assert (root / "a").read_bytes() == CONTENT
    assert ranges(server) == [None, f"bytes={arrived}-"]
    assert left(root) == ["a"]


def test_a_process_killed_before_it_verified_needs_no_request(server: Server, root: Path):
    die_before_verifying(wanted(server), root)
    assert left(root) == ["a.part", "a.part.json"]
    assert fetched(wanted(server), root).checksum == SHA256
    assert len(server.requests) == 1


def test_what_came_from_another_address_is_not_gone_on_with(server: Server, root: Path, tmp_path: Path):
    interrupt(server, root)
    assert fetched(wanted(server, "mirror"), root).checksum == SHA256
    assert ranges(server) == [None]
    (root / "a").unlink()
    interrupt(server, root)
    (tmp_path / "other").write_bytes(OTHER)
    die_before_verifying(FileConfig(path="a", urls=[f"file://{tmp_path}/other"]), root)
    assert fetched(wanted(server), root).checksum == SHA256
    assert ranges(server) == [None]


def test_a_server_that_ignores_ranges_sends_all_of_it_again(server: Server, root: Path):
    interrupt(server, root)
    server.faults["a"] = NoRange()
    fetch.fetch(wanted(server), root)
    assert (root / "a").read_bytes() == CONTENT


def test_a_server_without_validators_is_never_asked_for_a_range(server: Server, root: Path):
    """Nothing could tell whether the rest is of the same file."""
    server.faults["a"] = NoValidator()
    die_before_verifying(wanted(server), root)
    os.truncate(root / "a.part", 300_000)
    assert fetched(wanted(server), root).checksum == SHA256
    assert ranges(server) == [None, None]


@pytest.mark.parametrize("total", [len(CONTENT), None])
def test_where_a_checksum_tells_a_range_is_asked_for_without_validators(server: Server, root: Path, total):
    server.faults["a"] = NoValidator()
    interrupt_without_validator(server, root, total)
    assert fetched(wanted(server, checksum=SHA256), root).checksum == SHA256
    assert ranges(server) == ["bytes=300000-"]
    assert "If-Range" not in server.requests[0].headers


@pytest.mark.parametrize("content", [OTHER, OTHER + b"more"], ids=["as long", "longer"])
def test_what_was_put_together_of_two_files_is_never_taken(server: Server, root: Path, content):
    server.faults["a"] = NoValidator()
    interrupt_without_validator(server, root, len(CONTENT))
    (server.folder / "a").write_bytes(content)
    with pytest.raises(UserError, match=f"not {SHA256}"):
        fetch.fetch(wanted(server, checksum=SHA256), root)
    assert left(root) == []


@pytest.mark.parametrize(
    "notes",
    [
        *(b"", b'{"url": "http', "\ufffd".encode(), b"\xff", b"[]", b"{}", b"[" * 100_000),
        *(b'{"url": URL, "bytes": "all"}', b'{"url": URL, "validator": 1, "bytes": 9}', b'{"url": [URL]}'),
    ],
)
def test_notes_that_are_not_whole_count_as_none(server: Server, root: Path, notes: bytes):
    interrupt(server, root)
    url = json.dumps(server.url("a")).encode()
    (root / "a.part.json").write_bytes(notes.replace(b"URL", url))
    assert fetched(wanted(server), root).checksum == SHA256
    assert ranges(server) == [None]
    assert left(root) == ["a"]


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_stands_in_the_place_of_a_part_is_named_and_not_waited_for(server: Server, root: Path, make):
    root.mkdir()
    make(root / "a.part")
    with pytest.raises(UserError, match=r"a\.part: no regular file, .*remove it"):
        fetch.fetch(wanted(server), root)


@pytest.mark.parametrize("code", fetch.TRANSIENT)
def test_a_server_that_is_busy_is_asked_again(server: Server, root: Path, code):
    server.faults["a"] = Status(code, times=2)
    assert fetched(wanted(server, "a", "mirror"), root).url == server.url("a")
    assert [request.status for request in server.requests] == [code, code, 200]


@pytest.mark.parametrize(("asked", "waited"), [(7, 7), (3600, 0), (None, 0)])
def test_a_short_wait_that_the_server_asks_for_is_kept(
    server: Server, root: Path, monkeypatch, asked, waited
):
    waits: list[float] = []
    monkeypatch.setattr(fetch.time, "sleep", waits.append)
    server.faults["a"] = Status(429, times=1, retry_after=asked)
    fetch.fetch(wanted(server), root)
    assert waits == [waited]


@pytest.mark.parametrize(
    ("content", "fault"),
    [(OTHER, None), (OTHER[:1000], None), (OTHER[:1000], NoIfRange()), (OTHER + b"more", NoIfRange())],
    ids=["as long", "shorter", "shorter, no If-Range", "longer, no If-Range"],
)
def test_a_file_that_changed_upstream_starts_over(server: Server, root: Path, content, fault):
    interrupt(server, root)
    if fault:
        server.faults["a"] = fault
    (server.folder / "a").write_bytes(content)
    os.utime(server.folder / "a", (1, 1))
    fetch.fetch(wanted(server), root)
    assert (root / "a").read_bytes() == content
    assert ranges(server) in (["bytes=300000-"], ["bytes=300000-", None])


def test_a_range_that_is_refused_starts_over(server: Server, root: Path):
    interrupt(server, root)
    server.faults["a"] = Status(416, times=1)
    fetch.fetch(wanted(server), root)
    assert (root / "a").read_bytes() == CONTENT
    assert ranges(server) == ["bytes=300000-", None]


@pytest.mark.parametrize(
    ("fault", "facts", "reason"),
    [
        (Status(500), {}, "HTTP 500"),
        (Status(404), {}, "HTTP 404"),
        (Drop(after=0), {}, "IncompleteRead|connection ended"),
        (PAGE, {}, "a web page instead of the file"),
        (PAGE, {"checksum": SHA256}, "a web page instead of the file"),
        (Instead(b'["not found"]', "application/json; charset=utf-8"), {}, "a web page instead of the file"),
        (Instead(b' \n{"message": "not found"}'), {}, "a web page instead of the file"),
        (Instead(b"\xef\xbb\xbf<!-- x --><html>"), {}, "a web page instead of the file"),
        (Instead(b"<?xml version='1.0'?><Error/>"), {}, "a web page instead of the file"),
        (Instead(b""), {}, "an empty file"),
        (Instead(OTHER), {"checksum": SHA256}, f"not {SHA256}"),
        (Instead(b"short"), {"bytes": len(CONTENT)}, "5 bytes, not 1,000,000"),
    ],
    ids=[
        *(
            "500",
            "404",
            "dropped",
            "page",
            "page for a checksum",
            "JSON by its type",
            "JSON",
            "comment",
            "XML",
        ),
        *("empty", "checksum", "bytes"),
    ],
)
def test_the_next_mirror_gives_what_the_first_does_not(server: Server, root: Path, fault, facts, reason):
    server.faults["a"] = fault
    with pytest.raises(UserError, match=reason):
        fetch.fetch(wanted(server, **facts), root)
    assert not (root / "a").exists()
    assert fetched(wanted(server, "a", "mirror", **facts), root).url == server.url("mirror")
    assert (root / "a").read_bytes() == CONTENT
    assert left(root) == ["a"]


@pytest.mark.parametrize(
    ("path", "body", "type"),
    [
        ("a.json", b'{"a": 1}', "application/json"),
        ("a.txt", b"<b>", "text/html"),
        ("a.html", b"<html>", "text/html"),
    ],
)
def test_a_file_that_is_text_may_look_like_it(server: Server, root: Path, path, body, type):
    server.faults["a"] = Instead(body, type)
    fetch.fetch(replace(wanted(server), path=path), root)
    assert (root / path).read_bytes() == body


def test_what_the_check_refuses_never_gets_its_name(server: Server, root: Path):
    """Half of a file whose length no one tells, which nothing else could see."""
    (server.folder / "a").write_bytes(CONTENT[:500_000])
    server.faults["a"] = Length(None)

    def check(path: Path) -> None:
        assert not (root / "a").exists()
        if path.read_bytes() != CONTENT:
            raise UserError("no network in it")

    with pytest.raises(UserError, match=r"/a: no network in it\n"):
        fetch.fetch(wanted(server), root, check)
    assert left(root) == []
    fetch.fetch(wanted(server, "a", "mirror"), root, check)
    assert (root / "a").read_bytes() == CONTENT
    assert left(root) == ["a"]


def test_a_zip_that_was_cut_unseen_is_not_taken(server: Server, root: Path):
    whole = write_zip(server.folder / "a", MEMBERS).read_bytes()
    (server.folder / "a").write_bytes(whole[:-30])
    server.faults["a"] = Length(None)
    with pytest.raises(UserError, match=r"a zip that is cut short"):
        fetch.fetch(wanted(server, unpack=".", gives=["set"]), root)
    assert left(root) == []


def test_too_small_a_disk_for_what_the_server_tells_is_said_before_the_first_byte(server: Server, root: Path):
    server.faults["a"] = Length(10**18)
    with pytest.raises(
        UserError, match=r"1,000,000,000\.0 GB are needed, but only .* GB are free.*paths\.data"
    ):
        fetch.fetch(wanted(server), root)
    assert left(root) == []


def test_when_all_addresses_fail_each_says_why(server: Server, root: Path, tmp_path: Path):
    server.faults |= {"a": Status(503), "mirror": Instead(OTHER)}
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        refusing = f"http://127.0.0.1:{closed.getsockname()[1]}/a"
        urls = [server.url("a"), server.url("mirror"), refusing, f"file://{tmp_path}/none"]
        with pytest.raises(UserError) as caught:
            fetch.fetch(FileConfig(path="a", urls=urls, checksum=SHA256), root)
    lines = str(caught.value).splitlines()
    other = hashlib.sha256(OTHER).hexdigest()
    assert lines[0] == "a cannot be fetched:"
    assert lines[1].endswith("/a: HTTP 503 Service Unavailable")
    assert lines[2].endswith(f"/mirror: sha256:{other}, not {SHA256}")
    assert "Connection refused" in lines[3]
    assert lines[4].endswith("none: there is no such file")
    assert f"put it at {root / 'a'} by hand" in lines[5]
    assert left(root) == []


def test_a_file_url_is_copied(server: Server, root: Path):
    url = f"file://{server.folder}/a"
    assert fetched(FileConfig(path="sub/a", urls=[url]), root).url == url
    assert (root / "sub" / "a").read_bytes() == CONTENT


@pytest.mark.parametrize("digits", [8, 32])
def test_a_published_md5_may_be_short(server: Server, root: Path, digits):
    md5 = hashlib.md5(CONTENT).hexdigest()
    assert fetched(wanted(server, checksum=f"md5:{md5[:digits]}"), root).checksum == SHA256
    wrong = f"{'0' if md5[0] != '0' else '1'}{md5[1:digits]}"
    with pytest.raises(UserError, match=rf"md5:{md5}, not md5:{wrong}"):
        fetch.verify(wanted(server, checksum=f"md5:{wrong}"), root)


@pytest.mark.parametrize("facts", [{"bytes": 6}, {"checksum": SHA256}, {"unpack": ".", "gives": ["x"]}])
def test_a_wrong_file_at_the_place_is_named_and_left(server: Server, root: Path, facts):
    root.mkdir()
    (root / "a").write_bytes(b"wrong")
    with pytest.raises(UserError, match=r"root/a is damaged or another file: .*remove it"):
        fetch.fetch(wanted(server, **facts), root)
    assert (root / "a").read_bytes() == b"wrong"
    assert server.requests == []


@pytest.mark.parametrize("instead", [PAGE, Instead(b"\x00" * 600)], ids=["page", "noise"])
def test_what_is_no_archive_is_not_taken_for_one(server: Server, root: Path, instead):
    server.faults["a"] = instead
    with pytest.raises(UserError, match=r"a web page instead of|neither tar, tar\.gz nor zip"):
        fetch.fetch(wanted(server, unpack=".", gives=["set"]), root)
    assert left(root) == []


def test_of_two_at_once_one_fetches_and_the_other_waits(server: Server, root: Path, capsys):
    server.faults["a"] = hold = Hold(after=500_000)
    found, shown = [], []
    both = [threading.Thread(target=lambda: found.append(fetched(wanted(server), root))) for _ in range(2)]
    for one in both:
        one.start()
    waiting = f"{root}/a: waiting for another process"
    try:
        wait_until(lambda: waiting in "".join(shown), lambda: shown.append(capsys.readouterr().err))
    finally:
        hold.go_on.set()
    for one in both:
        one.join()
    assert {each.url for each in found} == {server.url("a"), None}
    assert len(server.requests) == 1
    assert left(root) == ["a"]


def test_a_full_disk_is_said_and_what_has_arrived_is_kept(server: Server, root: Path):
    with full_disk(600_000), pytest.raises(UserError, match=r"cannot write below .*root.*make room"):
        fetch.fetch(wanted(server), root)
    assert left(root) == ["a.part", "a.part.json"]
    fetch.fetch(wanted(server), root)
    assert (root / "a").read_bytes() == CONTENT
    assert ranges(server)[1] == f"bytes={600_000}-"


def test_a_root_that_cannot_be_written_is_named_with_its_keys(server: Server, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/root.*dataset\.root, paths\.data"):
        fetch.fetch(wanted(server), tmp_path / "file" / "root")


def test_what_is_needed_counts_what_is_absent(server: Server, root: Path):
    one = wanted(server, bytes=len(CONTENT))
    archive = FileConfig(
        path="b.zip", urls=["https://host/x"], bytes=10**9, unpack=".", gives=["b"], unpacked_bytes=2 * 10**9
    )
    assert disk.required_bytes([one, archive], root) == 3 * 10**9 + len(CONTENT)
    interrupt(server, root)
    assert disk.required_bytes([one], root) == 700_000
    fetch.fetch(one, root)
    (root / "b").mkdir()
    assert disk.required_bytes([one, archive], root) == 3 * 10**9  # an empty folder is nothing yet
    (root / "b" / "1.jpg").touch()
    assert disk.required_bytes([one, archive], root) == 0


def test_what_has_arrived_counts_even_if_no_size_of_the_archive_is_known(server: Server, root: Path):
    interrupt(server, root)
    archive = wanted(server, unpack=".", gives=["set"], unpacked_bytes=500_000)
    assert disk.required_bytes([archive], root) == 200_000
    assert disk.required_bytes([replace(archive, unpacked_bytes=100_000)], root) == 0


def test_too_small_a_disk_is_said_before_anything_is_fetched(root: Path):
    huge = FileConfig(path="a", urls=["https://host/x"], bytes=10**18)
    with pytest.raises(UserError, match=r"1,000,000,000\.0 GB are needed, but only .* GB are free"):
        disk.require_free(disk.required_bytes([huge], root), root)
    disk.require_free(1, root)
    assert not root.exists()


def test_presence_is_told_by_names_and_sizes(server: Server, root: Path):
    file, archive = wanted(server, bytes=len(CONTENT)), archived("b.zip", gives=["b", "c"])
    assert [disk.present(f, root) for f in (file, archive)] == ["absent", "absent"]
    fetch.fetch(file, root)
    (root / "b").mkdir()
    (root / "b" / "1.jpg").touch()
    assert disk.present(file, root) == "present"
    assert disk.present(archive, root) == "damaged: b is there without c"
    (root / "c").touch()
    assert disk.present(archive, root) == "present"
    (root / "a").write_bytes(b"short")
    assert disk.present(file, root) == "damaged: 5 bytes, not 1,000,000"


def test_an_archive_is_unpacked_to_its_folder(archive: Path, root: Path):
    file = archived(archive, unpack="in/here", gives=["in/here/set"])
    archives.unpack(file, root)
    for name, content in MEMBERS.items():
        assert (root / "in/here" / name).read_bytes() == content
    assert disk.present(file, root) == "present"
    assert sorted(p.name for p in root.iterdir()) == ["in", archive.name]
    archives.discard(file, root)
    assert fetch.fetch(file, root) is None  # no need, and the address does not exist
    archives.unpack(file, root)
    assert left(root)[0] == "in"


def test_leading_folders_are_left_out_and_resource_forks_too(root: Path):
    root.mkdir()
    members = {**MEMBERS, "__MACOSX/set/cat/._1.jpg": b"fork"}
    archives.unpack(archived(write_zip(root / "s.zip", members), strip=1, gives=["cat", "dog"]), root)
    assert left(root) == ["cat", "cat/1.jpg", "cat/2.jpg", "dog", "dog/3.jpg", "s.zip"]


def test_archives_share_folders_but_write_over_nothing(root: Path):
    root.mkdir()
    for name in ("x", "y", "z"):
        content = {f"set/{name}/1.jpg": b"new", **({"set/x/2.jpg": b"new"} if name == "z" else {})}
        write_zip(root / f"{name}.zip", content)
    (root / "set").mkdir()
    archives.unpack(archived("x.zip", gives=["set/x"]), root)
    archives.unpack(archived("y.zip", gives=["set/y"]), root)
    (root / "set/x/2.jpg").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"set/x/2\.jpg is there already"):
        archives.unpack(archived("z.zip", gives=["set/z"]), root)
    assert (root / "set/x/2.jpg").read_bytes() == b"mine"
    assert sorted(p.name for p in root.iterdir()) == ["set", "x.zip", "y.zip", "z.zip"]
    assert sorted(p.name for p in (root / "set").iterdir()) == ["x", "y"]


def test_a_part_of_unknown_origin_is_neither_completed_nor_replaced(archive: Path, root: Path):
    (root / "set/cat").mkdir(parents=True)
    (root / "set/cat/mine.jpg").touch()
    with pytest.raises(UserError, match=r"set/cat is there without set/dog; move away"):
        archives.unpack(archived(archive, gives=["set/cat", "set/dog"]), root)
    assert left(root) == sorted([archive.name, "set", "set/cat", "set/cat/mine.jpg"])


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.85])
def test_a_truncated_archive_is_said_to_be_damaged_and_nothing_is_left(archive: Path, root: Path, keep):
    noise = {f"set/{i}": np.random.default_rng(i).bytes(3000) for i in range(20)}
    ARCHIVERS[archive.name.partition(".")[2]](archive, noise)
    whole = archive.read_bytes()
    archive.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(UserError, match=rf"{archive.name} is damaged .*remove it"):
        archives.unpack(archived(archive), root)
    assert left(root) == [archive.name]


def test_a_tar_cut_between_two_members_is_damaged(root: Path):
    """Where tarfile itself sees no more than an end."""
    root.mkdir()
    archive = write_tar(root / "s.tar", MEMBERS)
    archive.write_bytes(archive.read_bytes()[: 4 * 512])
    with tarfile.open(archive) as tar:
        assert len(tar.getmembers()) == 2
    with pytest.raises(UserError, match=r"ends too early"):
        archives.unpack(archived(archive), root)
    assert left(root) == ["s.tar"]


def test_a_gz_with_a_wrong_sum_is_damaged(root: Path):
    root.mkdir()
    archive = write_tar(root / "s.tar.gz", MEMBERS, "w:gz")
    content = bytearray(archive.read_bytes())
    content[-8] ^= 1
    archive.write_bytes(content)
    with pytest.raises(UserError, match=r"s\.tar\.gz is damaged .*CRC"):
        archives.unpack(archived(archive), root)
    assert left(root) == ["s.tar.gz"]


@pytest.mark.parametrize("name", ["../evil", "set/../../evil", "/tmp/evil", "..\\evil", "C:/evil"])
@pytest.mark.parametrize("kind", ARCHIVERS)
def test_a_member_that_leads_outside_is_named_and_nothing_is_left(root: Path, kind, name):
    root.mkdir()
    archive = ARCHIVERS[kind](root / f"s.{kind}", {**MEMBERS, name: b"evil"})
    with pytest.raises(UserError, match=rf"not safe to unpack: .*{re.escape(repr(name))}"):
        archives.unpack(archived(archive), root)
    assert left(root.parent) == ["root", f"root/{archive.name}"]


@pytest.mark.parametrize(
    "member",
    [link("set/out", "../../secret"), link("set/out", "/etc"), link("hard", "../x", tarfile.LNKTYPE)],
    ids=["relative", "absolute", "hard"],
)
def test_a_link_that_leads_outside_is_named_and_nothing_is_left(root: Path, member):
    root.mkdir()
    archive = write_tar(root / "s.tar", {**MEMBERS, "link": member})
    with pytest.raises(UserError, match=rf"not safe to unpack: .*({member.name}|{member.linkname})"):
        archives.unpack(archived(archive), root)
    assert left(root) == ["s.tar"]


def test_a_hard_link_to_what_is_not_there_is_damage(root: Path):
    root.mkdir()
    hard = link("set/hard.jpg", "set/none.jpg", tarfile.LNKTYPE)
    write_tar(root / "s.tar", {**MEMBERS, "hard": hard})
    with pytest.raises(UserError, match=r"damaged .*set/hard\.jpg links to set/none\.jpg.*remove it"):
        archives.unpack(archived("s.tar"), root)
    assert left(root) == ["s.tar"]


def test_links_inside_an_archive_still_lead_there(root: Path):
    root.mkdir()
    links = {
        "soft": link("set/soft.jpg", "cat/1.jpg"),
        "hard": link("set/hard.jpg", "set/cat/1.jpg", tarfile.LNKTYPE),
    }
    archives.unpack(archived(write_tar(root / "s.tar", {**MEMBERS, **links}), strip=1, gives=["cat"]), root)
    assert (root / "soft.jpg").read_bytes() == (root / "hard.jpg").read_bytes() == b"one"


def test_a_link_in_a_zip_is_refused(root: Path):
    root.mkdir()
    info = zipfile.ZipInfo("set/out")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(root / "s.zip", "w") as archive:
        archive.writestr(info, "../../secret")
    with pytest.raises(UserError, match=r"'set/out' is a link"):
        archives.unpack(archived("s.zip"), root)
    assert left(root) == ["s.zip"]


def test_an_archive_that_lacks_what_it_should_give_says_what_it_holds(archive: Path, root: Path):
    with pytest.raises(UserError, match=r"does not hold other, but README, set"):
        archives.unpack(archived(archive, gives=["set", "other"]), root)
    assert left(root) == [archive.name]


def test_a_full_disk_leaves_nothing_unpacked(root: Path):
    root.mkdir()
    archive = write_zip(root / "s.zip", {"set/big": bytes(1_000_000)})
    with full_disk(600_000), pytest.raises(UserError, match=r"cannot write below .*make room"):
        archives.unpack(archived(archive), root)
    assert left(root) == ["s.zip"]


def test_a_process_killed_while_unpacking_leaves_nothing_that_counts(root: Path):
    root.mkdir()
    archive = write_tar(root / "s.tar", {f"set/{i}": b"x" for i in range(300)})
    file = archived(archive)
    process = start(f"""
        import time
        below = archives._below
        archives._below = lambda name, strip: time.sleep(900 * (name == "set/200")) or below(name, strip)
        archives.unpack({file!r}, Path({str(root)!r}))
    """)
    wait_until(lambda: len(left(root)) > 100, lambda: running(process))
    process.kill()
    process.wait()
    assert disk.present(file, root) == "absent"
    archives.unpack(file, root)
    assert len(list((root / "set").iterdir())) == 300
    assert sorted(p.name for p in root.iterdir()) == ["s.tar", "set"]


@pytest.mark.parametrize("moved", [0, 1])
def test_a_process_killed_while_moving_into_place_is_taken_up(archive: Path, root: Path, moved):
    """Each folder is whole or absent; the next run moves the others, even without the archive."""
    file = archived(archive, strip=1, gives=["cat", "dog"])
    die_while_moving(file, root, moved)
    assert disk.present(file, root) == ["absent", "damaged: cat is there without dog"][moved]
    assert [p for p in left(root) if p.startswith("cat/")] == ["cat/1.jpg", "cat/2.jpg"] * moved
    archive.unlink()
    archives.unpack(file, root)
    assert left(root) == ["cat", "cat/1.jpg", "cat/2.jpg", "dog", "dog/3.jpg"]


def test_what_appears_meanwhile_is_not_mixed_with_what_is_moved(archive: Path, root: Path):
    file = archived(archive, strip=1, gives=["cat", "dog"])
    die_while_moving(file, root, 0)
    (root / "dog").mkdir()
    (root / "dog/mine.jpg").touch()
    with pytest.raises(UserError, match=r"root/dog is there already, and would be written over"):
        archives.unpack(file, root)
    assert left(root / "dog") == ["mine.jpg"]
    (root / "dog").rename(root / "mine")
    archives.unpack(file, root)
    assert left(root / "dog") == ["3.jpg"]


def test_what_is_there_is_taken_without_writing(archive: Path, root: Path, monkeypatch: pytest.MonkeyPatch):
    file, whole = archived(archive), FileConfig(path=archive.name, urls=["https://host/x"])
    archives.unpack(file, root)
    monkeypatch.setattr(disk, "writing", None)  # which all that writes must enter
    archives.unpack(file, root)
    assert fetched(file, root) == fetched(whole, root) == fetch.verify(whole, root)
    assert disk.required_bytes([file, whole], root) == 0
