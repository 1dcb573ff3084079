"""A real HTTP server on 127.0.0.1 that misbehaves on demand."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # acquisition_miniature, shared by the tests of this folder


@dataclass
class Page:
    """What the server gives under one path."""

    content: bytes = b""
    etag: str = '"one"'
    last_modified: str = ""
    ranges: bool = True
    heeds_if_range: bool = True
    shift: int = 0
    cuts: list[int | None] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = "application/octet-stream"
    coding: str = ""
    length: bool = True
    drip: tuple[int, float] | None = None
    requests: list[dict[str, str]] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    shelf: Shelf

    def do_GET(self) -> None:
        page = self.shelf.pages.get(self.path)
        if page is None:
            self._answer(404, b"no such file", "text/plain")
            return
        page.requests.append({key.lower(): value for key, value in self.headers.items()})
        if page.statuses:
            self._answer(page.statuses.pop(0), b"", "text/plain", page.headers)
            return
        self._send(page)

    def _send(self, page: Page) -> None:
        wanted = self.headers.get("Range", "")
        validators = {page.etag, page.last_modified, ""}
        current = not page.heeds_if_range or self.headers.get("If-Range", "") in validators
        start = int(wanted[6:].rstrip("-")) if wanted and page.ranges and current else 0
        total = len(page.content)
        if wanted and page.ranges and current and start >= total:
            self._answer(416, b"", "text/plain", {"Content-Range": f"bytes */{total}"})
            return
        partial = bool(start)
        start -= page.shift if partial else 0
        self.send_response(206 if partial else 200)
        self.send_header("Content-Type", page.content_type)
        facts = {"ETag": page.etag, "Last-Modified": page.last_modified, "Content-Encoding": page.coding}
        for name, value in facts.items():
            if value:
                self.send_header(name, value)
        if partial:
            self.send_header("Content-Range", f"bytes {start}-{total - page.shift - 1}/{total}")
        if page.length:
            self.send_header("Content-Length", str(total - start - (page.shift if partial else 0)))
        else:
            self.send_header("Connection", "close")
        self.end_headers()
        body = page.content[start : total - page.shift if partial else None]
        cut = page.cuts.pop(0) if page.cuts else None
        self._write(body if cut is None else body[:cut], page.drip)
        if cut is not None or not page.length:
            self.close_connection = True

    def _write(self, body: bytes, drip: tuple[int, float] | None) -> None:
        step = drip[0] if drip else max(len(body), 1)
        try:
            for place in range(0, len(body), step):
                self.wfile.write(body[place : place + step])
                self.wfile.flush()
                if drip:
                    time.sleep(drip[1])
        except OSError:
            self.close_connection = True

    def _answer(self, status: int, body: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Shelf:
    """The pages of a running server."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.pages: dict[str, Page] = {}

    def put(self, path: str, content: bytes = b"", **options: object) -> Page:
        self.pages[path] = Page(content, **options)  # type: ignore[arg-type]
        return self.pages[path]

    def url(self, path: str) -> str:
        return self.address + path


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    handler = type("BoundHandler", (Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None
    handler.shelf = Shelf(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield handler.shelf
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
