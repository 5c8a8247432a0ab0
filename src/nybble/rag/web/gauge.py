"""What the cache holds now: llama.cpp tells the tokens in its slots, the plan the bytes of each."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import Any

from nybble.engines.readback.base import Http
from nybble.engines.readback.values import integer, mapping

_TIMEOUT = 2.0  # seconds; between two batches of a long prompt the server does not answer
_SLOTS = "/slots"
_TOKENS = "n_prompt_tokens"
_NO_SLOTS = "This server does not tell what its cache holds; llama.cpp's does (GET /slots)."
_NO_BYTES = "Tokens in llama.cpp's slots (GET /slots); it does not tell the bytes of a token."
_PLANNED = "Tokens in llama.cpp's slots (GET /slots), times the bytes of a token by the plan."


@dataclass(frozen=True)
class Cells:
    """The part of a cache that layers of one kind share.

    Attributes:
        most: tokens of one sequence that it holds: the context, or a window and what goes with it.
        n_bytes: of one token, all its layers together.
    """

    most: int
    n_bytes: int


@dataclass(frozen=True)
class Engine:
    """The server that answers, as far as it is known.

    Attributes:
        model: as it calls it.
        kv: KV setting in effect; None where nobody tells.
        context: tokens of one sequence; None likewise.
        cells: of its cache; empty where its bytes are not known.
        sequences: slots.
    """

    model: str
    kv: str | None = None
    context: int | None = None
    cells: tuple[Cells, ...] = ()
    sequences: int = 1

    def held(self, tokens: int) -> int:
        """Bytes that `tokens` of one sequence take in the cache."""
        return sum(min(tokens, c.most) * c.n_bytes for c in self.cells)


@dataclass(frozen=True)
class Held:
    """A reading of the cache.

    Attributes:
        tokens: in all slots; None where it is not told.
        room: that fit.
        n_bytes: of the tokens; None where their bytes are not known.
        allocated: bytes of the whole cache; llama.cpp takes them when it starts.
        how: where the numbers are from, in words.
    """

    tokens: int | None = None
    room: int | None = None
    n_bytes: int | None = None
    allocated: int | None = None
    how: str = _NO_SLOTS


class Gauge:
    """Reads the cache of one server.

    Args:
        base: the server's address without /v1.
        key: of the server, or None.
        engine: what is known of it.
    """

    def __init__(self, base: str, key: str | None, engine: Engine) -> None:
        self._http = Http(base, key, _TIMEOUT)
        self._engine = engine
        self._one = threading.Lock()
        self._last = Held()

    def read(self) -> Held:
        """What it holds now, or held when it last told."""
        if not self._one.acquire(blocking=False):
            return self._last
        try:
            slots = self._http.json(_SLOTS)
            if isinstance(slots, list):
                self._last = self._of(slots)
            elif self._last.tokens is not None:
                how = self._last.how.removesuffix(_LATE) + _LATE
                return replace(self._last, how=how)
            return self._last
        finally:
            self._one.release()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def _of(self, slots: list[Any]) -> Held:
        each = [_tokens(mapping(slot)) for slot in slots]
        if not each or any(n is None for n in each):
            return Held()
        tokens = [n for n in each if n is not None]
        engine = self._engine
        context = engine.context or integer(mapping(slots[0]).get("n_ctx"))
        room = context * len(slots) if context else None
        if not engine.cells:
            return Held(sum(tokens), room, how=_NO_BYTES)
        return Held(
            sum(tokens), room, sum(engine.held(n) for n in tokens),
            sum(c.most * c.n_bytes for c in engine.cells) * len(slots), _PLANNED,
        )  # fmt: skip


_LATE = " The server is busy: this is what it told last."


def _tokens(slot: dict[str, Any]) -> int | None:
    """Tokens of a slot: its prompt, to which llama.cpp adds those of the answer."""
    if "is_processing" in slot and _TOKENS not in slot:
        return 0  # a slot that was never used tells none
    return integer(slot.get(_TOKENS))
