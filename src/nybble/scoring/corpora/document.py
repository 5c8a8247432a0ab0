"""One piece of text to score, with where it came from and under which licence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Document:
    """A piece of text or a conversation, the sampling unit of every interval.

    Exactly one of `text` and `messages` is filled. Pieces shorter than the context are joined
    with the next ones of their category, longer ones are cut into consecutive chunks.

    Attributes:
        id: stable name, unique within a category, for example "chat/travel-refund".
        category: a key of `CATEGORIES`, or "text" / "jsonl" for the user's own files.
        text: plain text; empty for a conversation.
        messages: chat messages, each {"role": ..., "content": ...} and, for tool calls,
            "tool_calls" / "name" as in the OpenAI chat format.
        tools: JSON function schemas offered to the model (OpenAI "tools" format).
        source: file, module or project the text was taken from.
        licence: SPDX identifier.
    """

    id: str
    category: str
    text: str = ""
    messages: tuple[dict[str, Any], ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    source: str = "own"
    licence: str = "MIT"
