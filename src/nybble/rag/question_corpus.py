"""Which words of a corpus are rare, and which of its passages cannot be told apart."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from nybble.rag.passages import Passage
from nybble.rag.question_words import pieces, plain

_SEEDS = 40  # rare words by which near-duplicates are looked for
_SEED_DF = 50  # passages that such a word may be in
_SHARED = 5  # documents that a part of a title may be common to
_PART = re.compile(r"\s+[–—|-]\s+")
_ALIKE = 0.6  # shared share of two passages' words that makes them near-duplicates


class Listed(Protocol):
    """A document, as an index lists it."""

    @property
    def path(self) -> str:
        """Relative to the folder that was indexed."""

    @property
    def n_passages(self) -> int:
        """That it was cut into."""


class Corpus(Protocol):
    """What questions are made from; `rag.index.Index` is one."""

    def documents(self) -> Sequence[Listed]:
        """Every document."""

    def passages_of(self, document: str, /) -> list[Passage]:
        """A document's passages, in its order."""


@dataclass(frozen=True)
class Place:
    """Where a passage is: its document, and its number in it."""

    document: str
    number: int
    id: int


class CorpusWords:
    """The words of all passages; texts stay in the index.

    Args:
        corpus: read once in full, then passage by passage.

    Attributes:
        places: every passage, by path and position, so that equal corpora give equal order.
        sections: places by title and heading, in lower case.
    """

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus
        self._postings: dict[str, array[int]] = {}
        self._held: tuple[str, list[Passage]] = ("", [])
        self.places: list[Place] = []
        self.sections: dict[tuple[str, str], list[int]] = {}
        self._parts: Counter[str] = Counter()
        for document in sorted(d.path for d in corpus.documents() if d.n_passages):
            for number, passage in enumerate(corpus.passages_of(document)):
                self._add(Place(document, number, passage.id), passage)
                if not number:
                    self._parts.update(set(_parts(passage.title)))

    def _add(self, place: Place, passage: Passage) -> None:
        at = len(self.places)
        self.places.append(place)
        for word in dict.fromkeys(pieces(passage.text)):
            self._postings.setdefault(word, array("I")).append(at)
        name = (passage.title.lower(), passage.heading.lower())
        self.sections.setdefault(name, []).append(at)

    def passage(self, at: int) -> Passage:
        """The passage at a place."""
        place = self.places[at]
        if self._held[0] != place.document:
            self._held = (place.document, self._corpus.passages_of(place.document))
        return self._held[1][place.number]

    def title(self, passage: Passage) -> str:
        """A document's title without what many titles share, such as the manual's name."""
        parts = _parts(passage.title)
        return " ".join(p for p in parts if self._parts[p] <= _SHARED) or " ".join(parts)

    def df(self, word: str) -> int:
        """Passages that a piece is in."""
        return len(self._postings.get(word, ()))

    def rare(self, word: str, share: float) -> bool:
        """Whether a piece is in at most this share of the passages, or in three."""
        return 0 < self.df(word) <= max(3, int(share * len(self.places)))

    def holding(self, words: Iterable[str]) -> list[int]:
        """Places whose passages have all of these pieces."""
        lists = sorted((self._postings.get(w, array("I")) for w in set(words)), key=len)
        if not lists:
            return []
        found = set(lists[0])
        for more in lists[1:]:
            found.intersection_update(more)
        return sorted(found)

    def alike(self, at: int) -> list[int]:
        """Near-duplicates of a passage, itself not among them.

        Two passages are near-duplicates where they share 60 % of the words that either has.
        """
        own = set(pieces(self.passage(at).text))
        few = (w for w in own if 1 < self.df(w) <= _SEED_DF)
        seeds = sorted(few, key=lambda w: (self.df(w), w))[:_SEEDS]
        shared = Counter(other for w in seeds for other in self._postings[w] if other != at)
        found = []
        for other in sorted(o for o, n in shared.items() if n >= 0.4 * len(seeds)):
            theirs = set(pieces(self.passage(other).text))
            if len(own & theirs) >= _ALIKE * len(own | theirs):
                found.append(other)
        return found


def _parts(title: str) -> list[str]:
    return [p for p in _PART.split(plain(title)) if p]
