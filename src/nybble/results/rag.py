"""What an evaluation of retrieval and answers leaves behind: plain, versioned records."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from nybble.errors import NybbleError
from nybble.results.records import Estimate, _build

RAG_SCHEMA_VERSION = 1
DEPTHS = (1, 5, 10)  # hits that recall is counted in


@dataclass(frozen=True)
class Retrieval:
    """One way of retrieval over all questions. Intervals draw documents, as all here do.

    Attributes:
        mode: "hybrid", "dense" or "lexical".
        kind: of question; "" for all together.
        n_questions: asked.
        recall: by "1", "5", "10": share of questions with an accepted passage among so many hits.
        mrr: mean of 1/rank of the first accepted passage, 0 beyond rank 10.
        seconds: median of a search.
    """

    mode: str
    kind: str
    n_questions: int
    recall: dict[str, Estimate]
    mrr: Estimate
    seconds: float


@dataclass(frozen=True)
class RagQuestion:
    """A question of the set.

    Attributes:
        text: as asked.
        answers: right answers, any of them; empty where only retrieval was tested.
        document: that holds the answer.
        kind: of question, "file" for the user's own.
        ranks: by mode, rank of the first accepted passage; None where not among ten.
    """

    text: str
    answers: list[str]
    document: str
    kind: str
    ranks: dict[str, int | None]


@dataclass(frozen=True)
class RagAnswer:
    """One answer of one KV setting.

    Attributes:
        setting: of its row, mark included.
        question: number in `RagRun.questions`, from 0.
        text: of the model.
        right: whether it has an accepted answer in it.
        cited: numbers it cites.
        cites_source: whether one of them is a source that answers the question.
        cites_unknown: whether it cites a number that no source has.
        packed: hash of the sources it was shown.
        has_source: whether a source that answers was among them.
        sources: places of the sources, in order of their numbers.
        finish: "stop", "length" or the server's word.
        tokens: of the answer, as the server counted; None where it does not tell.
        seconds: until its end.
    """

    setting: str
    question: int
    text: str
    right: bool
    cited: list[int]
    cites_source: bool
    cites_unknown: bool
    packed: str
    has_source: bool
    sources: list[str]
    finish: str = ""
    tokens: int | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class RagRow:
    """Answers of one KV setting, paired with those of the 16-bit cache.

    Attributes:
        setting: for example "q4_0/q4_0"; with its mark, "q4_0/q4_0 hardened".
        role: "reference" (the first 16-bit setting), "floor" (another one) or "candidate".
        file: of the model, or the address of the server.
        mark: what is different from the reference besides the cache: "hardened" or "".
        n_questions: answered.
        n_documents: they are about, the unit that intervals resample.
        accuracy: share of right answers.
        change: accuracy less the reference's, paired.
        gained: answers that only this setting has right.
        lost: answers that only the reference has right.
        p: exact two-sided McNemar test, which takes questions as independent; corrected for the
            number of candidates (Holm). None for reference and floor.
        identical: share of answers that are the reference's to the letter.
        cites_source: share of answers that cite a source with the answer.
        cites_unknown: share of answers that cite a number without a source.
        cites_nothing: share of answers without any citation.
        seconds: median of an answer.
        tokens: mean of an answer; None where the server does not tell.
        status: "done" or "failed".
        error: why it failed.
    """

    setting: str
    role: str
    file: str
    mark: str = ""
    n_questions: int = 0
    n_documents: int = 0
    accuracy: Estimate | None = None
    change: Estimate | None = None
    gained: int = 0
    lost: int = 0
    p: float | None = None
    identical: Estimate | None = None
    cites_source: Estimate | None = None
    cites_unknown: Estimate | None = None
    cites_nothing: Estimate | None = None
    seconds: float | None = None
    tokens: float | None = None
    status: str = "done"
    error: str | None = None


@dataclass(frozen=True)
class RagRun:
    """One command's result.

    Attributes:
        title: what was evaluated, in a few words.
        said: whether the cache type changes answers, in a sentence or two.
        worded: how many answers read otherwise than with the 16-bit cache; "" without any.
        retrieval: by mode; then the same by kind of question.
        rows: one a KV setting, in the order asked.
        questions: all of them.
        answers: all of them, by setting and question.
        warnings: what a reader must know.
        command: that makes it again.
        protocol: index (documents, passages, embedding), questions (source, seed, kinds), k,
            mode, context, answer tokens, how answers are judged.
        versions: of nybble and the engine.
        hardware: it ran on.
    """

    title: str
    said: str
    worded: str
    retrieval: list[Retrieval]
    rows: list[RagRow]
    questions: list[RagQuestion]
    answers: list[RagAnswer]
    warnings: list[str]
    command: str
    created: str
    protocol: dict[str, Any]
    versions: dict[str, str]
    hardware: dict[str, Any] = field(default_factory=dict)
    schema_version: int = RAG_SCHEMA_VERSION

    def of(self, setting: str) -> list[RagAnswer]:
        """Answers of a row, by question."""
        return sorted((a for a in self.answers if a.setting == setting), key=lambda a: a.question)


def to_json(record: RagRun) -> str:
    """Canonical JSON: sorted keys, no NaN."""
    data = dataclasses.asdict(record)
    return json.dumps(data, sort_keys=True, indent=1, allow_nan=False, ensure_ascii=False)


def from_json(text: str) -> RagRun:
    """Read a run back.

    Raises:
        NybbleError: not such a run, or of a newer schema.
    """
    try:
        data = json.loads(text)
        version = int(data["schema_version"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise NybbleError("not a run of nybble rag eval", seen=str(error)) from error
    if version > RAG_SCHEMA_VERSION:
        raise NybbleError(
            "this run was written by a newer nybble", seen=f"schema {version}",
            allowed=f"schema {RAG_SCHEMA_VERSION} or older", hint="pip install --upgrade nybble",
        )  # fmt: skip
    try:
        found = _build(RagRun, data)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise NybbleError("a damaged run of nybble rag eval", seen=str(error)) from error
    assert isinstance(found, RagRun)
    return found
