"""Who may ask: an API key, or only this machine's own programs."""

from __future__ import annotations

import hmac
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from nybble.loopback import loopback
from nybble.runtime.server.errors import ApiError

_OPEN = ("/health",)  # for those who watch servers, which have no key


class Guarded:
    """An application behind a check of the key and of the name it was called by.

    Without a key it is for loopback, where a web page could reach it through a name of its own
    that it lets point here (DNS rebinding); so the name must be this machine's.

    Args:
        app: the application.
        host: address it listens on.
        key: what clients must show as `Authorization: Bearer KEY`; None for no check.
        open_paths: paths that are answered without the key.
    """

    def __init__(
        self, app: ASGIApp, host: str, key: str | None, open_paths: Collection[str] = _OPEN
    ) -> None:
        self._app, self._host, self._open = app, host, open_paths
        self._key = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401 or 403."""
        if scope["type"] == "http" and (error := self._wrong(scope)) is not None:
            head = {"WWW-Authenticate": "Bearer"} if error.status == 401 else None
            await JSONResponse(error.body(), error.status, head)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _wrong(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        if self._key is None:
            name = headers.get("host", "")
            ours = loopback(_without_port(name)) or _without_port(name) == self._host
            return None if ours else ApiError(403, f"not a name of this machine: {name[:80]!r}")
        if scope["path"] in self._open:
            return None
        kind, _, shown = headers.get("authorization", "").partition(" ")
        # Compared in the same time whatever is shown.
        right = hmac.compare_digest(shown.strip().encode("latin-1", "replace"), self._key)
        if kind.lower() == "bearer" and right:
            return None
        return ApiError(401, "the API key is missing or wrong", "invalid_api_key")


def _without_port(name: str) -> str:
    head, mark, port = name.rpartition(":")
    return head if mark and port.isdigit() else name
