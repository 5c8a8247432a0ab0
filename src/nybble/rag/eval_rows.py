"""From answers to numbers: accuracy, what changed against the 16-bit cache, and what that says."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

from nybble.rag.eval_answers import LaneResult
from nybble.results.rag import RagQuestion, RagRow
from nybble.scoring.tasks.paired import (
    LEVEL,
    accuracy,
    holm,
    mcnemar,
    paired_change,
    smallest_loss,
)


def rows(
    results: Sequence[LaneResult], questions: Sequence[RagQuestion], seed: int
) -> list[RagRow]:
    """A row for each lane, in order; a lane that ended early is a failed row without numbers.

    Args:
        results: the reference among them.
        questions: of the whole set.
        seed: of the resampling.
    """
    reference = next(r for r in results if _role(results, r) == "reference")
    found = [_row(r, reference, _role(results, r), questions, seed) for r in results]
    tested = [i for i, row in enumerate(found) if row.p is not None]
    corrected = holm([row.p for row in found if row.p is not None])
    for i, p in zip(tested, corrected, strict=True):
        found[i] = dataclasses.replace(found[i], p=p)
    return found


def _role(results: Sequence[LaneResult], result: LaneResult) -> str:
    sixteen = [r for r in results if r.lane.sixteen and not r.lane.mark]
    if result is sixteen[0]:
        return "reference"
    return "floor" if any(result is r for r in sixteen) else "candidate"


def _row(
    result: LaneResult, reference: LaneResult, role: str, questions: Sequence[RagQuestion],
    seed: int,
) -> RagRow:  # fmt: skip
    lane, mine = result.lane, result.answers
    row = RagRow(lane.name, role, lane.file, lane.mark, n_questions=len(mine))
    if result.error is not None:
        return dataclasses.replace(row, status="failed", error=result.error)
    cluster = [questions[a.question].document for a in mine]
    tokens = [a.tokens for a in mine if a.tokens is not None]
    row = dataclasses.replace(
        row,
        n_documents=len(set(cluster)),
        accuracy=accuracy([a.right for a in mine], cluster, seed),
        cites_source=accuracy([a.cites_source for a in mine], cluster, seed),
        cites_unknown=accuracy([a.cites_unknown for a in mine], cluster, seed),
        cites_nothing=accuracy([not a.cited for a in mine], cluster, seed),
        seconds=statistics.median(a.seconds for a in mine),
        tokens=statistics.fmean(tokens) if tokens else None,
    )
    if role == "reference" or reference.error is not None:
        return row
    theirs = reference.answers
    gained = sum(a.right and not b.right for a, b in zip(mine, theirs, strict=True))
    lost = sum(b.right and not a.right for a, b in zip(mine, theirs, strict=True))
    return dataclasses.replace(
        row,
        change=paired_change([b.right for b in theirs], [a.right for a in mine], cluster, seed),
        gained=gained,
        lost=lost,
        p=mcnemar(gained, lost) if role == "candidate" else None,
        identical=accuracy(
            [a.text == b.text for a, b in zip(mine, theirs, strict=True)], cluster, seed
        ),
    )


def sentence(found: Sequence[RagRow]) -> str:
    """Does the cache type change answers? From the numbers, with what so many can tell."""
    reference = next((r for r in found if r.role == "reference"), None)
    if reference is None:
        return "No answers were asked for: this is about retrieval only."
    if reference.status == "failed":
        return (f"Whether the cache type changes answers is open: {reference.setting}, which the "
                "others are compared with, failed.")  # fmt: skip
    tested = [r for r in found if r.p is not None]
    if not tested:
        return "Whether the cache type changes answers is open: no quantized cache has answered."
    said = [_changed(r) for r in tested if r.p is not None and r.p < LEVEL]
    others = [r for r in tested if r.p is not None and r.p >= LEVEL]
    if others:
        said.append(_unchanged(others, reference, len(tested)))
    return " ".join(said)


def _changed(row: RagRow) -> str:
    verb = "loses" if row.lost > row.gained else "gains"
    return (f"Yes: {row.setting} {verb} answers, {row.lost} lost and {row.gained} gained of "
            f"{row.n_questions} (p {row.p:.2g}, corrected).")  # fmt: skip


def _unchanged(others: Sequence[RagRow], reference: RagRow, tests: int) -> str:
    counts = ", ".join(f"{r.setting} lost {r.lost} and gained {r.gained}" for r in others)
    n, least = reference.n_questions, smallest_loss(tests)
    right = round((reference.accuracy.value if reference.accuracy else 0.0) * n)
    reach = (f"a loss of {least} or more with none gained would have been found"
             if least <= right else
             f"{reference.setting} has only {right} right, and no loss of these could have been "
             "found: ask more questions, or a model that answers better")  # fmt: skip
    return (f"No change of right answers that {n} questions can tell from chance: {counts}; "
            f"{reach}.")  # fmt: skip


def wording(found: Sequence[RagRow]) -> str:
    """How far answers read otherwise, and how far they do between two 16-bit caches."""
    shown = [(r, r.identical.value) for r in found if r.identical is not None]
    if not shown:
        return ""
    parts = [
        f"{1 - same:.0%} in {row.setting}" + (" (noise floor)" if row.role == "floor" else "")
        for row, same in shown
    ]
    return f"Answers worded otherwise than with the 16-bit cache: {', '.join(parts)}."


def otherwise_packed(results: Sequence[LaneResult]) -> list[str]:
    """Warnings where a lane was shown other text than the reference."""
    reference = next(r for r in results if _role(results, r) == "reference")
    packed = {a.question: a.packed for a in reference.answers}
    found = []
    for result in results:
        n = sum(packed.get(a.question, a.packed) != a.packed for a in result.answers)
        if n:
            found.append(f"{result.lane.name}: {n} questions were asked over other text than with "
                         f"{reference.lane.name} (another context length or tokenizer); their "
                         "answers differ by more than the cache")  # fmt: skip
    return found
