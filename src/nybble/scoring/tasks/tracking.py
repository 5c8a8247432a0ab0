"""Chains of assignments: which variables got a number, directly or from one another?"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from nybble.scoring.tasks import words
from nybble.scoring.tasks.answers import place, sentence
from nybble.scoring.tasks.base import Query, Room
from nybble.scoring.tasks.filler import sentences
from nybble.scoring.tasks.haystack import affordable, depths, fill, most_tokens, stretch, where

_HEAD = (
    "Numbers are put into variables in this text, and copied from variable to variable. "
    "Remember which variables have which number.\n\n"
)
_SIZES = (2, 3, 2, 4)  # variables of a chain
_LEAST = 4  # chains, of which three give the wrong options
_MOST = len(words.KEY_NOUNS) // max(_SIZES)


@dataclass(frozen=True)
class Tracking:
    """The options share all variables but the last, where the wrong ones have another chain's."""

    name: str = "tracking"
    title: str = "variable tracking"
    source: str = "RULER, VT, https://arxiv.org/abs/2404.06654"

    def make(self, rng: random.Random, room: Room, n_queries: int) -> tuple[str, list[Query]]:
        """As `Task.make`; a chain lies, in order, within a fifth of the context."""
        total = max(_LEAST, min(n_queries, _MOST))
        names = iter(rng.sample(words.KEY_NOUNS, max(_SIZES) * total))
        values = [str(v) for v in rng.sample(range(10_000, 100_000), total)]
        sizes = [_SIZES[i % len(_SIZES)] for i in range(total)]
        rng.shuffle(sizes)
        chains = [[next(names) for _ in range(size)] for size in sizes]
        told = [_told(value, chain) for value, chain in zip(values, chains, strict=True)]
        n = affordable(room, _HEAD, told, _LEAST)
        inserts = [
            insert
            for lines, depth in zip(told[:n], depths(rng, n), strict=True)
            for insert in zip(stretch(rng, depth, len(lines)), lines, strict=True)
        ]
        wrong = [rng.sample([j for j in range(n) if j != i], 3) for i in range(n)]
        context = fill(room, _HEAD, inserts, sentences(random.Random(rng.getrandbits(64))))
        queries = []
        for i in range(min(n, n_queries)):
            *first, last = chains[i]
            lasts = (last, *(chains[j][-1] for j in wrong[i]))
            options = tuple(" " + ", copied into ".join([*first, name]) for name in lasts)
            queries.append(
                Query(
                    text=f"Which variables have the number {values[i]}, in the order they got it?",
                    lead=f"{values[i]} was put into",
                    answers=tuple(chains[i]),
                    options=options,
                    depth=where(context, *told[i]),
                    most=most_tokens(room, options),
                    about={"others": [name for c in chains[:n] if c != chains[i] for name in c]},
                )
            )
        return context, queries

    def right(self, query: Query, text: str) -> bool:
        """Whether the first sentence names all variables of the chain and none of the others."""
        said = sentence(text)
        others = query.about["others"]
        assert isinstance(others, Sequence)
        return all(place(said, name) >= 0 for name in query.answers) and not any(
            place(said, name) >= 0 for name in others
        )

    def solve(self, context: str, query: Query) -> str:
        """Follows the copies from the number on."""
        name = query.lead.split()[0]
        into = dict(re.findall(r"\b(?:Put|Copy) (\w+) into (\w+)\.", context))
        found = []
        while name in into:
            name = into.pop(name)
            found.append(name)
        return f" {', '.join(found)}"


def _told(value: str, chain: Sequence[str]) -> list[str]:
    copies = [f"Copy {a} into {b}." for a, b in zip(chain, chain[1:], strict=False)]
    return [f"Put {value} into {chain[0]}.", *copies]
