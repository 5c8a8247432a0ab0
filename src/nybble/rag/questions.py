"""Questions about a user's own documents, made without a model.

Three kinds, mixed as `MIX` says:

- cloze: a sentence with one specific thing (a number, identifier, name or quoted term) left out,
  shortened and partly reworded. Its answer is that thing.
- section: what a document says about one of its headings. Its answer is one of the words that
  are most the passage's own, a weak test: a right answer in other words counts as wrong.
- keywords: five to seven of a passage's rarer words, shuffled, half of them in another form where
  there is one; words of this passage alone only where it has no others. It has no answer and tests
  retrieval only.

What they can tell: whether one way of retrieval finds more than another, and whether one KV
setting answers more than another, since all get the same questions. What they cannot: how well
real users will be served. They share words with their passage more than users' questions do,
which favours BM25; each asks for one passage, so nothing here joins two; and their frames are
English, whatever the documents are. Nothing in them was chosen by what a retriever finds.
Languages that put no spaces between words give few or none.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from nybble.errors import NybbleError
from nybble.rag import question_kinds
from nybble.rag.question_corpus import Corpus, CorpusWords

KINDS = ("cloze", "section", "keywords")
MIX = ("cloze", "keywords", "cloze", "section")  # again and again
_MOST_ALSO = 5  # other passages that answer as well; beyond, the question asks for nothing special
_TRIES = 60  # passages looked at for each question
_EXAMPLE = '{"question": "...", "answer": "...", "source": "notes.md"}'


@dataclass(frozen=True)
class Question:
    """A question whose answer is in the corpus.

    Attributes:
        text: as a user asks it.
        answer: what a right answer has in it; "" where only retrieval is tested.
        document: path of the document it is about.
        passage_id: of the passage that it was made from; -1 for none (a question of a file).
        kind: of `KINDS`, or "file".
        also: ids of other passages that answer it too: overlaps, near-duplicates.
        answers: other right answers.
        heading: with a question of a file, the section of the source; "" for any.
    """

    text: str
    answer: str
    document: str
    passage_id: int
    kind: str
    also: tuple[int, ...] = ()
    answers: tuple[str, ...] = ()
    heading: str = ""

    @property
    def accepted(self) -> frozenset[int]:
        """Ids of all passages that answer it; empty for a question of a file."""
        return frozenset((self.passage_id, *self.also)) - {-1}


_MAKERS: dict[str, Callable[[CorpusWords, int, random.Random], question_kinds.Made | None]] = {
    "cloze": question_kinds.cloze,
    "section": question_kinds.section,
    "keywords": question_kinds.keywords,
}


def generate(index: Corpus, n: int, seed: int = 0, kinds: Sequence[str] = MIX) -> list[Question]:
    """Up to `n` questions; the same for the same documents, passages and seed.

    Documents take turns, so that no long one has most of the questions; fewer than `n` come where
    the corpus has not so many passages that can be told apart.

    Args:
        index: an index, or anything with its documents and passages.
        n: questions.
        seed: of every choice.
        kinds: of `KINDS`, taken in turn; where a passage gives no such question, another kind.

    Raises:
        NybbleError: no question can be made, an unknown kind, or n is no positive number.
    """
    if n < 1:
        raise NybbleError("--generate takes a number of questions", seen=n, allowed="1 or more",
                          hint="--generate 50")  # fmt: skip
    if unknown := [k for k in kinds if k not in KINDS] or (not kinds and ["none"]):
        raise NybbleError("unknown kind of question", seen=", ".join(unknown), allowed=KINDS)
    words = CorpusWords(index)
    rng = random.Random(seed)
    order = _turns(words, rng)[: n * _TRIES]
    wanted = Counter(kinds[i % len(kinds)] for i in range(n))
    made = _walk(words, order, wanted, rng)
    left = n - len(made)
    if left:  # no more of one kind: the others make up for it
        rest = [at for at in order if at not in made]
        made |= _walk(words, rest, Counter(dict.fromkeys(kinds, left)), rng, left)
    found = list(made.values())
    rng.shuffle(found)
    if not found:
        raise NybbleError(
            "no question can be made from this corpus",
            seen=f"{len(words.places):,} passages, none with a sentence that only it has",
            allowed="documents in prose, or questions of your own",
            hint=f"--questions FILE.jsonl with lines {_EXAMPLE}",
        )
    return found


def _walk(
    words: CorpusWords, order: list[int], wanted: Counter[str], rng: random.Random,
    most: int | None = None,
) -> dict[int, Question]:  # fmt: skip
    """Questions by place, one of each, until there are as many of each kind as wanted.

    At every place the kind that most are still wanted of is tried first.
    """
    wanted = Counter(wanted)
    found: dict[int, Question] = {}
    texts: set[str] = set()
    most = wanted.total() if most is None else most
    for at in order:
        if len(found) == most:
            break
        for kind in sorted((k for k in wanted if wanted[k] > 0), key=lambda k: (-wanted[k], k)):
            question = _question(words, at, kind, rng)
            if question is not None and question.text.lower() not in texts:
                texts.add(question.text.lower())
                wanted[kind] -= 1
                found[at] = question
                break
    return found


def _turns(words: CorpusWords, rng: random.Random) -> list[int]:
    """All places, shuffled, documents in turn."""
    by_document: dict[str, list[int]] = {}
    for at, place in enumerate(words.places):
        by_document.setdefault(place.document, []).append(at)
    rounds: dict[int, list[int]] = {}
    for document in sorted(by_document):
        mine = by_document[document]
        rng.shuffle(mine)
        for turn, at in enumerate(mine):
            rounds.setdefault(turn, []).append(at)
    order = []
    for turn in sorted(rounds):
        rng.shuffle(rounds[turn])
        order += rounds[turn]
    return order


def _question(words: CorpusWords, at: int, kind: str, rng: random.Random) -> Question | None:
    made = _MAKERS[kind](words, at, rng)
    if made is None:
        return None
    others = sorted({*made.also, *words.alike(at)} - {at})
    if len(others) > _MOST_ALSO:
        return None
    place = words.places[at]
    question = Question(made.text, made.answer, place.document, place.id, kind)
    return replace(question, also=tuple(words.places[o].id for o in others), answers=made.answers)
