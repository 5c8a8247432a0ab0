"""Values out of answers and logs that may hold anything: of the right type and sane, or None.

What is kept is shown on a terminal later, so text is printable and short.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from nybble.engines.readback.base import Http

MODELS = "/v1/models"
_LONGEST = 300  # characters of one text or log line
_MOST_LINES = 20
_LARGEST = 2**63  # no count of tokens or bytes is larger
_FINE = 0.005  # relative error up to which a quotient of rounded numbers is worth telling


def mapping(value: object) -> dict[str, Any]:
    """The object itself where it is one of JSON, an empty one otherwise."""
    return value if isinstance(value, dict) else {}


def mappings(value: object) -> list[dict[str, Any]]:
    """The JSON objects in a list; nothing where it is no list."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def text(value: object) -> str | None:
    """A string, printable and cut off at 300 characters; None for anything else and for ""."""
    return (printable(value) or None) if isinstance(value, str) else None


def printable(value: str) -> str:
    """The string without control characters and lone surrogates, cut off at 300 characters."""
    return "".join(c if c.isprintable() else " " for c in value[: 4 * _LONGEST]).strip()[:_LONGEST]


def integer(value: object) -> int | None:
    """A whole number from 0 up, also as decimal digits."""
    if isinstance(value, str):
        digits = value.replace(",", "")
        if not (digits.isascii() and digits.isdigit() and len(digits) < 19):
            return None
        value = int(digits)
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 <= value < _LARGEST else None


def number(value: object) -> float | None:
    """A finite number from 0 up, also as text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) and 0 <= found < _LARGEST else None


def served(http: Http) -> list[dict[str, Any]]:
    """The models of an OpenAI-compatible server; none where it does not tell."""
    return mappings(mapping(http.json(MODELS)).get("data"))


def owners(models: Iterable[dict[str, Any]]) -> set[str]:
    """`owned_by` of models, in which most engines write their own name."""
    return {one["owned_by"] for one in models if isinstance(one.get("owned_by"), str)}


def told_lines(log: str, words: Iterable[str]) -> tuple[str, ...]:
    """Lines of a log with one of the words, each once, 20 at most."""
    wanted = tuple(words)
    found: dict[str, None] = {}
    for line in log.split("\n"):
        if any(word in line for word in wanted):
            found[printable(line)] = None
            if len(found) == _MOST_LINES:
                break
    return tuple(found)


def since(log: str, *marks: str) -> str:
    """A log from the last line on that has the first of the marks found in it; else all of it.

    Args:
        log: text that may have several starts of a server in it.
        marks: words that a start writes once, the earliest first.
    """
    for mark in marks:
        at = log.rfind(mark)
        if at >= 0:
            return log[log.rfind("\n", 0, at) + 1 :]
    return log


def per_token(n_bytes: float | None, tokens: int | None, error: float) -> float | None:
    """Bytes by tokens, where the bytes are exact enough for that.

    Args:
        n_bytes: of the whole cache, rounded.
        tokens: it holds.
        error: bytes that rounding may have added or taken.
    """
    if not n_bytes or not tokens or error > _FINE * n_bytes:
        return None
    return n_bytes / tokens
