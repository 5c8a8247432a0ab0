"""One request to an OpenAI-compatible server, through the official client, with every time taken.

The client's own retries are off: a refused request is a result here, not a nuisance. Its
exceptions are sorted into a few words; the server's or the system's own text is kept beside them.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import time
from dataclasses import dataclass
from typing import Any

from nybble.errors import MissingExtraError
from nybble.results.loads import LoadRequest

INSTALL = 'pip install -c constraints.txt -e ".[bench]"'
REFUSED, TIMEOUT, CUT, LOST = "refused", "time-out", "cut off", "connection lost"
SERVER, MALFORMED, EMPTY = "server error", "malformed", "empty"
_LONGEST = 200  # characters of a server's text that a record keeps
_PIECES = ("content", "reasoning_content", "reasoning", "tool_calls", "refusal")


def openai() -> Any:
    """The official client's module.

    Raises:
        MissingExtraError: it is not installed.
    """
    if importlib.util.find_spec("openai") is None:
        raise MissingExtraError(
            "a load test drives the server with the official OpenAI client, which is not installed",
            seen="missing: openai",
            allowed="openai of this environment",
            hint=INSTALL,
        )
    return importlib.import_module("openai")


@dataclass(frozen=True)
class Dialect:
    """What of the usual extensions this server takes; `prepare.py` finds out.

    Attributes:
        ignore_eos: go on behind an end of the text. llama.cpp takes it (tried, xllamacpp
            2026.10.11549) and vLLM (ChatCompletionRequest of its openai/chat_completion/
            protocol.py at d5dba2d); servers that do not know it ignore or refuse it.
        usage: count tokens at the end of a stream (stream_options.include_usage).
    """

    ignore_eos: bool = True
    usage: bool = True

    def body(self, model: str, tokens_out: int) -> dict[str, Any]:
        """Arguments of the client, all but the prompt."""
        found: dict[str, Any] = {
            "model": model, "max_tokens": tokens_out, "stream": True, "temperature": 0.0,
        }  # fmt: skip
        if self.usage:
            found["stream_options"] = {"include_usage": True}
        if self.ignore_eos:
            found["extra_body"] = {"ignore_eos": True}
        return found


@dataclass(frozen=True)
class Ask:
    """A request to be sent.

    Attributes:
        index: its number.
        block: its part of the run.
        prompt: its text.
        tokens_in: prompt tokens that the text was made for.
        tokens_out: tokens to answer with.
        due: seconds since the block began at which it was to be sent.
    """

    index: int
    block: int
    prompt: str
    tokens_in: int
    tokens_out: int
    due: float


class _Seen:
    """What came of a stream so far."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.last = 0.0
        self.finished = False
        self.tokens_in: int | None = None
        self.tokens_out: int | None = None
        self.cached: int | None = None

    def take(self, chunk: Any, now: float) -> None:
        """One event."""
        self.last = now
        usage = getattr(chunk, "usage", None)
        if usage is not None:
            self.tokens_in, self.tokens_out = usage.prompt_tokens, usage.completion_tokens
            details = getattr(usage, "prompt_tokens_details", None)
            self.cached = getattr(details, "cached_tokens", None)
        if getattr(chunk, "object", None) == "error":  # sent as a chunk by some servers
            raise _ServerSaid(str(getattr(chunk, "message", "")))
        for choice in getattr(chunk, "choices", None) or ():
            self.finished = self.finished or choice.finish_reason is not None
            if _has_text(choice):
                self.times.append(now)


class _ServerSaid(Exception):
    """An error that came as an event of the stream."""


def _has_text(choice: Any) -> bool:
    delta = getattr(choice, "delta", None)
    if delta is None:
        return bool(getattr(choice, "text", None))
    return any(getattr(delta, name, None) for name in _PIECES)


async def ask(
    client: Any, api: str, model: str, dialect: Dialect, wanted: Ask, began: float, timeout: float
) -> LoadRequest:
    """Send one request, read its stream to the end, and say how it went. Never raises but to stop.

    Args:
        client: an AsyncOpenAI.
        api: "chat" or "completions".
        model: name.
        dialect: of the server.
        wanted: the request.
        began: `time.perf_counter()` when its block began.
        timeout: seconds for all of it.
    """
    body = dialect.body(model, wanted.tokens_out)
    if api == "chat":
        create = client.chat.completions.create
        body["messages"] = [{"role": "user", "content": wanted.prompt}]
    else:
        create, body["prompt"] = client.completions.create, wanted.prompt
    seen, error, detail = _Seen(), None, None
    start = time.perf_counter()
    try:
        async with asyncio.timeout(timeout):
            async with await create(**body) as stream:
                async for chunk in stream:
                    seen.take(chunk, time.perf_counter())
        end = seen.last or time.perf_counter()
        if not seen.finished and seen.tokens_out is None:
            error, detail = CUT, "the stream ended without an end of the answer"
        elif not seen.times and not seen.tokens_out:
            error, detail = EMPTY, "an answer without text"
    except Exception as caught:
        end = time.perf_counter()
        error, detail = failure(caught, begun=bool(seen.last), timeout=timeout)
    times = seen.times or ([seen.last] if seen.last and error is None else [])
    return LoadRequest(
        index=wanted.index,
        block=wanted.block,
        asked_in=wanted.tokens_in,
        asked_out=wanted.tokens_out,
        tokens_in=_count(seen.tokens_in),
        cached=_count(seen.cached),
        tokens_out=_count(seen.tokens_out) or len(seen.times),
        due=round(wanted.due, 6),
        sent=round(start - began, 6),
        first=round(times[0] - start, 6) if times else None,
        gaps=tuple(round(b - a, 6) for a, b in zip(times, times[1:], strict=False)),
        total=round(end - start, 6),
        error=error,
        detail=detail,
    )


def _count(value: object) -> int | None:
    """A number of tokens that a server named; servers may name anything."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def failure(error: Exception, *, begun: bool, timeout: float) -> tuple[str, str]:
    """What went wrong, in a word, and the words of whoever knows.

    Args:
        error: what the client raised.
        begun: whether some of the answer had come.
        timeout: seconds that a request had.
    """
    module = openai()
    names = {type(e).__name__ for e in _chain(error)}
    if isinstance(error, module.APIStatusError):
        return f"HTTP {error.status_code}", short(_said(error))
    if isinstance(error, TimeoutError):
        return TIMEOUT, f"no end of the answer after {timeout:g} s"
    if isinstance(error, module.APITimeoutError) or any("Timeout" in name for name in names):
        return TIMEOUT, short(_deepest(error))
    if "ConnectError" in names:
        return REFUSED, short(_deepest(error))
    # Newer clients wrap what the connection raises, older ones let it through.
    if isinstance(error, module.APIConnectionError) or names & {
        "RemoteProtocolError", "ReadError", "WriteError", "CloseError",
    }:  # fmt: skip
        return (CUT if begun else LOST), short(_deepest(error))
    if isinstance(error, (module.APIError, _ServerSaid)):
        return SERVER, short(_said(error))
    # JSON that is none, text that is not UTF-8, or an event of another shape.
    return MALFORMED, short(f"{type(error).__name__}: {error}")


def short(text: str) -> str:
    """A server's text on one line, printable, not longer than a record keeps."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else "\ufffd" for c in line)[:_LONGEST]


def _said(error: Exception) -> str:
    """The message in the body, whatever its shape, else the client's."""
    body = getattr(error, "body", None)
    if isinstance(body, dict):
        inner = body.get("error", body)
        text = inner.get("message") if isinstance(inner, dict) else inner
        if isinstance(text, str) and text:
            return text
    return str(getattr(error, "message", None) or error)


def _chain(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _deepest(error: Exception) -> str:
    """The text nearest to the system, such as "Connection refused"."""
    return next((str(e) for e in reversed(_chain(error)) if str(e)), type(error).__name__)
