"""One line among nothing but lines of its kind."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from nybble.scoring.tasks.answers import names_first
from nybble.scoring.tasks.base import Query, Room
from nybble.scoring.tasks.filler import sentences
from nybble.scoring.tasks.haystack import depths, fill, where
from nybble.scoring.tasks.needle import key_phrases

_HEAD = "This is a list of codes. Keep them in mind: some are asked for below.\n\n"
_LEAST = 4  # lines, of which three give the wrong options
_LINE = re.compile(r"^The code of the (\w+ \w+) is (\d{6})\.$", re.MULTILINE)


@dataclass(frozen=True)
class MultiKey:
    """The context is a list of keys and values; the wrong options are values of other keys."""

    name: str = "multi-key"
    title: str = "needles among look-alikes"
    source: str = "RULER, MK-NIAH, https://arxiv.org/abs/2404.06654"

    def make(self, rng: random.Random, room: Room, n_queries: int) -> tuple[str, list[Query]]:
        """As `Task.make`; lines are asked for at most once."""
        source = _lines(random.Random(rng.getrandbits(64)))
        context = fill(room, _HEAD + "".join(islice(source, _LEAST)), [], source)
        lines = _LINE.findall(context)
        queries = []
        for depth in depths(rng, min(n_queries, len(lines))):
            key, value = lines[int(depth * len(lines))]
            wrong = rng.sample([other for _, other in lines if other != value], 3)
            queries.append(
                Query(
                    text=f"What is the code of the {key}?",
                    lead=f"The code of the {key} is",
                    answers=(value,),
                    options=tuple(f" {v}" for v in (value, *wrong)),
                    depth=where(context, f"The code of the {key} is"),
                )
            )
        return context, queries

    def right(self, query: Query, text: str) -> bool:
        """Whether the answer is the first option that the first line names."""
        return names_first(text, query.options)

    def solve(self, context: str, query: Query) -> str:
        """The value in the line of the key asked for."""
        found = re.search(rf"^{re.escape(query.lead)} (\d+)\.$", context, re.MULTILINE)
        return f" {found[1]}" if found else ""


def _lines(rng: random.Random) -> Iterator[str]:
    used: set[int] = set()
    for key in key_phrases(rng):
        value = rng.randint(100_000, 999_999)
        while value in used:
            value = rng.randint(100_000, 999_999)
        used.add(value)
        yield f"The code of the {key} is {value}.\n"
    yield from sentences(rng)
