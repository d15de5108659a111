"""A web server on this machine that serves a folder, and misbehaves on request."""

import os
import threading
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple, Self
from unittest import mock
from urllib.parse import unquote, urlsplit


@dataclass
class Drop:
    """Send `after` bytes of each answer and close the connection, the first `times` times."""

    after: int
    times: int = 1_000_000


@dataclass
class Status:
    """Answer with this status, the first `times` times, and ask to come again after so many seconds."""

    code: int
    times: int = 1_000_000
    retry_after: int | None = None


@dataclass
class NoRange:
    """Send the whole file, whatever the request says."""


@dataclass
class NoIfRange:
    """Send the range that was asked for, even of a file that has changed."""


@dataclass
class NoValidator:
    """Give neither ETag nor Last-Modified."""


@dataclass
class Instead:
    """Send this body and content type, as for a file of that content."""

    body: bytes
    type: str = "application/octet-stream"


@dataclass
class Length:
    """Tell this length, or none, whatever is sent."""

    told: int | None


@dataclass
class Hold:
    """Send `after` bytes, and the others when `go_on` is set, or never if that is at the server's end."""

    after: int
    go_on: threading.Event = field(default_factory=threading.Event)


Fault = Drop | Status | NoRange | NoIfRange | NoValidator | Instead | Length | Hold

PAGE = Instead(b"<!DOCTYPE html>\n<html><body>Google Drive - Virus scan warning</body></html>", "text/html")


class Request(NamedTuple):
    """One request as it came, and the status of its answer."""

    name: str
    headers: dict[str, str]
    status: int


class Server:
    """Serves the files of a folder by name, with Range, ETag and Last-Modified.

    with Server(folder) as server:
        server.faults["name"] = Drop(after=1000, times=1)
        server.url("name")
        server.requests  # what came, in order
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults: dict[str, Fault] = {}
        self.requests: list[Request] = []
        self._ended = threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        # Machines behind a proxy reach this one directly.
        self._direct = mock.patch.dict(os.environ, NO_PROXY="127.0.0.1", no_proxy="127.0.0.1")

    def __enter__(self) -> Self:
        self._direct.start()
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._http.shutdown()
        self._http.server_close()
        self._direct.stop()

    def url(self, name: str) -> str:
        """The address of a file of the folder, whether it is there or not."""
        return f"http://127.0.0.1:{self._http.server_port}/{name}"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server._answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler

    def _answer(self, http: BaseHTTPRequestHandler) -> None:
        name = unquote(urlsplit(http.path).path).lstrip("/")
        fault, path = self.faults.get(name), self.folder / name
        status, body, start = 200, b"", 0
        if isinstance(fault, Drop | Status):
            fault.times -= 1
            fault = fault if fault.times >= 0 else None
        headers = {"Content-Type": fault.type if isinstance(fault, Instead) else "application/octet-stream"}
        if isinstance(fault, Status):
            status = fault.code
            if fault.retry_after is not None:
                headers["Retry-After"] = str(fault.retry_after)
        elif isinstance(fault, Instead):
            body = fault.body
        elif path.is_file():
            body = path.read_bytes()
        else:
            status = 404
        if status == 200 and not isinstance(fault, NoValidator | Instead):
            modified = path.stat().st_mtime_ns
            headers["ETag"] = f'"{modified:x}-{len(body):x}"'
            headers["Last-Modified"] = formatdate(modified / 1e9, usegmt=True)
        asked = http.headers.get("Range")
        valid = (None, headers.get("ETag"), headers.get("Last-Modified"))
        current = http.headers.get("If-Range") in valid or isinstance(fault, NoIfRange)
        if status == 200 and asked and current and not isinstance(fault, NoRange):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            status = 206 if start < len(body) else 416
            end = f"{start}-{len(body) - 1}" if status == 206 else "*"
            headers["Content-Range"] = f"bytes {end}/{len(body)}"
            body = body[start:]
        self.requests.append(Request(name, dict(http.headers), status))
        http.send_response(status)
        length = fault.told if isinstance(fault, Length) else len(body)
        if length is not None:
            headers["Content-Length"] = str(length)
        for key, value in headers.items():
            http.send_header(key, value)
        http.end_headers()
        if isinstance(fault, Drop):
            body = body[: fault.after]
        first = fault.after if isinstance(fault, Hold) else len(body)
        try:
            http.wfile.write(body[:first])
            if isinstance(fault, Hold):
                while not (fault.go_on.wait(0.02) or self._ended.is_set()):
                    pass
            if not self._ended.is_set():
                http.wfile.write(body[first:])
        except OSError:  # the other side has gone, as it may
            pass
        http.close_connection = True
