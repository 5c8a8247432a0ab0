"""Between text and token ids: what generation asks of a tokenizer, and where an answer is cut."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

_LONGEST = 4  # bytes of a character in UTF-8, and so tokens that a character can wait for


class Decoder(Protocol):
    """Turns an answer's tokens into text as they come."""

    def add(self, token: int) -> str:
        """The text that this token completes; empty inside a character."""

    def end(self) -> str:
        """What is left: a character that was never completed."""


class Text(Protocol):
    """A model's own tokenizer and chat template.

    Attributes:
        ends: ids that end an answer.
    """

    ends: frozenset[int]

    @property
    def has_template(self) -> bool:
        """Whether `chat` can be asked."""

    def prompt(self, text: str) -> list[int]:
        """Ids of a plain text at the start of a sequence.

        Raises:
            NybbleError: the text cannot be encoded.
        """

    def chat(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None
    ) -> list[int]:
        """Ids of a conversation, up to where the answer begins.

        Raises:
            NybbleError: the model has no template, or it refuses the conversation.
        """

    def decoder(self, before: Sequence[int]) -> Decoder:
        """Decodes what comes behind the ids `before`."""


class BytesDecoder:
    """For tokens that are bytes of UTF-8.

    Args:
        pieces: the bytes of each token.
    """

    def __init__(self, pieces: Sequence[bytes] | Mapping[int, bytes]) -> None:
        self._pieces = pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        """The text that this token completes."""
        return self._decoder.decode(self._pieces[token])

    def end(self) -> str:
        """A character that was never completed, as U+FFFD."""
        return self._decoder.decode(b"", final=True)


class IdsDecoder:
    """For tokenizers whose text of a token depends on the ones in front of it.

    A few ids are decoded with and without the new ones; the difference is new. A text that ends
    inside a character waits for the rest of it.

    Args:
        decode: text of ids; U+FFFD where bytes are no character.
        before: ids in front of the answer.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], before: Sequence[int]) -> None:
        self._decode = decode
        self._shown = list(before[-_LONGEST:])
        self._waiting: list[int] = []

    def add(self, token: int) -> str:
        """The text that this token completes."""
        self._waiting.append(token)
        new = self._new()
        if new.endswith("\ufffd") and len(self._waiting) < _LONGEST:
            return ""
        self._shown, self._waiting = self._waiting, []
        return new

    def end(self) -> str:
        """A character that was never completed, as U+FFFD."""
        return self._new() if self._waiting else ""

    def _new(self) -> str:
        return self._decode([*self._shown, *self._waiting])[len(self._decode(self._shown)) :]


@dataclass
class Stops:
    """Cuts an answer in front of the first of several texts, and never shows a part of one.

    Attributes:
        texts: what ends the answer.
        found: whether one was met.
    """

    texts: tuple[str, ...] = ()
    found: bool = False
    _held: str = field(default="", repr=False)

    def add(self, text: str) -> str:
        """What of the answer may be shown, given that `text` comes next."""
        if self.found:
            return ""
        self._held += text
        places = [i for stop in self.texts if (i := self._held.find(stop)) >= 0]
        if places:
            self.found = True
            shown, self._held = self._held[: min(places)], ""
            return shown
        keep = max((self._begun(stop) for stop in self.texts), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def end(self) -> str:
        """What was held back and turned out to be no stop."""
        shown, self._held = self._held, ""
        return shown

    def _begun(self, stop: str) -> int:
        """How many characters at the end may be the start of `stop`."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)
