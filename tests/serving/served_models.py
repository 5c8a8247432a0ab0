"""Servers of `nybble serve` while a block runs."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nybble.formats.setting import parse
from nybble.serving.deploy import DeployRequest
from nybble.serving.serve import Server, ServeRequest, serve


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def served(
    model: Path, kv: str = "q4_0/q4_0", *, users: int = 2, context: int = 1024,
    slots: Path | None = None, events: list[str] | None = None, **more: Any,
) -> Iterator[Server]:  # fmt: skip
    """A server that is kept alive while the block runs."""
    asked = DeployRequest(str(model), setting=parse(kv), users=users, context=context,
                          port=free_port(), **more)  # fmt: skip
    said = events if events is not None else []
    server = serve(ServeRequest(asked, slots=slots, key="k" if asked.keyed else None), said.append)
    with server:
        server.start()
        keeper = threading.Thread(target=server.keep, daemon=True)
        keeper.start()
        yield server
    keeper.join(30)
