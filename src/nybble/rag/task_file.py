"""Questions over their sources as a file for `nybble measure --tasks`, which weighs options.

Small models rarely answer from sources in their own words; which of four things is likeliest they
still tell, and with it what a KV setting takes away. A question is left out where no source that
answers it was found: then nothing could be lost by the cache.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nybble.errors import NybbleError
from nybble.rag import judge
from nybble.rag.eval_retrieval import Searched
from nybble.rag.pack import header, pack
from nybble.rag.passages import Hit
from nybble.rag.question_kinds import things_in
from nybble.rag.question_words import content, pieces, sentences
from nybble.rag.questions import Question
from nybble.results.store import write_text
from nybble.scoring.request import Progress

HEAD = "Excerpts of documents follow. After them comes a question that they answer.\n\n"
WRONG = 3  # options beside the right one
_LONGEST = 80  # characters of an option
_LEAST_LEAD, _LEAD = 4, 14  # words before an answer
_OPENED = " \n`'\"“‘(["  # what an answer stands in


@dataclass(frozen=True)
class Written:
    """What became of the questions.

    Attributes:
        asked: lines of the file.
        unfound: questions without a source that answers among those found.
        unanswered: questions that have no answer, or nothing to confuse it with.
    """

    asked: int
    unfound: int
    unanswered: int


def write_tasks(
    index: Searched, questions: Sequence[Question], k: int, mode: str, seed: int, path: Path,
    progress: Progress,
) -> Written:  # fmt: skip
    """Search every question and write it with its sources, one JSON object a line.

    Args:
        index: that is searched.
        questions: to ask.
        k: passages of a context.
        mode: of retrieval.
        seed: of the choice of wrong options.
        path: the file; replaced as a whole.
        progress: told of every question.

    Raises:
        NybbleError: nothing can be asked, or the file cannot be written.
    """
    progress.begin("writing tasks", len(questions))
    lines: list[str] = []
    unfound = unanswered = 0
    for question in questions:
        accepted = judge.accepted(question)
        hits = index.search(question.text, k, mode) if accepted else []
        good = [h for h in hits if judge.answers(question, h.passage)]
        wrong = _wrong(question, hits, good, questions, seed) if good else []
        if accepted and not good:
            unfound += 1
        elif not wrong:
            unanswered += 1
        else:
            line = {
                "task": f"rag-{question.kind}", "context": _context(hits),
                "question": question.text, "answers": list(accepted), "wrong": wrong,
                **_lead(question, good),
            }  # fmt: skip
            lines.append(json.dumps(line, ensure_ascii=False))
        progress.advance(1)
    if not lines:
        raise NybbleError(
            "no question can be asked of its sources",
            seen=f"{unfound} without a source that answers, {unanswered} without an answer",
            hint="--k 20, or other questions",
        )
    write_text(path, "\n".join(lines) + "\n")
    return Written(len(lines), unfound, unanswered)


def _context(hits: Sequence[Hit]) -> str:
    packed = pack([h.passage for h in hits], 1, lambda text: 0)  # as many as were asked for
    parts = (f"{header(s.number, s)}{s.text.strip()}" for s in packed.sources)
    return HEAD + "\n\n".join(parts)


def _lead(question: Question, good: Sequence[Hit]) -> dict[str, str]:
    """How the answer begins: what stands before it in a source, as far as a blank has that.

    A model too small to fill a reworded blank still goes on with a sentence that it has read.
    """
    if question.kind != "cloze":
        return {}
    for hit in good:
        for sentence in sentences(hit.passage.text):
            before, found, after = sentence.partition(question.answer)
            words = before.rstrip(_OPENED).split()[-_LEAD:]
            if found and question.answer not in after and len(words) >= _LEAST_LEAD:
                return {"lead": " ".join(words)}
    return {}


def _wrong(
    question: Question, hits: Sequence[Hit], good: Sequence[Hit], every: Sequence[Question],
    seed: int,
) -> list[str]:  # fmt: skip
    """Options of the answer's shape: out of the sources first, then answers of other questions.

    What fills a blank is one thing, so that all else in any source is wrong. Another question may
    be answered by more of its own passage, so those that answer lend nothing.
    """
    accepted = judge.accepted(question)
    lending = hits if question.kind == "cloze" else [h for h in hits if h not in good]
    near = [thing for hit in lending for thing in _things(hit.passage.text, accepted[0])]
    far = [a for q in every for a in judge.accepted(q)[:1]]
    chance = random.Random(f"{seed}/{question.text}")
    found: list[str] = []
    for pool in (near, far):
        pool = [w for w in dict.fromkeys(pool) if _shape(w) == _shape(accepted[0])]
        chance.shuffle(pool)
        for option in pool:
            if len(found) < WRONG and not _alike(option, [*accepted, *found]):
                found.append(option)
    return found


def _things(text: str, answer: str) -> Iterator[str]:
    if _shape(answer) == "word":
        yield from (w for w in pieces(text) if content(w))
    yield from (thing for _, thing in things_in(text) if len(thing) <= _LONGEST)


def _shape(text: str) -> str:
    """A number, a name as programs have them, one word, or several."""
    if any(c.isdigit() for c in text) and not any(c.isalpha() for c in text.split()[0]):
        return "number"
    if len(text.split()) > 1:
        return "words"
    plain = text.isalpha() and (text.islower() or text.istitle())
    return "word" if plain else "identifier"


def _alike(option: str, others: Sequence[str]) -> bool:
    """Whether one is part of another, word by word: then neither is wrong for sure."""
    mine = f" {judge.reduced(option)} "
    return not mine.strip() or any(
        mine in f" {judge.reduced(o)} " or f" {judge.reduced(o)} " in mine for o in others
    )
