"""What the page may send, checked before anything is done with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from nybble.errors import NybbleError

T = TypeVar("T", int, str)

MOST_QUESTION = 8000  # characters
_MOST_NUMBER = 1 << 48
_MOST_PASSAGES = 1000
_MOST_DOCUMENTS = 50
_FIELDS = ("question", "same", "over")


class BadRequest(NybbleError):
    """A request that is refused.

    Args:
        status: of HTTP.
        what: is wrong with it.
        seen: the value.
        allowed: instead.
    """

    def __init__(
        self, status: int, what: str, seen: object | None = None, allowed: str | None = None
    ) -> None:
        self.status = status
        super().__init__(what, seen=seen, allowed=allowed)


@dataclass(frozen=True)
class Asked:
    """A question of the page.

    Attributes:
        question: not empty.
        same: passages to answer from again, those of an earlier answer; empty for new ones.
        over: whole documents to answer from; empty for what is found.
    """

    question: str
    same: tuple[int, ...] = ()
    over: tuple[str, ...] = ()


def read_object(body: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        BadRequest: it is none.
    """
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest(400, "the body is no JSON", str(error)[:200]) from error
    if not isinstance(found, dict):
        raise BadRequest(400, "the body is no JSON object", type(found).__name__)
    return found


def asked(body: Mapping[str, Any]) -> Asked:
    """The question of a request.

    Raises:
        BadRequest: a field is missing, unknown, of another kind, or too long.
    """
    for name in body:
        if name not in _FIELDS:
            raise BadRequest(400, "unknown field", str(name)[:40], ", ".join(_FIELDS))
    question = body.get("question")
    if not isinstance(question, str) or not question.strip():
        raise BadRequest(400, "there is no question", allowed="a text that is not empty")
    if len(question) > MOST_QUESTION:
        raise BadRequest(400, "the question is too long", f"{len(question):,} characters",
                         f"up to {MOST_QUESTION:,}")  # fmt: skip
    same = _list(body, "same", int, _MOST_PASSAGES)
    if not all(0 <= n < _MOST_NUMBER for n in same):
        raise BadRequest(400, "same has no numbers of passages", allowed="0 or more")
    over = tuple(_sound(name) for name in _list(body, "over", str, _MOST_DOCUMENTS))
    if same and over:
        raise BadRequest(400, "only one of these can choose what is read", "same with over")
    return Asked(_sound(question.strip()), same, over)


def _list(body: Mapping[str, Any], name: str, kind: type[T], most: int) -> tuple[T, ...]:
    found = body.get(name) or []
    if not isinstance(found, list) or not all(type(one) is kind for one in found):
        raise BadRequest(400, f"{name} is no list of {kind.__name__}", type(found).__name__)
    if len(found) > most:
        raise BadRequest(400, f"{name} is too long", len(found), f"up to {most:,}")
    return tuple(found)


def _sound(text: str) -> str:
    """Without lone surrogates: those are JSON, but no text that a tokenizer or a server takes."""
    return text.encode("utf-8", "replace").decode()


def number(query: Mapping[str, str], name: str, usual: int | None) -> int | None:
    """A whole number of a query; `usual` where there is none of the name.

    Raises:
        BadRequest: not such a number.
    """
    text = query.get(name)
    if text is None:
        return usual
    if not (text.isascii() and text.isdigit() and len(text) < 16 and int(text) < _MOST_NUMBER):
        raise BadRequest(400, f"{name} is no whole number", text[:40], "0 or more")
    return int(text)
