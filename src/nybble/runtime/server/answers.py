"""Answers as OpenAI's API gives them: whole, or in parts as server-sent events."""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass, field
from typing import Any, Literal

from nybble.runtime.generate_report import Report

DONE = "data: [DONE]\n\n"


@dataclass(frozen=True)
class Answers:
    """The JSON of one answer and of its parts.

    Attributes:
        kind: "chat" or "text".
        model: the name the server gives its model.
    """

    kind: Literal["chat", "text"]
    model: str
    created: int = field(default_factory=lambda: int(time.time()))
    id: str = field(default_factory=lambda: secrets.token_hex(12))

    def whole(self, text: str, report: Report) -> dict[str, Any]:
        """The answer at once."""
        if self.kind == "chat":
            says: dict[str, Any] = {"message": {"role": "assistant", "content": text,
                                                "refusal": None}}  # fmt: skip
        else:
            says = {"text": text}
        choice = {"index": 0, **says, "logprobs": None, "finish_reason": reason(report)}
        return {**self._head(whole=True), "choices": [choice], "usage": usage(report)}

    def first(self) -> str:
        """The part that comes before the text; a completion has none."""
        return self._part({"role": "assistant", "content": ""}) if self.kind == "chat" else ""

    def part(self, text: str) -> str:
        """Some text."""
        return self._part({"content": text} if self.kind == "chat" else text)

    def last(self, report: Report) -> str:
        """The part that says why the answer ends."""
        return self._part({} if self.kind == "chat" else "", reason(report))

    def counted(self, report: Report) -> str:
        """The part with the count of tokens, for clients that ask for it."""
        return _event({**self._head(whole=False), "choices": [], "usage": usage(report)})

    def _part(self, says: dict[str, str] | str, finish: str | None = None) -> str:
        name = "delta" if self.kind == "chat" else "text"
        choice = {"index": 0, name: says, "logprobs": None, "finish_reason": finish}
        return _event({**self._head(whole=False), "choices": [choice]})

    def _head(self, *, whole: bool) -> dict[str, Any]:
        if self.kind == "chat":
            prefix, kind = "chatcmpl", "chat.completion" + ("" if whole else ".chunk")
        else:
            prefix, kind = "cmpl", "text_completion"
        return {"id": f"{prefix}-{self.id}", "object": kind, "created": self.created,
                "model": self.model}  # fmt: skip


def reason(report: Report) -> str:
    """Why an answer ended, in OpenAI's words: its own end, or a limit of the context or request."""
    return "stop" if report.finish == "stop" else "length"


def usage(report: Report) -> dict[str, Any]:
    """Tokens of the prompt and of the answer; the token that ended it is in neither."""
    return {
        "prompt_tokens": report.prompt_tokens,
        "completion_tokens": report.new_tokens,
        "total_tokens": report.prompt_tokens + report.new_tokens,
        "prompt_tokens_details": {"cached_tokens": report.cached_tokens},
    }


def error_event(body: dict[str, Any]) -> str:
    """An error in the middle of a stream."""
    return _event(body)


def _event(found: dict[str, Any]) -> str:
    return f"data: {json.dumps(found)}\n\n"
