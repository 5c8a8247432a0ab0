"""The page's server: uvicorn on loopback, or beyond it behind a key."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress

import uvicorn

from nybble.rag.web.app import application
from nybble.rag.web.desk import Desk
from nybble.rag.web.turns import Turns
from nybble.runtime.server.listen import listen

_END_SECONDS = 3  # a connection may take when the server ends
_CONNECTIONS = 128  # at once; more are answered 503


class _Uvicorn(uvicorn.Server):
    """Tells when it listens, and ends answers before it waits for their connections."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None], turns: Turns) -> None:
        super().__init__(config)
        self._ready, self._turns = ready, turns

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._turns.close()
        await super().shutdown(sockets)


class PageServer:
    """Listens from the start; answers while it runs.

    Args:
        desk: what it answers from.
        host: address to listen on; another than loopback takes a key.
        port: to listen on; 0 for one that is free.
        key: that requests for data must carry.
        on_ready: told the address once requests are answered.

    Attributes:
        url: the address.
        turns: the questions that wait.

    Raises:
        NybbleError: the address cannot be used, or others can reach it and there is no key.
    """

    def __init__(
        self,
        desk: Desk,
        host: str = "127.0.0.1",
        port: int = 8090,
        key: str | None = None,
        on_ready: Callable[[str], None] = lambda url: None,
    ) -> None:
        self._listener = listen(host, port, key)
        host = host.strip("[]")
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._listener.getsockname()[1]}/"
        self.turns = Turns()
        config = uvicorn.Config(
            application(desk, self.turns, host, key), log_config=None, access_log=False, ws="none",
            lifespan="off", server_header=False, timeout_graceful_shutdown=_END_SECONDS,
            limit_concurrency=_CONNECTIONS,
        )  # fmt: skip
        self._server = _Uvicorn(config, lambda: on_ready(self.url), self.turns)

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
