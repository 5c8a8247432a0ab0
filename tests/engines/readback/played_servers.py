"""Servers that play recorded answers, over loopback and without a socket."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from nybble.engines.readback.base import Http

RECORDED = Path(__file__).parent / "recorded"
CASES = sorted(path for path in RECORDED.glob("*/*") if path.is_dir())


def answers(case: Path) -> dict[str, bytes]:
    """Bodies of a case by path."""
    found = {}
    for path in case.iterdir():
        if path.name != "log.txt":
            name = "" if path.stem == "_root" else path.stem
            found["/" + _PATHS.get(name, name.replace("_", "/", 1))] = path.read_bytes()
    return found


# Paths with an underscore of their own, or two slashes.
_PATHS = {
    "server_info": "server_info",
    "distserve_engine_info": "distserve/engine_info",
    "v1_models_nybble_none": "v1/models/nybble/none",
}


def log(case: Path) -> str | None:
    """The log of a case."""
    path = case / "log.txt"
    return path.read_text(encoding="utf-8") if path.is_file() else None


class Played(Http):
    """The answers without a socket, for many of them."""

    def __init__(self, bodies: Mapping[str, bytes] | Callable[[str], bytes | None]) -> None:
        self.base, self.refused, self.asked = "http://played", set[int](), list[str]()
        self._bodies = bodies.get if isinstance(bodies, Mapping) else bodies

    def close(self) -> None:
        pass

    def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> str | None:
        self.asked.append(f"{method} {path}")
        found = self._bodies(path) if method == "GET" else None
        return None if found is None else found.decode("utf-8", "replace")


@contextmanager
def playing(
    bodies: Mapping[str, bytes] | Callable[[str], bytes | None], key: str | None = None
) -> Iterator[str]:
    """A server on loopback with these answers to GET; anything else is a 404, None a broken line.

    Args:
        bodies: by path, or what gives one.
        key: that paths below /v1 demand.
    """
    find = (lambda path: bodies.get(path, b"404")) if isinstance(bodies, Mapping) else bodies

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            told = find(self.path)
            if told is None:
                self.wfile.write(b"HTTP/1.1 200")
                return
            refused = self.path.startswith("/v1") and key is not None and (
                self.headers.get("Authorization") != f"Bearer {key}"
            )  # fmt: skip
            self.send_response(401 if refused else 404 if told == b"404" else 200)
            self.end_headers()
            try:
                self.wfile.write(told)
            except OSError:
                pass  # the reader has read enough

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def name(case: Path) -> str:
    """ENGINE/CASE."""
    return f"{case.parent.name}/{case.name}"
