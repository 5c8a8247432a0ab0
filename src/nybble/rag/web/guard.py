"""What the page's server sends with every answer, and whose requests it refuses.

Documents and models are strangers' data: the page may load nothing but its own files, run no
other script, and turn no text into HTML (`require-trusted-types-for`), whatever they hold.
"""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "object-src 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_SENT = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_SAFE = ("GET", "HEAD")


class Headed:
    """An application whose answers carry the policy, and which obeys its own page only.

    Args:
        app: the application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 403 to what another site's page sends."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def headed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_SENT)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        if scope["method"] not in _SAFE and foreign(Headers(scope=scope), scope["scheme"]):
            what = {"what": "refused: this comes from a page of another site"}
            await JSONResponse({"error": what}, 403)(scope, receive, headed)
            return
        await self._app(scope, receive, headed)


def foreign(headers: Headers, scheme: str) -> bool:
    """Whether a request says that another site's page sent it; programs say nothing of the kind.

    Args:
        headers: of the request.
        scheme: that it came by.
    """
    origin = headers.get("origin")
    if origin is not None and origin != f"{scheme}://{headers.get('host', '')}":
        return True
    return headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")
