"""An OpenAI-compatible server for one model in one KV setting.

transformers' own server (cli/serving) was read first. It renders templates and decodes through
transformers' tokenizer, which a GGUF does not have exactly, and it answers a missing field with
500, ignores what it does not do, and goes on for a client that is gone; so this is a small one.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from nybble.runtime.server.endpoints import Endpoints, Served, error_response
from nybble.runtime.server.errors import ApiError
from nybble.runtime.server.guard import Guarded
from nybble.runtime.server.listen import listen
from nybble.runtime.server.queue import Line

_END_SECONDS = 3  # a connection may take when the server ends


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = {404: f"there is no {request.url.path[:80]} here", 405: "another method is needed"}
    return error_response(ApiError(error.status_code, text.get(error.status_code, error.detail)))


def application(endpoints: Endpoints, host: str, key: str | None) -> Guarded:
    """The ASGI application.

    Args:
        endpoints: what it answers with.
        host: address it listens on.
        key: API key that clients must show, or None.
    """
    app = Starlette(routes=endpoints.routes(), exception_handlers={HTTPException: _http_error})
    return Guarded(app, host, key)


class _Uvicorn(uvicorn.Server):
    """Tells when it listens, and ends answers before it waits for their connections."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None], line: Line) -> None:
        super().__init__(config)
        self._ready, self._line = ready, line

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._line.close()
        await super().shutdown(sockets)


class Server:
    """Listens from the start; answers while it runs.

    Args:
        served: what to offer.
        host: address to listen on; another than loopback takes a key.
        port: to listen on; 0 for one that is free.
        key: API key that clients must show.
        on_ready: told the address once requests are answered.

    Attributes:
        url: the address.
        line: the requests that wait.

    Raises:
        NybbleError: the address cannot be used, or others can reach it and there is no key.
    """

    def __init__(
        self,
        served: Served,
        host: str = "127.0.0.1",
        port: int = 8000,
        key: str | None = None,
        on_ready: Callable[[str], None] = lambda url: None,
    ) -> None:
        self._listener = listen(host, port, key)
        host = host.strip("[]")
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._listener.getsockname()[1]}"
        endpoints = Endpoints(served)
        self.line = endpoints.line
        config = uvicorn.Config(
            application(endpoints, host, key), log_config=None, access_log=False, ws="none",
            lifespan="off", server_header=False, timeout_graceful_shutdown=_END_SECONDS,
        )  # fmt: skip
        self._server = _Uvicorn(config, lambda: on_ready(self.url), self.line)

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
