"""Questions over invented facts, each of which joins two sentences."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from nybble.scoring.tasks import words
from nybble.scoring.tasks.answers import names_first
from nybble.scoring.tasks.base import Query, Room
from nybble.scoring.tasks.filler import sentences
from nybble.scoring.tasks.haystack import affordable, depths, fill, most_tokens, stretch, where
from nybble.scoring.tasks.multi_value import people_names

_HEAD = "Some facts about people are hidden in this text. Keep them in mind: questions follow.\n\n"
_LEAST = 4  # people of whom the same is told, of whom three give the wrong options


@dataclass(frozen=True)
class _Kind:
    """What is told of somebody: "The baker of Velm {told} green.", and how it is asked for."""

    told: str
    question: str
    values: tuple[str, ...]


_KINDS = (
    _Kind("lives in a house painted", "In a house of which colour does {} live?", words.COLOURS),
    _Kind("likes to drink", "What does {} like to drink?", words.DRINKS),
    _Kind("plays the", "Which instrument does {} play?", words.INSTRUMENTS),
    _Kind("is afraid of", "Which animals is {} afraid of?", words.ANIMALS),
)
_MOST_OF_KIND = min(len(kind.values) for kind in _KINDS)


@dataclass(frozen=True)
class _Person:
    """One fact: "Mara Olden is the baker of Velm." and "The baker of Velm plays the flute."."""

    who: str
    works: str
    kind: _Kind
    value: str

    @property
    def told(self) -> tuple[str, str]:
        return (
            f"{self.who} is the {self.works}.",
            f"The {self.works} {self.kind.told} {self.value}.",
        )


@dataclass(frozen=True)
class Facts:
    """The wrong options end in what is told, in the same words, of other people of the context.

    All options begin with the first of the two sentences, so that small models can tell them
    apart; nothing of it is given to a model that answers in its own words.
    """

    name: str = "facts"
    title: str = "facts in two sentences"
    source: str = "BABILong, QA2, https://arxiv.org/abs/2406.10149"

    def make(self, rng: random.Random, room: Room, n_queries: int) -> tuple[str, list[Query]]:
        """As `Task.make`; both sentences of a fact lie within a fifth of the context."""
        people = _people(rng, n_queries)
        # Whole fours of one kind, so that each question has three others of its own kind.
        fours = [
            [text for p in people[i : i + _LEAST] for text in p.told]
            for i in range(0, len(people), _LEAST)
        ]
        people = people[: _LEAST * affordable(room, _HEAD, fours, 1)]
        inserts = [
            insert
            for p, depth in zip(people, depths(rng, len(people)), strict=True)
            for insert in zip(_in_some_order(rng, depth), p.told, strict=True)
        ]
        asked = rng.sample(people, min(n_queries, len(people)))
        wrong = [
            rng.sample([p.value for p in people if p.kind == one.kind and p != one], 3)
            for one in asked
        ]
        context = fill(room, _HEAD, inserts, sentences(random.Random(rng.getrandbits(64))))
        queries = []
        for i, one in enumerate(asked):
            values = [one.value, *wrong[i]]
            begin = f" the {one.works}. The {one.works} {one.kind.told}"
            options = tuple(f"{begin} {value}" for value in values)
            queries.append(
                Query(
                    text=one.kind.question.format(one.who),
                    lead=f"{one.who} is",
                    answers=(one.value,),
                    options=options,
                    depth=where(context, *one.told),
                    most=most_tokens(room, options),
                    about={"values": values},
                )
            )
        return context, queries

    def right(self, query: Query, text: str) -> bool:
        """Whether the first line names the answer before what is true of others."""
        values = query.about["values"]
        assert isinstance(values, Sequence)
        return names_first(text, values)

    def solve(self, context: str, query: Query) -> str:
        """From the person to craft and town, and from these to the fact."""
        who = query.lead.removesuffix(" is")
        works = re.search(rf"\b{re.escape(who)} is the (\w+ of \w+)\.", context)
        told = next((k.told for k in _KINDS if k.question.format(who) == query.text), "")
        has = re.search(rf"The {works[1]} {told} (\w+)\.", context) if works else None
        return f" {has[1]}" if has else ""


def _people(rng: random.Random, n_queries: int) -> list[_Person]:
    most = _MOST_OF_KIND // _LEAST * _LEAST * len(_KINDS)
    n = min(-(-n_queries // _LEAST) * _LEAST, most)
    kinds = rng.sample(_KINDS, len(_KINDS))
    kind_of = [kinds[i // _LEAST % len(kinds)] for i in range(n)]
    values = {kind: iter(rng.sample(kind.values, len(kind.values))) for kind in kinds}
    names = people_names(rng, n)
    works = rng.sample([f"{craft} of {town}" for craft in words.CRAFTS for town in words.TOWNS], n)
    return [
        _Person(who, place, kind, next(values[kind]))
        for who, place, kind in zip(names, works, kind_of, strict=True)
    ]


def _in_some_order(rng: random.Random, depth: float) -> list[float]:
    found = stretch(rng, depth, 2)
    rng.shuffle(found)
    return found
