"""uvicorn on a socket that listens from the start: what nybble's HTTP servers have in common."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

import uvicorn
from starlette.requests import Request

from nybble.runtime.server.listen import listen

_END_SECONDS = 3  # a connection may take when the server ends


class Waiting(Protocol):
    """The requests that wait."""

    def close(self) -> None:
        """End them, and those at work."""


class _Uvicorn(uvicorn.Server):
    """Tells when it listens, and ends answers before it waits for their connections."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None], waiting: Waiting) -> None:
        super().__init__(config)
        self._ready, self._waiting = ready, waiting

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._waiting.close()
        await super().shutdown(sockets)


class Listener:
    """Listens from the start; answers while it runs.

    Args:
        application: makes the ASGI application for a host and a key.
        waiting: closed when the server ends.
        host: address to listen on; another than loopback takes a key.
        port: to listen on; 0 for one that is free.
        key: that clients must show.
        on_ready: told the address once requests are answered.
        options: further ones of uvicorn.

    Attributes:
        url: the address.

    Raises:
        NybbleError: the address cannot be used, or others can reach it and there is no key.
    """

    def __init__(
        self,
        application: Callable[[str, str | None], Any],
        waiting: Waiting,
        host: str,
        port: int,
        key: str | None,
        on_ready: Callable[[str], None],
        **options: Any,
    ) -> None:
        self._listener = listen(host, port, key)
        host = host.strip("[]")
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._listener.getsockname()[1]}"
        config = uvicorn.Config(
            application(host, key), log_config=None, access_log=False, ws="none", lifespan="off",
            server_header=False, timeout_graceful_shutdown=_END_SECONDS, **options,
        )  # fmt: skip
        self._server = _Uvicorn(config, lambda: on_ready(self.url), waiting)

    def run(self) -> None:
        """Answer until `stop`, SIGINT or SIGTERM; a signal is raised again at the end."""
        try:
            self._server.run(sockets=[self._listener])
        finally:
            with suppress(OSError):
                self._listener.close()

    def stop(self) -> None:
        """End it, from any thread; answers that are not done end where they are."""
        self._server.should_exit = True


async def json_body(request: Request, most: int, refuse: Callable[[int, str], Exception]) -> bytes:
    """A request's body, of a kind that no page of a stranger can post unasked.

    Args:
        request: as it comes.
        most: bytes of a body.
        refuse: makes the error from a status and words.

    Raises:
        Exception: what `refuse` makes, for another kind of body or a longer one.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise refuse(415, "the body must be JSON: Content-Type: application/json")
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise refuse(413, f"the request is longer than {most:,} bytes")
        parts.append(part)
    return b"".join(parts)
