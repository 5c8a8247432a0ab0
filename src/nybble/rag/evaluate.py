"""`rag eval`: the same questions, over the same passages, answered from 16-bit and smaller caches.

Retrieval is done once; each KV setting's server then gets the same question with the same
passages at temperature 0, one server after the other. What differs between two rows is the cache.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nybble.environment import hardware, versions
from nybble.errors import NybbleError
from nybble.rag import judge
from nybble.rag.answers import Options
from nybble.rag.eval_answers import Ask, Asked, Lane, LaneResult, answer_lane
from nybble.rag.eval_retrieval import Found, Searched, search_all, summary
from nybble.rag.eval_rows import otherwise_packed, rows, sentence, wording
from nybble.rag.eval_store import AnswerStore
from nybble.rag.questions import Question
from nybble.results.rag import RagQuestion, RagRow, RagRun, to_json
from nybble.results.store import write_text
from nybble.scoring.request import Progress, Silent
from nybble.scoring.statistics import MIN_DOCUMENTS

JUDGED = ("right: an accepted answer is in the text, compared by letters and digits; "
          "a citation is right where a cited source is one that answers")  # fmt: skip
_EMPTY = 0.2  # accuracy of the reference below which most lost answers cannot be seen


@dataclass(frozen=True)
class EvalRequest:
    """What to evaluate.

    Attributes:
        questions: asked in this order.
        origin: where they are from, in words.
        title: of the run, for example the folder's name.
        k: passages retrieved for an answer.
        mode: of retrieval for answers; recall is shown for all.
        answer_tokens: an answer's longest.
        context: tokens of context, where a server does not tell its own.
        timeout: seconds of silence after which a server counts as gone.
        seed: of the resampling.
        out: run folder; None to keep nothing, only without lanes.
        fresh: ask again what has an answer.
        about: of the index and the questions, for the protocol.
        command: the command line, kept in the record.

    Raises:
        NybbleError: no questions, or a value out of range.
    """

    questions: tuple[Question, ...]
    origin: str
    title: str = ""
    k: int = 8
    mode: str = "hybrid"
    answer_tokens: int = 128
    context: int | None = None
    timeout: float = 600.0
    seed: int = 0
    out: Path | None = None
    fresh: bool = False
    about: dict[str, Any] = field(default_factory=dict)
    command: str = ""

    def __post_init__(self) -> None:
        if not self.questions:
            raise NybbleError("there are no questions", hint="--generate 50")
        if self.seed < 0:
            raise NybbleError("--seed is out of range", seen=self.seed, allowed="0 or more")
        self.options()

    def options(self) -> Options:
        """How servers are asked.

        Raises:
            NybbleError: a value out of range.
        """
        return Options(k=self.k, mode=self.mode, context=self.context, prefix=False,
                       answer_tokens=self.answer_tokens, timeout=self.timeout)  # fmt: skip


def evaluate(
    index: Searched, request: EvalRequest, lanes: Sequence[Lane] = (), ask: Ask | None = None,
    progress: Progress | None = None,
) -> RagRun:  # fmt: skip
    """Measure retrieval, and with lanes how answers change from one KV setting to the next.

    The same request again continues where it stopped: answers that are there are read, not asked.

    Args:
        index: of the documents.
        request: questions and protocol.
        lanes: KV settings; the first in 16 bits is what the others are compared with.
        ask: answers a question; None for `rag.ask.ask`.
        progress: told how far the run is; silent without one.

    Returns:
        The run; with a folder also written there as summary.json.

    Raises:
        NybbleError: no lane is in 16 bits, two are alike, or the folder cannot be written. What
            fails in a lane is in its row.
    """
    progress = progress or Silent()
    check_lanes(lanes)
    if lanes and request.out is None:
        raise NybbleError("answers need a folder to be kept in", hint="--out FOLDER")
    found = search_all(index, request.questions, request.k, request.mode, progress)
    questions = [
        RagQuestion(q.text, list(judge.accepted(q)), q.document, q.kind, f.ranks)
        for q, f in zip(request.questions, found, strict=True)
    ]
    results = _answers(index, request, lanes, found, ask, progress) if lanes else []
    progress.stage("computing intervals")
    table = rows(results, questions, request.seed) if results else []
    run = RagRun(
        title=request.title,
        said=sentence(table),
        worded=wording(table),
        retrieval=summary(request.questions, found, request.seed),
        rows=table,
        questions=questions,
        answers=[a for r in results for a in r.answers],
        warnings=_warnings(request, table, results, questions),
        command=request.command,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        protocol=_protocol(request, lanes),
        versions=versions(),
        hardware=hardware(),
    )
    if request.out is not None:
        request.out.mkdir(parents=True, exist_ok=True)
        write_text(request.out / "summary.json", to_json(run))
    return run


def check_lanes(lanes: Sequence[Lane]) -> None:
    """Refuse lanes that cannot be compared, before any server starts.

    Raises:
        NybbleError: none is in 16 bits, or two have one name.
    """
    names = [lane.name for lane in lanes]
    if twice := [n for n, count in Counter(names).items() if count > 1]:
        raise NybbleError("a KV setting is asked for twice", seen=", ".join(twice),
                          allowed="each once")  # fmt: skip
    if lanes and not any(lane.sixteen and not lane.mark for lane in lanes):
        raise NybbleError(
            "there is no 16-bit cache to compare with", seen=", ".join(names),
            allowed="f16/f16 among them", hint=f"--kv f16/f16,{lanes[0].setting}",
        )  # fmt: skip


def _answers(
    index: Searched, request: EvalRequest, lanes: Sequence[Lane], found: Sequence[Found],
    ask: Ask | None, progress: Progress,
) -> list[LaneResult]:  # fmt: skip
    if ask is None:
        from nybble.rag.ask import ask as real

        ask = real
    asked = [
        Asked(number, question, f)
        for number, (question, f) in enumerate(zip(request.questions, found, strict=True))
        if judge.accepted(question)
    ]
    if not asked:
        raise NybbleError("none of the questions has an answer to compare with",
                          seen=request.origin, hint="--generate 50 makes some")  # fmt: skip
    assert request.out is not None
    with AnswerStore(request.out, request.fresh) as store:
        results = []
        for lane in lanes:
            result = answer_lane(index, lane, asked, request.options(), store, ask, progress)
            if result.error is not None:
                first = result.error.splitlines()[0]
                progress.note(f"{lane.name} failed after {len(result.answers)} of {len(asked)} "
                              f"answers: {first}")  # fmt: skip
            results.append(result)
    return results


def _warnings(
    request: EvalRequest, table: Sequence[RagRow], results: Sequence[LaneResult],
    questions: Sequence[RagQuestion],
) -> list[str]:  # fmt: skip
    found = otherwise_packed(results) if results else []
    for row in table:
        if row.status == "failed":
            found.append(f"{row.setting} failed after {row.n_questions} answers; they are kept, "
                         "and the same command goes on with the rest")  # fmt: skip
    found += [
        f"{r.lane.name}: {r.kept} answers of {r.lane.file} are an earlier run's; if another model "
        "or setting runs there since, --fresh asks it again"
        for r in results
        if r.lane.remote and r.kept
    ]
    documents = len({q.document for q in questions})
    if documents < MIN_DOCUMENTS:
        found.append(f"the questions are about {documents} documents, and those about one err "
                     f"together: no intervals below {MIN_DOCUMENTS}")  # fmt: skip
    reference = next((r for r in table if r.role == "reference"), None)
    if reference and reference.accuracy and reference.accuracy.value < _EMPTY:
        found.append(f"{reference.setting} answers {reference.accuracy.value:.0%} rightly: so few "
                     "leave little to lose, a larger model shows more")  # fmt: skip
    cut = sum(a.finish == "length" for r in results for a in r.answers)
    total = sum(len(r.answers) for r in results)
    if total and cut > total / 4:
        found.append(f"{cut} of {total} answers were cut at {request.answer_tokens} tokens "
                     "(--answer-tokens)")  # fmt: skip
    return found


def _protocol(request: EvalRequest, lanes: Sequence[Lane]) -> dict[str, Any]:
    kinds = Counter(q.kind for q in request.questions)
    told: dict[str, Any] = {
        "questions": request.origin, "kinds": dict(sorted(kinds.items())), "k": request.k,
        "mode": request.mode, "seed": request.seed, **request.about,
    }  # fmt: skip
    if lanes:
        told |= {
            "temperature": 0, "answer_tokens": request.answer_tokens, "judged": JUDGED,
            "models": {lane.file: lane.model for lane in lanes},
            "engines": sorted({lane.engine for lane in lanes}),
        }  # fmt: skip
        if request.context is not None:
            told["context"] = request.context
    return told
