"""Fills a context with filler around what a task hides in it."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence

from nybble.errors import NybbleError
from nybble.scoring.tasks.base import Room
from nybble.scoring.tasks.filler import CLOSERS

# Aim and satisfaction of the search: a count of 128K tokens is not worth repeating for 1 %.
_AIM, _ENOUGH = 0.993, 0.98
_HIDDEN_SHARE = 0.7  # most of a context that hidden facts may take, so that they are hidden
_STRETCH = 0.2  # of the context, within which the parts of one fact lie


class TooShort(NybbleError):
    """The room does not hold even what the task must hide.

    Args:
        room: tokens there were.
        least: tokens it takes.
    """

    def __init__(self, room: int, least: int) -> None:
        self.least = least
        super().__init__(
            "the context is too short for this task",
            seen=f"room for {room:,} tokens",
            allowed=f"{least:,} tokens or more",
        )


def fill(room: Room, head: str, inserts: Sequence[tuple[float, str]], filler: Iterator[str]) -> str:
    """A context of `head`, then filler with the inserts at their depths.

    Args:
        room: filled to at least 95 %.
        head: instruction.
        inserts: depth (0 to 1) and text; one with line breaks around it stands by itself.
        filler: sentences or lines without end.

    Raises:
        TooShort: head and inserts alone take more than the room.
    """
    drawn: list[str] = []
    ordered = sorted(inserts, key=lambda insert: insert[0])  # stable: parts of a fact in order

    def compose(n: int) -> str:
        while len(drawn) < n:
            drawn.append(next(filler))
        parts, at = [head], 0
        for depth, text in ordered:
            stop = round(depth * n)
            parts += [*drawn[at:stop], text]
            at = stop
        return join([*parts, *drawn[at:n]])

    return top_up(room, compose(largest(room, compose)))


def largest(room: Room, compose: Callable[[int], str]) -> int:
    """Most units with which a text still fits, or some that leave it nearly full.

    The tokens of a text grow evenly with its units, so the secant finds them in a few counts.

    Raises:
        TooShort: the text without any unit takes more than the room.
    """
    low, low_tokens = 0, room.count(compose(0))
    if low_tokens > room.tokens:
        raise TooShort(room.tokens, low_tokens)
    high: int | None = None
    step = max(0.1, (room.count(compose(32)) - low_tokens) / 32)
    while low_tokens < _ENOUGH * room.tokens and (high is None or high - low > 1):
        n = low + max(1, int((_AIM * room.tokens - low_tokens) / step))
        n = n if high is None else min(n, high - 1)
        tokens = room.count(compose(n))
        step = max(0.1, (tokens - low_tokens) / (n - low))
        if tokens > room.tokens:
            high = n
        else:
            low, low_tokens = n, tokens
    return low


def top_up(room: Room, text: str) -> str:
    """Add short sentences where a whole unit of filler was too long for a short context."""
    tokens, gap = room.count(text), "\n"
    for closer in CLOSERS:
        if tokens >= _ENOUGH * room.tokens:
            break
        longer = f"{text}{gap}{closer}"
        if (more := room.count(longer)) <= room.tokens:
            text, tokens, gap = longer, more, " "
    return text


def join(parts: Sequence[str]) -> str:
    """Parts with a space between them, unless a line break is there."""
    spaced = [parts[0]]
    for before, part in zip(parts, parts[1:], strict=False):
        broken = before.endswith("\n") or part.startswith("\n")
        spaced.append(part if broken else f" {part}")
    return re.sub(r"\n{3,}", "\n\n", "".join(spaced)).rstrip()


def affordable(room: Room, head: str, groups: Sequence[Sequence[str]], least: int) -> int:
    """How many of the groups of texts there is room for, at least `least`."""
    tokens = room.count(join(["", *(text for group in groups for text in group)]))
    share = (_HIDDEN_SHARE * room.tokens - room.count(head)) / max(1, tokens)
    return min(len(groups), max(least, int(share * len(groups))))


def depths(rng: random.Random, n: int) -> list[float]:
    """Depths, one at random in each n-th of the context, in random order."""
    found = [(i + rng.random()) / n for i in range(n)]
    rng.shuffle(found)
    return found


def stretch(rng: random.Random, depth: float, n: int) -> list[float]:
    """Ascending depths near one another, whose mean follows `depth`."""
    start = depth * (1 - _STRETCH)
    return sorted(start + _STRETCH * rng.random() for _ in range(n))


def where(context: str, *texts: str) -> float:
    """Mean depth at which the texts begin."""
    return sum(context.index(text.rstrip()) for text in texts) / (len(texts) * len(context))


def most_tokens(room: Room, options: Sequence[str]) -> int:
    """Tokens that an answer may take: as the longest option, with a little to spare, or 32."""
    return max(32, room.count(max(options, key=len)) + 8)
