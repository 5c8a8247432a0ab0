"""The routes of the OpenAI-compatible server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from nybble.errors import NybbleError
from nybble.runtime.generate import Runtime
from nybble.runtime.generate_report import Report
from nybble.runtime.sampling import Sampling
from nybble.runtime.server.answers import DONE, Answers, error_event
from nybble.runtime.server.errors import ApiError, failed, refused
from nybble.runtime.server.listener import json_body
from nybble.runtime.server.queue import Job, Line
from nybble.runtime.server.requests import ChatRequest, CompletionRequest, read
from nybble.runtime.text import Text

MOST_BYTES = 16 << 20  # of a request: a context of a million tokens is a third of that
_SSE = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

_Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Served:
    """What a server offers.

    Attributes:
        runtime: the model and its KV setting.
        text: its tokenizer.
        name: what clients call the model.
        sampling: for requests that do not say how to draw.
    """

    runtime: Runtime
    text: Text
    name: str
    sampling: Sampling = Sampling()


class Endpoints:
    """The routes, and the line of requests behind them."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._encoding = asyncio.Lock()  # a tokenizer takes one text at a time
        self.line = Line(served.runtime, served.text)

    def routes(self) -> list[Route]:
        """All of them."""
        return [
            Route("/health", self.health, methods=["GET"]),
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v1/models/{name:path}", self.models, methods=["GET"]),
            Route("/v1/chat/completions", _answered(self.chat), methods=["POST"]),
            Route("/v1/completions", _answered(self.completion), methods=["POST"]),
        ]

    async def health(self, request: Request) -> Response:
        """Whether it lives, what the cache is, and how many requests wait."""
        runtime = self._served.runtime
        return JSONResponse({
            "status": "ok", "model": self._served.name, "kv": str(runtime.kv),
            "kernel": runtime.kernel, "context": runtime.context, "waiting": self.line.waiting,
        })  # fmt: skip

    async def models(self, request: Request) -> Response:
        """The one model."""
        name = request.path_params.get("name")
        model = {"id": self._served.name, "object": "model", "created": 0, "owned_by": "nybble",
                 "max_model_len": self._served.runtime.context}  # fmt: skip
        if name is None:
            return JSONResponse({"object": "list", "data": [model]})
        if name != self._served.name:
            return error_response(self._unknown(name))
        return JSONResponse(model)

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        asked = read(ChatRequest, await json_body(request, MOST_BYTES, ApiError))
        self._check_model(asked.model)
        messages = asked.conversation()
        text = self._served.text
        ids = await self._encoded(lambda: text.chat(messages))
        return await self._reply(request, asked, ids, Answers("chat", self._served.name))

    async def completion(self, request: Request) -> Response:
        """POST /v1/completions."""
        asked = read(CompletionRequest, await json_body(request, MOST_BYTES, ApiError))
        self._check_model(asked.model)
        given, text = asked.given(), self._served.text
        if not given:
            raise ApiError(400, "the prompt is empty", param="prompt")
        ids = given if isinstance(given, list) else await self._encoded(lambda: text.prompt(given))
        return await self._reply(request, asked, ids, Answers("text", self._served.name))

    def _unknown(self, name: str) -> ApiError:
        return ApiError(404, f"this server has no model {name[:80]!r}, only {self._served.name!r}",
                        "model_not_found", "model")  # fmt: skip

    def _check_model(self, name: str) -> None:
        if name != self._served.name:
            raise self._unknown(name)

    async def _encoded(self, encode: Callable[[], list[int]]) -> list[int]:
        async with self._encoding:
            try:
                return await asyncio.to_thread(encode)
            except NybbleError as error:
                raise refused(error) from error

    async def _reply(
        self, request: Request, asked: ChatRequest | CompletionRequest, ids: list[int],
        answers: Answers,
    ) -> Response:  # fmt: skip
        runtime = self._served.runtime
        try:
            runtime.check(ids)
        except NybbleError as error:
            full = len(ids) >= runtime.context
            raise refused(error, "context_length_exceeded" if full else None) from error
        job = Job(ids, asked.new_tokens, asked.sampling(self._served.sampling), asked.stops)
        self.line.put(job)
        if asked.stream:
            return _Stream(job, _parts(job, answers, asked.usage_wanted))
        return await _whole(request, job, answers)


class _Stream(StreamingResponse):
    """Ends its job however the response ends, also before its first part."""

    def __init__(self, job: Job, parts: AsyncIterator[str]) -> None:
        self._job = job
        super().__init__(parts, media_type="text/event-stream", headers=_SSE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._job.cancel()


async def _parts(job: Job, answers: Answers, usage: bool) -> AsyncIterator[str]:
    if first := answers.first():
        yield first
    try:
        async for event in job.events():
            if isinstance(event, str):
                yield answers.part(event)
            else:
                yield answers.last(event)
                if usage:
                    yield answers.counted(event)
    except Exception as error:
        yield error_event(failed(error).body())
    yield DONE


async def _whole(request: Request, job: Job, answers: Answers) -> Response:
    async def gathered() -> tuple[str, Report]:
        text: list[str] = []
        async for event in job.events():
            if isinstance(event, Report):
                return "".join(text), event
            text.append(event)
        raise AssertionError("an answer ends with its report")

    answer, gone = asyncio.ensure_future(gathered()), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientDisconnect
        text, report = answer.result()
        return JSONResponse(answers.whole(text, report))
    finally:
        job.cancel()
        answer.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    """Wait until the client hangs up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _answered(handler: _Handler) -> _Handler:
    """Every error becomes an answer: what a client sends must not end in a log."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except ApiError as error:
            return error_response(error)
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it
        except Exception as error:
            return error_response(failed(error))

    return answer


def error_response(error: ApiError) -> Response:
    """An error as an answer."""
    return JSONResponse(error.body(), error.status)
