"""The page's server: uvicorn on loopback, or beyond it behind a key."""

from __future__ import annotations

from collections.abc import Callable

from nybble.rag.web.app import application
from nybble.rag.web.desk import Desk
from nybble.rag.web.turns import Turns
from nybble.runtime.server.listener import Listener

_CONNECTIONS = 128  # at once; more are answered 503


class PageServer(Listener):
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
        self.turns = Turns()
        super().__init__(
            lambda at, shown: application(desk, self.turns, at, shown), self.turns, host, port, key,
            on_ready, limit_concurrency=_CONNECTIONS,
        )  # fmt: skip
        self.url += "/"
