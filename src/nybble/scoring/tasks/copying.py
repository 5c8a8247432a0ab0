"""Short poems that are much alike: one is to be repeated, or the line that follows a line."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from nybble.scoring.tasks import words
from nybble.scoring.tasks.answers import copies
from nybble.scoring.tasks.base import Query, Room
from nybble.scoring.tasks.filler import sentences
from nybble.scoring.tasks.haystack import affordable, depths, fill, most_tokens, where

_HEAD = (
    "There are short poems in this text, several about each subject. "
    "Remember them word by word and in their order.\n\n"
)
_SUBJECTS = (
    "the sea", "the moon", "love", "war", "bread", "money", "time", "snow", "sleep", "music",
    "hope", "death", "rain", "fire", "youth", "wind",
)  # fmt: skip
_ORDINALS = ("first", "second", "third", "fourth")
_EACH = len(_ORDINALS)  # poems about a subject, of which three give the wrong options
_LINES = 4
_BEGINNINGS = (
    "I saw", "I met", "beyond", "beside", "we kept", "we lost", "under", "among", "tell me of",
    "no more of", "bring back", "farewell to", "remember", "without",
)  # fmt: skip


@dataclass(frozen=True)
class Copying:
    """Half of the questions ask for a whole poem by subject and number, half for a next line.

    MRCR leaves it to the model to count; here poems have numbers, since a cache that loses
    something is to be found, not a model that cannot count.
    """

    name: str = "copy"
    title: str = "copying over a distance"
    source: str = "MRCR (Michelangelo), https://arxiv.org/abs/2409.12640"

    def make(self, rng: random.Random, room: Room, n_queries: int) -> tuple[str, list[Query]]:
        """As `Task.make`; at most one question a poem."""
        n_subjects = min(-(-n_queries // _EACH), len(_SUBJECTS))
        subjects = rng.sample(_SUBJECTS, n_subjects)
        poems = _poems(rng, n_subjects * _EACH)
        told = [
            f"\nThe {_ORDINALS[i % _EACH]} poem about {subjects[i // _EACH]}: {' / '.join(poem)}.\n"
            for i, poem in enumerate(poems)
        ]
        fours = [told[i : i + _EACH] for i in range(0, len(told), _EACH)]
        n = _EACH * affordable(room, _HEAD, fours, 1)
        drawn = depths(rng, n)
        at = [depth for i in range(0, n, _EACH) for depth in sorted(drawn[i : i + _EACH])]
        context = fill(
            room,
            _HEAD,
            list(zip(at, told, strict=False)),
            sentences(random.Random(rng.getrandbits(64))),
        )
        queries = []
        for turn, i in enumerate(rng.sample(range(n), min(n_queries, n))):
            start = i // _EACH * _EACH
            ask = _whole if turn % 2 else _next_line
            text, lead, options = ask(
                rng, subjects[i // _EACH], poems[start : start + _EACH], i % _EACH
            )
            queries.append(
                Query(
                    text=text,
                    lead=lead,
                    answers=(options[0].strip(),),
                    options=options,
                    depth=where(context, told[i]),
                    most=most_tokens(room, options),
                )
            )
        return context, queries

    def right(self, query: Query, text: str) -> bool:
        """Whether the answer is exact but for white space.

        A line may be followed by the next one, a poem by a full stop; later lines are not read.
        """
        (answer,) = query.answers
        return copies(answer, text, then="" if "/" in answer else "/")

    def solve(self, context: str, query: Query) -> str:
        """Finds the poem by its title, or the line."""
        begin = re.escape(query.lead)
        end = r"([^/.]+?)(?: /|\.$)" if query.lead.endswith("/") else r"(.+)\.$"
        found = re.search(rf"{begin} {end}", context, re.MULTILINE)
        return f" {found[1]}" if found else ""


def _whole(
    rng: random.Random, subject: str, poems: list[list[str]], place: int
) -> tuple[str, str, tuple[str, ...]]:
    ordinal = _ORDINALS[place]
    texts = [" / ".join(poem) for poem in poems]
    options = [texts.pop(place), *texts]
    return (
        f"Repeat the {ordinal} poem about {subject} word for word.",
        f"The {ordinal} poem about {subject}:",
        tuple(f" {text}" for text in options),
    )


def _next_line(
    rng: random.Random, subject: str, poems: list[list[str]], place: int
) -> tuple[str, str, tuple[str, ...]]:
    line = rng.randrange(_LINES - 1)
    following = [poem[line + 1] for poem in poems]
    options = [following.pop(place), *following]
    return (
        f'Which line follows "{poems[place][line]}" in the poem about {subject}?',
        f"{poems[place][line]} /",
        tuple(f" {text}" for text in options),
    )


def _poems(rng: random.Random, n: int) -> list[list[str]]:
    """Poems without a line in common."""
    lines: dict[str, None] = {}
    while len(lines) < n * _LINES:
        lines[_line(rng)] = None
    each = list(lines)
    return [each[_LINES * i : _LINES * (i + 1)] for i in range(n)]


def _line(rng: random.Random) -> str:
    begin, adjective, noun = map(rng.choice, (_BEGINNINGS, words.KEY_ADJECTIVES, words.KEY_NOUNS))
    return f"{begin} the {adjective} {noun}"
