"""A key with several values that lie apart: all of them are asked for."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from nybble.scoring.tasks import words
from nybble.scoring.tasks.answers import sentence
from nybble.scoring.tasks.base import Query, Room
from nybble.scoring.tasks.filler import sentences
from nybble.scoring.tasks.haystack import affordable, depths, fill, stretch, where

_HEAD = "Tickets of several people are hidden in this text. Remember who has which tickets.\n\n"
_EACH = 3  # tickets a person has
_LEAST = 4  # people, of whom three give the wrong options
_MOST = 1024  # people


@dataclass(frozen=True)
class MultiValue:
    """The options share all values but the last, where the wrong ones have another person's."""

    name: str = "multi-value"
    title: str = "needles with several values"
    source: str = "RULER, MV-NIAH, https://arxiv.org/abs/2404.06654"

    def make(self, rng: random.Random, room: Room, n_queries: int) -> tuple[str, list[Query]]:
        """As `Task.make`; the values of one key lie within a fifth of the context."""
        people = people_names(rng, max(_LEAST, min(n_queries, _MOST)))
        drawn = [str(v) for v in rng.sample(range(10_000, 100_000), _EACH * len(people))]
        tickets = [drawn[_EACH * i : _EACH * (i + 1)] for i in range(len(people))]
        facts = [[f"{who} has ticket {v}." for v in own]
                 for who, own in zip(people, tickets, strict=True)]  # fmt: skip
        n = affordable(room, _HEAD, facts, _LEAST)
        inserts = [
            insert
            for own, depth in zip(facts[:n], depths(rng, n), strict=True)
            for insert in zip(stretch(rng, depth, _EACH), own, strict=True)
        ]
        wrong = [rng.sample([j for j in range(n) if j != i], 3) for i in range(n)]
        context = fill(room, _HEAD, inserts, sentences(random.Random(rng.getrandbits(64))))
        queries = []
        for i in range(min(n, n_queries)):
            *first, last = tickets[i]
            lasts = (last, *(tickets[j][-1] for j in wrong[i]))
            queries.append(
                Query(
                    text=f"Which {_EACH} tickets does {people[i]} have?",
                    lead=f"{people[i]} has tickets",
                    answers=tuple(tickets[i]),
                    options=tuple(f" {', '.join(first)} and {v}" for v in lasts),
                    depth=where(context, *facts[i]),
                )
            )
        return context, queries

    def right(self, query: Query, text: str) -> bool:
        """Whether the first sentence has these numbers, in any order, and no other."""
        found = re.findall(r"\d+", sentence(text))
        return len(found) == len(query.answers) and set(found) == set(query.answers)

    def solve(self, context: str, query: Query) -> str:
        """The tickets in all sentences about the person."""
        who = query.lead.removesuffix(" has tickets")
        return " " + ", ".join(re.findall(rf"\b{re.escape(who)} has ticket (\d+)\.", context))


def people_names(rng: random.Random, n: int) -> list[str]:
    """Different names of an invented person, of about 5,000."""
    size = len(words.LAST_NAMES)
    drawn = rng.sample(range(len(words.FIRST_NAMES) * size), n)
    return [f"{words.FIRST_NAMES[i // size]} {words.LAST_NAMES[i % size]}" for i in drawn]
