"""How often retrieval finds a passage that answers: recall and reciprocal rank, by mode."""

from __future__ import annotations

import statistics
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from nybble.rag import judge
from nybble.rag.answers import MODES
from nybble.rag.passages import Hit, Passage
from nybble.rag.question_corpus import Corpus
from nybble.rag.questions import Question
from nybble.results.rag import DEPTHS, Retrieval
from nybble.results.records import Estimate
from nybble.scoring.request import Progress
from nybble.scoring.statistics import MIN_DOCUMENTS
from nybble.scoring.tasks.paired import accuracy, mean_change


class Searched(Corpus, Protocol):
    """An index that is searched and asked; `rag.index.Index` is one."""

    path: Path

    def search(self, query: str, k: int = 10, mode: str = "hybrid") -> list[Hit]:
        """The best passages, best first."""

    def passages(self, ids: Sequence[int]) -> list[Passage]:
        """Those with these ids that are still there."""


@dataclass(frozen=True)
class Found:
    """What retrieval gave for one question.

    Attributes:
        ranks: by mode, from 1; None where no accepted passage is among the first ten.
        hits: the first `k` of the mode that answers come from.
        good: positions in `hits` of passages that answer.
        seconds: of each mode's search.
    """

    ranks: dict[str, int | None]
    hits: list[Hit]
    good: frozenset[int]
    seconds: dict[str, float]


def search_all(
    index: Searched, questions: Sequence[Question], k: int, mode: str, progress: Progress
) -> list[Found]:
    """Search every question in every mode.

    Args:
        index: that is searched.
        questions: to search for.
        k: hits that an answer may rest on.
        mode: that answers come from.
        progress: told of every question.
    """
    progress.begin("retrieving", len(questions))
    found = []
    for question in questions:
        ranks: dict[str, int | None] = {}
        seconds: dict[str, float] = {}
        kept: list[Hit] = []
        for name in MODES:
            begun = time.perf_counter()
            hits = index.search(question.text, max(DEPTHS[-1], k if name == mode else 0), name)
            seconds[name] = time.perf_counter() - begun
            ranks[name] = _rank(question, hits[: DEPTHS[-1]])
            if name == mode:
                kept = hits[:k]
        good = frozenset(i for i, h in enumerate(kept) if judge.answers(question, h.passage))
        found.append(Found(ranks, kept, good, seconds))
        progress.advance(1)
    return found


def summary(questions: Sequence[Question], found: Sequence[Found], seed: int) -> list[Retrieval]:
    """Every mode over all questions, then by kind of question where there are several."""
    kinds = list(dict.fromkeys(q.kind for q in questions))
    rows = [_summary(questions, found, mode, "", seed) for mode in MODES]
    if len(kinds) > 1:
        rows += [_summary(questions, found, m, kind, seed) for kind in kinds for m in MODES]
    return rows


def _summary(
    questions: Sequence[Question], found: Sequence[Found], mode: str, kind: str, seed: int
) -> Retrieval:
    mine = [(q, f) for q, f in zip(questions, found, strict=True) if kind in ("", q.kind)]
    ranks = [f.ranks[mode] for _, f in mine]
    cluster = [q.document for q, _ in mine]
    recall = {
        str(n): accuracy([r is not None and r <= n for r in ranks], cluster, seed) for n in DEPTHS
    }
    mrr = _mean([1 / r if r else 0.0 for r in ranks], cluster, seed)
    took = statistics.median(f.seconds[mode] for _, f in mine)
    return Retrieval(mode, kind, len(mine), recall, mrr, took)


def _mean(values: Sequence[float], cluster: Sequence[str], seed: int) -> Estimate:
    """Mean of numbers from 0 to 1; the ends are drawn in as in `paired.accuracy`."""
    value = float(np.mean(values))
    if len(set(cluster)) < MIN_DOCUMENTS:
        return Estimate(value)
    ends: list[Hashable] = [("made up", i) for i in range(4)]
    drawn = mean_change(np.array([*values, 1.0, 1.0, 0.0, 0.0]), [*cluster, *ends], seed)
    assert drawn.low is not None and drawn.high is not None
    return Estimate(value, max(0.0, min(drawn.low, value)), min(1.0, max(drawn.high, value)))


def _rank(question: Question, hits: Sequence[Hit]) -> int | None:
    ranked = (i for i, hit in enumerate(hits, 1) if judge.answers(question, hit.passage))
    return next(ranked, None)
