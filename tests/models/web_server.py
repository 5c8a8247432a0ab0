"""A web server on loopback that serves files by ranges, or does what a test tells it to."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from nybble.errors import ModelFileError
from nybble.models.http_connection import Limits
from nybble.models.remote import remote_gguf

QUICK = Limits(connect=3, read=0.5, total=10, attempts=3, backoff=0.01, redirects=3)

# What a test puts in place of an answer: it gets the handler and how often this path was asked
# for before. It returns True when it answered; else the file is served.
Rule = Callable[["Handler", int], bool]


@dataclass
class Asked:
    path: str
    headers: dict[str, str]
    connection: int  # a number for each connection

    @property
    def range(self) -> tuple[int, int] | None:
        """First and last byte asked for."""
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        return (int(match[1]), int(match[2])) if match else None


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    files: dict[str, bytes]

    def handle_error(self, *_: Any) -> None:
        pass  # a client that hangs up is what is tested


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65_536):
            sink.sendall(data)
    except OSError:
        pass


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server
    web: Web

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        web = self.web
        asked = Asked(self.path, dict(self.headers.items()), hash(self.client_address))
        with web.lock:
            before = sum(a.path == self.path for a in web.asked)
            web.asked.append(asked)
        rule = web.rules.get(self.path)
        if rule is not None and rule(self, before):
            return
        data = web.files.get(self.path.partition("?")[0])
        if data is None:
            self.answer(404, b"not here")
        elif asked.range is None:
            self.answer(200, data)
        else:
            first, last = asked.range
            if first >= len(data):
                self.answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                return
            part = data[first : last + 1]
            where = f"bytes {first}-{first + len(part) - 1}/{len(data)}"
            self.answer(206, part, {"Content-Range": where, "ETag": web.tag})

    def do_CONNECT(self) -> None:
        """Be a proxy: pass on bytes in both directions."""
        self.web.asked.append(Asked(self.path, dict(self.headers.items()), 0))
        host, _, port = self.path.rpartition(":")
        with socket.create_connection((host, int(port)), 2) as far:
            self.answer(200)
            threading.Thread(target=_pump, args=(far, self.connection), daemon=True).start()
            _pump(self.connection, far)
        self.close_connection = True

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        """Send a status, headers (None as value leaves one out) and a body."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def hang(self) -> None:
        """Send nothing more until the test is over."""
        self.wfile.flush()
        self.web.over.wait(10)
        self.close_connection = True


@dataclass
class Web:
    """One server: the files it has, the rules it breaks, the requests it got."""

    files: dict[str, bytes] = field(default_factory=dict)
    rules: dict[str, Rule] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    tag: str = '"one"'
    context: Any = None  # an SSLContext makes it https
    host: str = "127.0.0.1"
    lock: Any = field(default_factory=threading.Lock)
    over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Web:
        handler = type("Bound", (Handler,), {"web": self})
        self.server = Server((self.host, 0), handler)
        if self.context is not None:
            self.server.socket = self.context.wrap_socket(self.server.socket, server_side=True)
        # 20 ms: how long shutdown() waits.
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.server.shutdown()
        self.server.server_close()

    @property
    def port(self) -> int:
        return int(self.server.server_address[1])

    def url(self, path: str = "/model.gguf", host: str | None = None) -> str:
        scheme = "http" if self.context is None else "https"
        return f"{scheme}://{host or self.host}:{self.port}{path}"

    @property
    def paths(self) -> list[str]:
        return [a.path for a in self.asked]

    def redirect(self, path: str, to: str, status: int = 302) -> None:
        """Answer `path` with a redirect."""

        def rule(handler: Handler, _: int) -> bool:
            handler.answer(status, b"moved", {"Location": to})
            return True

        self.rules[path] = rule


def refused(model: str, *words: str, limits: Limits = QUICK,
            read: Callable[[str, Limits], object] = remote_gguf) -> ModelFileError:  # fmt: skip
    """The error, which must come in time, name the next step and hold every word."""
    start = time.monotonic()
    with pytest.raises(ModelFileError) as caught:
        read(model, limits)
    assert time.monotonic() - start < limits.total + 1
    # Every error names the value and the next step, and no control character gets through.
    shown = str(caught.value)
    assert caught.value.hint and caught.value.seen
    assert all(line.isprintable() for line in shown.splitlines())
    for word in words:
        assert word in shown
    return caught.value


def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away the variables that steer downloads."""
    for name in ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "http_proxy", "https_proxy",
                 "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
