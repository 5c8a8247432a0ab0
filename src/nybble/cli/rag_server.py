"""llama.cpp's server for one command of `nybble rag`: started, and ended with it."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nybble.rag.answers import Server
    from nybble.serving.serve import Server as Engine


@contextmanager
def started(
    model: str, kv: str, context: int | None, slots: Path | None, tell: Callable[[str], None]
) -> Iterator[Server]:
    """A server on a port of loopback, behind a key that only this process knows.

    Args:
        model: a GGUF.
        kv: KV setting, or "auto".
        context: tokens; None for what the plan says that fits here.
        slots: folder for prefixes; None for none.
        tell: called with what happens.

    Raises:
        NybbleError: see serving.serve.serve.
    """
    from nybble.rag.answers import Server

    key = secrets.token_hex(16)
    with prepared(model, kv, context, slots, key, tell) as server:
        made = server.deployed.deployment
        server.start()
        yield Server(server.url, made.name or "", key, slots, Path(made.model), str(made.setting))


def prepared(
    model: str, kv: str, context: int | None, slots: Path | None, key: str,
    tell: Callable[[str], None],
) -> Engine:  # fmt: skip
    """The same server, not started yet, with a key of the caller's.

    Raises:
        NybbleError: see serving.serve.serve.
    """
    from nybble.formats.setting import parse
    from nybble.planning.request import CardChoice
    from nybble.serving.deploy import DeployRequest
    from nybble.serving.serve import ServeRequest, serve

    asked = DeployRequest(
        model, engine="llama.cpp", setting=None if kv == "auto" else parse(kv), context=context,
        cards=CardChoice(here=True), port=_free_port(), keyed=True,
    )  # fmt: skip
    server = serve(ServeRequest(asked, slots=slots, key=key), tell)
    for note in server.notes:
        tell(f"note: {note}")
    made = server.deployed.deployment
    tell(f"loading {Path(made.model).name}: KV {made.setting}, {made.context:,} tokens")
    return server


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
