"""The page's application: its files, and the questions that its scripts ask."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.resources import files
from typing import TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from nybble.errors import NybbleError
from nybble.rag.web.asked import BadRequest, asked, number, read_object
from nybble.rag.web.desk import Desk, told
from nybble.rag.web.guard import Headed
from nybble.rag.web.turns import Event, HungUp, Turn, Turns
from nybble.runtime.server.guard import Guarded
from nybble.runtime.server.listener import json_body

MOST_BYTES = 64 << 10  # of a request: a question is at most 8,000 characters
PAUSE = 5.0  # seconds of silence after which a stream says that it lives
_READERS = 4
_ALIVE = ": still here\n\n"
_FOLDER = files("nybble.rag.web") / "page"
_KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
PAGE = ("index.html", "page.css", "page.js", "answer.js", "source.js", "over.js", "side.js",
        "api.js", "dom.js", "icon.svg")  # fmt: skip

T = TypeVar("T")
_Handler = Callable[[Request], Awaitable[Response]]


def application(desk: Desk, turns: Turns, host: str, key: str | None) -> ASGIApp:
    """The ASGI application.

    Args:
        desk: what it answers from.
        turns: the line that questions wait in.
        host: address it listens on.
        key: that requests for data must carry; the page's files are open, as they hold none and
            ask for it.
    """
    api = _Api(desk, turns)
    routes = [
        Route("/", partial(_file, "index.html"), methods=["GET"]),
        *(Route(f"/{name}", partial(_file, name), methods=["GET"]) for name in PAGE[1:]),
        Route("/health", _health, methods=["GET"]),
        Route("/api/state", _answered(api.state), methods=["GET"]),
        Route("/api/documents", _answered(api.documents), methods=["GET"]),
        Route("/api/source", _answered(api.source), methods=["GET"]),
        Route("/api/ask", _answered(api.ask), methods=["POST"]),
        Route("/api/index", _answered(api.index_again), methods=["POST"]),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _http_error})
    open_paths = ("/health", "/", *(f"/{name}" for name in PAGE[1:]))
    return Headed(Guarded(app, host, key, open_paths))


class _Api:
    def __init__(self, desk: Desk, turns: Turns) -> None:
        self._desk, self._turns = desk, turns
        # Threads that stay: an index keeps a connection for each that ever read it.
        self._threads = ThreadPoolExecutor(_READERS, thread_name_prefix="nybble-page")

    async def _read(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def state(self, request: Request) -> Response:
        found = await self._read(self._desk.state)
        return JSONResponse({**found, "waiting": self._turns.waiting})

    async def documents(self, request: Request) -> Response:
        query = request.query_params
        find, start = query.get("find", "")[:200], number(query, "start", 0)
        listed = partial(self._desk.documents, find, start or 0)
        return JSONResponse(await self._read(listed))

    async def source(self, request: Request) -> Response:
        query = request.query_params
        start, end = number(query, "start", None), number(query, "end", None)
        read = partial(self._desk.source, query.get("document", ""), start, end)
        return JSONResponse(await self._read(read))

    async def ask(self, request: Request) -> Response:
        question = asked(read_object(await json_body(request, MOST_BYTES, BadRequest)))
        turn = self._turns.put(partial(_work, partial(self._desk.ask, question)))
        return _Stream(turn, _parts(turn))

    async def index_again(self, request: Request) -> Response:
        read_object(await json_body(request, MOST_BYTES, BadRequest))
        await self._read(self._desk.index_again)
        return JSONResponse({"started": True}, 202)


class _Stream(StreamingResponse):
    """Ends its turn however the response ends, also before its first part."""

    def __init__(self, turn: Turn, parts: AsyncIterator[str]) -> None:
        self._turn = turn
        head = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(parts, media_type="text/event-stream", headers=head)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._turn.hang_up()


async def _parts(turn: Turn) -> AsyncIterator[str]:
    async for event in turn.events(PAUSE):
        yield _ALIVE if event is None else f"data: {json.dumps(event)}\n\n"


def _work(ask: Callable[[Turn], None], turn: Turn) -> None:
    """Answer a question; whatever fails is told to the asker, and the next one is answered."""
    try:
        ask(turn)
    except HungUp:
        raise
    except NybbleError as error:
        turn.tell({"kind": "error", "error": told(error)})
    except Exception as error:
        turn.tell(_unexpected(error))


def _unexpected(error: Exception) -> Event:
    what = f"this failed in a way that it must not: {type(error).__name__}"
    return {"kind": "error", "error": {"what": what, "seen": str(error)[:500]}}


async def _file(name: str, request: Request) -> Response:
    kind = _KINDS[name.rpartition(".")[2]]
    content = (_FOLDER / name).read_bytes()
    # A page of yesterday's version beside today's server is worse than one more request.
    return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})


async def _health(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = {404: f"there is no {request.url.path[:80]} here", 405: "another method is needed"}
    what = text.get(error.status_code, error.detail)
    return JSONResponse({"error": {"what": what}}, error.status_code)


def _answered(handler: _Handler) -> _Handler:
    """Every error becomes an answer: what a client sends must not end in a log."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except BadRequest as error:
            return JSONResponse({"error": told(error)}, error.status)
        except NybbleError as error:
            return JSONResponse({"error": told(error)}, 409)
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it
        except Exception as error:
            return JSONResponse(_unexpected(error), 500)

    return answer
