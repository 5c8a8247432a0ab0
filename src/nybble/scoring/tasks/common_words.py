"""Lists of words: which word of a list occurs most often?"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from nybble.scoring.tasks import words
from nybble.scoring.tasks.answers import names_first
from nybble.scoring.tasks.base import Query, Room
from nybble.scoring.tasks.haystack import largest, top_up

_HEAD = "These are lists of words. Count how often every word occurs in each list.\n"
_TIMES = 10  # the most common word occurs that many times as often as each of the others
_KINDS = 250  # different words of a long list; in a short one the others occur once
_SHORTEST = _TIMES + 3  # words of a list with three wrong options
_AFFORDABLE = 3 * _SHORTEST


@dataclass(frozen=True)
class CommonWords:
    """One list a question; the wrong options are rarer words of the same list.

    RULER has one list. With one a question, depths differ and questions are of their own.
    """

    name: str = "common-words"
    title: str = "most common words"
    source: str = "RULER, CWE, https://arxiv.org/abs/2404.06654"

    def make(self, rng: random.Random, room: Room, n_queries: int) -> tuple[str, list[Query]]:
        """As `Task.make`; fewer questions where the lists would be very short."""
        owners = rng.sample(words.FIRST_NAMES, min(n_queries, len(words.FIRST_NAMES)))
        seed = rng.getrandbits(64)
        sample = room.count(_compose(seed, owners[:1], 300)) / 300
        n = max(1, min(len(owners), int(room.tokens / (sample * _AFFORDABLE))))
        owners = owners[:n]
        size = largest(room, lambda extra: _compose(seed, owners, n * _SHORTEST + extra))
        size += n * _SHORTEST
        context = top_up(room, _compose(seed, owners, size))
        queries = []
        for i, owner in enumerate(owners):
            common, *rare = _list(seed, i, _share(size, n, i))[0]
            queries.append(
                Query(
                    text=f"What is the most common word in the list of {owner}?",
                    lead=f"The most common word in the list of {owner} is",
                    answers=(common,),
                    options=tuple(f" {word}" for word in (common, *rng.sample(rare, 3))),
                    depth=_middle(context, owner),
                )
            )
        return context, queries

    def right(self, query: Query, text: str) -> bool:
        """Whether the answer is the first option that the first line names."""
        return names_first(text, query.options)

    def solve(self, context: str, query: Query) -> str:
        """Counts the words of the list."""
        found = re.search(r"list of (\w+)\?", query.text)
        line = re.search(rf"^List of {found[1]}: ([^.]*)", context, re.MULTILINE) if found else None
        return f" {Counter(line[1].split()).most_common(1)[0][0]}" if line else ""


def _list(seed: int, index: int, size: int) -> tuple[list[str], list[str]]:
    """The different words of a list, the most common first, and about `size` words of it."""
    rng = random.Random(f"{seed}/{index}/{size}")
    each = math.ceil(size / _KINDS)
    kinds = rng.sample(words.PLAIN_WORDS, size // each - _TIMES + 1)
    listed = [kinds[0]] * (_TIMES * each) + kinds[1:] * each
    rng.shuffle(listed)
    return kinds, listed


def _share(size: int, n: int, index: int) -> int:
    return size // n + (index < size % n)


def _compose(seed: int, owners: Sequence[str], size: int) -> str:
    lists = (" ".join(_list(seed, i, _share(size, len(owners), i))[1]) for i in range(len(owners)))
    lines = (f"\nList of {owner}: {listed}." for owner, listed in zip(owners, lists, strict=True))
    return _HEAD + "".join(lines)


def _middle(context: str, owner: str) -> float:
    start = context.index(f"\nList of {owner}: ")
    return (start + context.index(".", start)) / 2 / len(context)
