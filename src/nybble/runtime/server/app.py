"""An OpenAI-compatible server for one model in one KV setting.

transformers' own server (cli/serving) was read first. It renders templates and decodes through
transformers' tokenizer, which a GGUF does not have exactly, and it answers a missing field with
500, ignores what it does not do, and goes on for a client that is gone; so this is a small one.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from nybble.runtime.server.endpoints import Endpoints, Served, error_response
from nybble.runtime.server.errors import ApiError
from nybble.runtime.server.guard import Guarded
from nybble.runtime.server.listener import Listener


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


class Server(Listener):
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
        endpoints = Endpoints(served)
        self.line = endpoints.line
        super().__init__(
            lambda at, shown: application(endpoints, at, shown),
            self.line,
            host,
            port,
            key,
            on_ready,
        )
