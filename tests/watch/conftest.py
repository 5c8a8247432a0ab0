"""A web server on this machine that answers as told, and an engine whose file is in a folder."""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from nybble.engines.known.base import Engine

Handler = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class Web:
    """A server: what it answers by path, and what it was asked."""

    port: int
    routes: dict[str, Handler] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def index_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/pypi/{{package}}/json"

    @property
    def releases_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/{{repository}}/releases.atom"

    def answer(self, path: str, body: bytes, status: int = 200, **headers: str) -> None:
        """Answer a path; `ETag` makes it answer 304 to those who have it."""

        def handler(request: BaseHTTPRequestHandler) -> None:
            tag = headers.get("ETag")
            known = tag is not None and request.headers.get("If-None-Match") == tag
            request.send_response(304 if known else status)
            for name, value in headers.items():
                request.send_header(name.replace("_", "-"), value)
            if not known:
                request.send_header("Content-Length", str(len(body)))
            request.end_headers()
            if not known:
                request.wfile.write(body)

        self.routes[path] = handler


@pytest.fixture
def web() -> Iterator[Web]:
    class Answering(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.asked.append((self.path, dict(self.headers)))
            handler = found.routes.get(self.path)
            if handler is None:
                self.send_error(404)
                return
            try:
                handler(self)
            except OSError:
                pass  # it hung up

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    server.daemon_threads = True
    found = Web(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield found
    found.stop.set()
    server.shutdown()
    server.server_close()


SOURCE = '''"""An engine – for tests."""
from nybble.engines.known.base import Engine, KVChoice, Trap


class Made(Engine):
    """Made up."""

    name = "made"
    version = "VERSION"
    read_on = "2026-11-01"
    packages = ("made", "made-client")
    repository = "o/made"
    flags = "--kv TYPE"
    choices = (
        KVChoice("auto", "f16/f16", "made.py"),
        KVChoice("nvfp4", "nvfp4/nvfp4", "made.py; PR #59001"),
        KVChoice("int4_per_token_head", None, "made.py"),
    )
    traps = (
        Trap("slow path", "nvfp4 is slow", "o/made#47684"),
        Trap("garbage", "another project's", "other/thing#59001"),
    )

    def launch(self, asked):
        raise NotImplementedError
'''


@pytest.fixture
def make_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Engine]:
    def make(version: str = "0.33.0", source: str = SOURCE) -> Engine:
        path = tmp_path / "made.py"
        path.write_text(source.replace("VERSION", version), encoding="utf-8")
        spec = importlib.util.spec_from_file_location("nybble_made.made", path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "nybble_made.made", module)
        spec.loader.exec_module(module)
        made: Engine = module.Made()
        return made

    return make
