"""Single facts of several kinds, hidden in prose."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from nybble.scoring.tasks import words
from nybble.scoring.tasks.answers import names_first
from nybble.scoring.tasks.base import Query, Room
from nybble.scoring.tasks.filler import sentences
from nybble.scoring.tasks.haystack import affordable, depths, fill, where

_HEAD = "Some facts are hidden in this text. Keep them in mind: questions follow.\n\n"
_MOST = 128  # questions, so that wrong options of every kind remain


@dataclass(frozen=True)
class _Kind:
    """A kind of fact: "The {what} of the {key} is {value}.", and how a value is drawn."""

    what: str
    draw: Callable[[random.Random], str]


_KINDS = (
    _Kind("secret number", lambda rng: str(rng.randint(1_000_000, 9_999_999))),
    _Kind("password", lambda rng: rng.choice(words.SECRET_WORDS)),
    _Kind("opening day", lambda rng: f"{rng.randint(10, 28)} {rng.choice(words.MONTHS)}"),
    _Kind("owner", lambda rng: f"{rng.choice(words.FIRST_NAMES)} {rng.choice(words.LAST_NAMES)}"),
)


@dataclass(frozen=True)
class Needle:
    """Each question asks for one fact; the wrong options are nowhere in the context."""

    name: str = "needle"
    title: str = "single needles"
    source: str = "RULER, S-NIAH, https://arxiv.org/abs/2404.06654"

    def make(self, rng: random.Random, room: Room, n_queries: int) -> tuple[str, list[Query]]:
        """As `Task.make`; the wrong options are of the kind of the answer."""
        kinds = [_KINDS[i % len(_KINDS)] for i in range(min(n_queries, _MOST))]
        rng.shuffle(kinds)
        keys = list(islice(key_phrases(rng), len(kinds)))
        values = _distinct(rng, kinds, set())
        facts = [f"The {k.what} of the {key} is {value}."
                 for k, key, value in zip(kinds, keys, values, strict=True)]  # fmt: skip
        n = affordable(room, _HEAD, [[fact] for fact in facts], 1)
        inserts = list(zip(depths(rng, n), facts[:n], strict=True))
        wrong = [_distinct(rng, [kind] * 3, set(values)) for kind in kinds]
        context = fill(room, _HEAD, inserts, sentences(random.Random(rng.getrandbits(64))))
        queries = [
            Query(
                text=f"What is the {kinds[i].what} of the {keys[i]}?",
                lead=f"The {kinds[i].what} of the {keys[i]} is",
                answers=(values[i],),
                options=tuple(f" {value}" for value in (values[i], *wrong[i])),
                depth=where(context, facts[i]),
            )
            for i in range(n)
        ]
        return context, queries

    def right(self, query: Query, text: str) -> bool:
        """Whether the answer is the first option that the first line names."""
        return names_first(text, query.options)

    def solve(self, context: str, query: Query) -> str:
        """The end of the sentence that begins as the answer does."""
        found = re.search(rf"{re.escape(query.lead)} ([^.]+)\.", context)
        return f" {found[1]}." if found else ""


def _distinct(rng: random.Random, kinds: list[_Kind], taken: set[str]) -> list[str]:
    found: list[str] = []
    for kind in kinds:
        value = kind.draw(rng)
        while value in taken or value in found:
            value = kind.draw(rng)
        found.append(value)
    return found


def key_phrases(rng: random.Random) -> Iterator[str]:
    """Different phrases of an adjective and a noun: half of the 53,000 there are."""
    seen: set[tuple[str, str]] = set()
    while len(seen) < len(words.KEY_ADJECTIVES) * len(words.KEY_NOUNS) // 2:
        pair = rng.choice(words.KEY_ADJECTIVES), rng.choice(words.KEY_NOUNS)
        if pair not in seen:
            seen.add(pair)
            yield " ".join(pair)
