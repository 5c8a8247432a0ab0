"""Servers that answer: what they have in common, and what their failures mean to a user.

openai_server.py speaks with any of them; llama.cpp has more to offer, see llamacpp.py.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from nybble.errors import EngineError, NybbleError
from nybble.rag.answers import CutOffError, Options, PrefixUse, Usage
from nybble.rag.prompt import Prompt

CONNECT = 10.0  # seconds
LONGEST = 400  # characters of a server's own words that are shown
_TOO_LONG = ("context length", "context size", "context window", "maximum context", "too long")


class TooLongError(EngineError):
    """The server says that prompt and answer exceed its context.

    Attributes:
        over: tokens too many, as it counted; None where it does not tell.
    """

    over: int | None = None


@dataclass(frozen=True)
class Reply:
    """What a server answered.

    Attributes:
        text: all of it.
        finish: why it ended.
        usage: tokens.
        first: seconds from the request to the first piece, those of the context's cache
            included; None where none came.
        generate: seconds from the first piece to the last.
        prefix: what became of the context's cache; None for other servers than llama.cpp.
        notes: what a user should know.
    """

    text: str
    finish: str
    usage: Usage
    first: float | None
    generate: float
    prefix: PrefixUse | None = None
    notes: tuple[str, ...] = ()


class Hearer(Protocol):
    """Who is told while an answer is made; what it raises ends the answer."""

    def text(self, piece: str) -> None:
        """The next piece of it."""

    def read(self, done: int, total: int) -> None:
        """So many of the prompt's tokens are in the cache; not every server tells."""


class Stream:
    """Gathers the pieces of an answer, and when they came."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._parts: list[str] = []
        self._begun = time.monotonic()
        self._first = self._last = 0.0

    def add(self, piece: str) -> None:
        """One more."""
        if not piece:
            return
        self._last = time.monotonic()
        self._first = self._first or self._last
        self._parts.append(piece)
        self._tell(piece)

    @property
    def text(self) -> str:
        """What has come so far."""
        return "".join(self._parts)

    @property
    def first(self) -> float | None:
        """Seconds until the first piece."""
        return self._first - self._begun if self._first else None

    @property
    def generate(self) -> float:
        """Seconds from the first piece to the last."""
        return self._last - self._first


class Answering(ABC):
    """A server that was reached.

    Attributes:
        base: its address without /v1.
        context: tokens of prompt and answer together.
        plain: whether it is asked without a chat template.
        notes: what was found out about it that a user should know.
    """

    def __init__(self, base: str, context: int, plain: bool) -> None:
        self.base, self.context, self.plain = base, context, plain
        self.notes: list[str] = []

    @abstractmethod
    def close(self) -> None:
        """Close its connections."""

    @abstractmethod
    def count(self, text: str) -> int:
        """Tokens of a text.

        Raises:
            NybbleError: the server is gone.
        """

    @abstractmethod
    def overhead(self) -> int:
        """Tokens that the chat template adds to a prompt.

        Raises:
            NybbleError: the server is gone.
        """

    @abstractmethod
    def answer(self, prompt: Prompt, options: Options, hearer: Hearer) -> Reply:
        """Have it answer.

        Args:
            prompt: question and sources.
            options: how to ask.
            hearer: told of every piece of the answer.

        Raises:
            TooLongError: it does not fit into the context.
            CutOffError: the server went away in mid-answer.
            NybbleError: it is not there or refuses.
        """


def gone(base: str, error: Exception, stream: Stream | None) -> NybbleError:
    """The error for a server that does not answer, or no longer does."""
    cause = error.__cause__ or error
    seen = f"{base}: {type(cause).__name__}: {cause}"[:LONGEST]
    if stream is not None and stream.text:
        return CutOffError("the server went away in mid-answer", stream.text, seen=seen,
                           hint="look at its log, start it, and ask again")  # fmt: skip
    return EngineError("the server does not answer", seen=seen,
                       hint="start it: nybble serve MODEL --port PORT")  # fmt: skip


def refusal(status: int, said: str, base: str, over: int | None = None) -> EngineError:
    """The error for an answer of 400 and more."""
    seen = f"{base}: {status}: {said}"
    if status in (401, 403):
        return EngineError("the server wants a key", seen=seen, hint="export NYBBLE_API_KEY=...")
    if status < 500 and any(words in said.lower() for words in _TOO_LONG):
        error = TooLongError("the prompt exceeds the server's context", seen=seen,
                             hint="--context TOKENS, as the server has them")  # fmt: skip
        error.over = over
        return error
    if status == 404:
        return EngineError("the server does not know this request or model", seen=seen,
                           hint="--served-model NAME, and check the address")  # fmt: skip
    return EngineError("the server refuses the request" if status < 500 else "the server failed",
                       seen=seen, hint="look at its log")  # fmt: skip
