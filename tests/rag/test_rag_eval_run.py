"""An evaluation from questions to a record: pairing, resuming, and servers that die."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from rag_eval_doubles import Asker, Started, WordIndex, corpus

from nybble.errors import NybbleError
from nybble.rag.eval_answers import Lane
from nybble.rag.evaluate import EvalRequest, evaluate
from nybble.rag.questions import Question, generate
from nybble.results.rag import RagRow, RagRun, from_json, to_json
from nybble.scoring.tasks.paired import mcnemar, smallest_loss

WRONG = "I do not know."
F16, Q8, Q4 = "f16/f16", "q8_0/q8_0", "q4_0/q4_0"


@pytest.fixture(scope="module")
def index() -> WordIndex:
    return WordIndex(corpus())


@pytest.fixture(scope="module")
def questions(index: WordIndex) -> list[Question]:
    return generate(index, 16, seed=0)


def asked(questions: list[Question]) -> list[Question]:
    return [q for q in questions if q.answer]


def truth(questions: list[Question], wrong: dict[str, set[int]]) -> Asker:
    """Right answers that cite [1], but for some questions by setting."""
    number = {q.text: i for i, q in enumerate(asked(questions))}
    answer = {q.text: q.answer for q in questions}

    def say(setting: str, question: str) -> str:
        if number[question] in wrong.get(setting, ()):
            return WRONG
        return f"It is {answer[question]} [1]."

    return Asker(say)


def run(
    index: WordIndex, questions: list[Question], folder: Path, lanes: list[Lane], ask: Asker,
    **more: object,
) -> RagRun:  # fmt: skip
    request = EvalRequest(tuple(questions), "16 generated", out=folder, **more)  # type: ignore[arg-type]
    return evaluate(index, request, lanes, ask)  # type: ignore[arg-type]


def row(found: RagRun, setting: str) -> RagRow:
    return next(r for r in found.rows if r.setting == setting)


def test_retrieval_alone(index: WordIndex, questions: list[Question], tmp_path: Path) -> None:
    found = evaluate(index, EvalRequest(tuple(questions), "16 generated"))
    whole = {r.mode: r for r in found.retrieval if not r.kind}
    assert set(whole) == {"hybrid", "dense", "lexical"} and found.rows == []
    for r in found.retrieval:
        at = [r.recall[n].value for n in ("1", "5", "10")]
        assert at == sorted(at) and at[0] <= r.mrr.value <= at[2]
    ranks = [q.ranks["lexical"] for q in found.questions]
    assert whole["lexical"].recall["1"].value == sum(x == 1 for x in ranks) / len(ranks)
    assert whole["lexical"].mrr.value == pytest.approx(sum(1 / x for x in ranks if x) / len(ranks))
    assert whole["lexical"].recall["10"].value > whole["dense"].recall["10"].value
    assert {r.kind for r in found.retrieval} == {"", "cloze", "section", "keywords"}
    assert "retrieval only" in found.said
    assert from_json(to_json(found)) == found


def test_answers_are_paired(index: WordIndex, questions: list[Question], tmp_path: Path) -> None:
    """Four lost and one gained, by hand."""
    n = len(asked(questions))
    wrong = {F16: {5}, Q8: {5}, Q4: {0, 1, 2, 3}}
    started = Started()
    lanes = [started.lane(s) for s in (F16, Q8, Q4)]
    found = run(index, questions, tmp_path, lanes, truth(questions, wrong))
    assert [r.role for r in found.rows] == ["reference", "candidate", "candidate"]
    f16, q8, q4 = found.rows
    assert f16.accuracy is not None and f16.accuracy.value == pytest.approx((n - 1) / n)
    assert (f16.p, f16.change, f16.identical) == (None, None, None)
    assert (q8.lost, q8.gained, q8.p) == (0, 0, 1.0)
    assert q8.identical is not None and q8.identical.value == 1.0
    assert (q4.lost, q4.gained) == (4, 1)
    assert q4.p == pytest.approx(min(1.0, 2 * mcnemar(1, 4)))  # Holm: the smaller of two
    assert q4.change is not None and q4.change.value == pytest.approx(-3 / n)
    assert q4.identical is not None and q4.identical.value == pytest.approx((n - 5) / n)
    assert f"lost 4 and gained 1 of {n}" in found.said or "lost 4 and gained 1" in found.said
    assert found.said.startswith("No change of right answers that")
    least = smallest_loss(2)
    assert f"a loss of {least} or more" in found.said
    assert started.starts == [F16, Q8, Q4] and started.ends == [F16, Q8, Q4]
    stored = from_json((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert stored == found


def test_a_real_loss_is_said(index: WordIndex, questions: list[Question], tmp_path: Path) -> None:
    wrong = {Q4: set(range(9))}
    lanes = [Started().lane(s) for s in (F16, Q4)]
    found = run(index, questions, tmp_path, lanes, truth(questions, wrong))
    assert row(found, Q4).p == pytest.approx(2 * 0.5**9)
    assert found.said.startswith("Yes: q4_0/q4_0 loses answers, 9 lost and 0 gained of")


def test_too_few_right_answers_to_lose(
    index: WordIndex, questions: list[Question], tmp_path: Path
) -> None:
    n = len(asked(questions))
    wrong = {s: set(range(2, n)) for s in (F16, Q4)}
    lanes = [Started().lane(s) for s in (F16, Q4)]
    found = run(index, questions, tmp_path, lanes, truth(questions, wrong))
    assert "has only 2 right, and no loss of these could have been found" in found.said
    assert any("leave little to lose" in w for w in found.warnings)


def test_citations(index: WordIndex, questions: list[Question], tmp_path: Path) -> None:
    """One cites what is not there, one nothing; the rest cite the first source."""
    first, second = (q.text for q in asked(questions)[:2])
    said = {first: "x [99]", second: "x"}
    ask = Asker(lambda setting, question: said.get(question, "x [1]"))
    found = run(index, questions, tmp_path, [Started().lane(F16)], ask)
    n = len(asked(questions))
    (f16,) = found.rows
    assert f16.cites_unknown is not None and f16.cites_unknown.value == pytest.approx(1 / n)
    assert f16.cites_nothing is not None and f16.cites_nothing.value == pytest.approx(1 / n)
    good = [a for a in found.answers if a.cites_source]
    for a in found.answers:
        top = found.questions[a.question].ranks["hybrid"] == 1
        assert a.cites_source == (top and a.cited == [1]), a
    assert f16.cites_source is not None and f16.cites_source.value == pytest.approx(len(good) / n)
    assert found.said.endswith("open: no quantized cache has answered.")


def test_the_same_context_for_all(
    index: WordIndex, questions: list[Question], tmp_path: Path
) -> None:
    ask = truth(questions, {})
    run(index, questions, tmp_path, [Started().lane(s) for s in (F16, Q4)], ask, k=3)
    by_setting = {s: [(q, o.passages) for name, q, o in ask.asked if name == s] for s in (F16, Q4)}
    assert by_setting[F16] == by_setting[Q4]
    assert all(len(p) == 3 for _, p in by_setting[F16])
    assert all(o.temperature == 0 and not o.prefix for _, _, o in ask.asked)


def test_other_text_is_a_warning(
    index: WordIndex, questions: list[Question], tmp_path: Path
) -> None:
    ask = dataclasses.replace(truth(questions, {}), extra={Q4: " more"})
    found = run(index, questions, tmp_path, [Started().lane(s) for s in (F16, Q4)], ask)
    assert any(w.startswith(f"{Q4}: {len(asked(questions))} questions were asked over other text")
               for w in found.warnings)  # fmt: skip


def test_a_server_that_dies_fails_its_row_and_no_other(
    index: WordIndex, questions: list[Question], tmp_path: Path
) -> None:
    started = Started()
    lanes = [started.lane(s) for s in (F16, Q8, Q4)]
    ask = dataclasses.replace(truth(questions, {}), dies={Q8: 4})
    found = run(index, questions, tmp_path, lanes, ask)
    q8 = row(found, Q8)
    assert (q8.status, q8.n_questions, q8.accuracy, q8.p) == ("failed", 4, None, None)
    assert q8.error is not None and q8.error.startswith("the server is gone")
    assert row(found, Q4).status == "done" and row(found, Q4).p == 1.0
    assert started.ends == [F16, Q8, Q4]
    assert any("failed after 4 answers; they are kept" in w for w in found.warnings)
    # The same again goes on: only what is missing is asked, of the one server that is needed.
    later = truth(questions, {})
    again = run(index, questions, tmp_path, lanes, later)
    assert {s for s, _, _ in later.asked} == {Q8}
    assert len(later.asked) == len(asked(questions)) - 4
    assert started.starts[3:] == [Q8] and row(again, Q8).status == "done"


def test_a_reference_that_fails_leaves_the_question_open(
    index: WordIndex, questions: list[Question], tmp_path: Path
) -> None:
    started = Started(refuses=(F16,))
    lanes = [started.lane(s) for s in (F16, Q4)]
    found = run(index, questions, tmp_path, lanes, truth(questions, {}))
    assert row(found, F16).error == "it does not start\n  seen:    f16/f16"
    q4 = row(found, Q4)
    assert (q4.status, q4.p, q4.change) == ("done", None, None) and q4.accuracy is not None
    assert "is open" in found.said and started.ends == [Q4]


def test_nothing_is_asked_twice(
    index: WordIndex, questions: list[Question], tmp_path: Path
) -> None:
    lanes = [Started().lane(s) for s in (F16, Q4)]
    first = run(index, questions, tmp_path, lanes, truth(questions, {Q4: {1}}))
    started, ask = Started(), truth(questions, {})
    again = run(index, questions, tmp_path, [started.lane(s) for s in (F16, Q4)], ask)
    assert ask.asked == [] and started.starts == []
    assert again.answers == first.answers and again.rows == first.rows


@pytest.mark.parametrize("change", ["model", "setting", "tokens", "k", "fresh"])
def test_what_decides_an_answer_makes_it_new(
    index: WordIndex, questions: list[Question], tmp_path: Path, change: str
) -> None:
    run(index, questions, tmp_path, [Started().lane(F16)], truth(questions, {}))
    model = "sha-b" if change == "model" else "sha-a"
    setting = "bf16/bf16" if change == "setting" else F16
    more: dict[str, object] = {"tokens": {"answer_tokens": 64}, "k": {"k": 2},
                               "fresh": {"fresh": True}}.get(change, {})  # fmt: skip
    ask = truth(questions, {})
    run(index, questions, tmp_path, [Started().lane(setting, model=model)], ask, **more)
    assert len(ask.asked) == len(asked(questions))


def test_a_line_cut_short_is_asked_again(
    index: WordIndex, questions: list[Question], tmp_path: Path
) -> None:
    lanes = [Started().lane(F16)]
    run(index, questions, tmp_path, lanes, truth(questions, {}))
    path = tmp_path / "answers.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    damaged = [*lines[:-3], b"{}\n", b'{"key": "k", "text": 5, "shown": 1}\n', lines[-1][:40]]
    path.write_bytes(b"".join(damaged))
    ask = truth(questions, {})
    found = run(index, questions, tmp_path, lanes, ask)
    assert len(ask.asked) == 3 and row(found, F16).status == "done"
    kept = [json.loads(x) for x in path.read_text(encoding="utf-8").splitlines()]
    assert len({k["key"] for k in kept if len(k) > 3}) == len(asked(questions))


def test_a_better_judge_needs_no_new_answers(
    index: WordIndex, questions: list[Question], tmp_path: Path
) -> None:
    one = asked(questions)[0]
    lanes = [Started().lane(F16)]
    run(index, questions, tmp_path, lanes, Asker(lambda s, q: "forty-two"))
    better = [dataclasses.replace(q, answers=("forty two",)) if q is one else q for q in questions]
    ask = truth(questions, {})
    found = run(index, better, tmp_path, lanes, ask)
    assert ask.asked == [] and sum(a.right for a in found.answers) == 1


def test_hardened_is_a_row_of_its_own(
    index: WordIndex, questions: list[Question], tmp_path: Path
) -> None:
    started = Started()
    lanes = [started.lane(F16), started.lane(Q4), started.lane(Q4, "hardened", "sha-h")]
    ask = truth(questions, {Q4: {0, 1}})
    found = run(index, questions, tmp_path, lanes, ask)
    assert [r.setting for r in found.rows] == [F16, Q4, f"{Q4} hardened"]
    assert row(found, Q4).lost == 2 and row(found, f"{Q4} hardened").lost == 0
    assert row(found, f"{Q4} hardened").mark == "hardened"


def test_a_second_16_bit_cache_is_the_floor(
    index: WordIndex, questions: list[Question], tmp_path: Path
) -> None:
    lanes = [Started().lane(s) for s in (F16, "bf16/bf16", Q4)]
    found = run(index, questions, tmp_path, lanes, truth(questions, {"bf16/bf16": {0}}))
    floor = row(found, "bf16/bf16")
    assert (floor.role, floor.p, floor.lost) == ("floor", None, 1)
    assert row(found, Q4).p == 1.0 and "(noise floor)" in found.worded


def test_few_documents_have_no_interval(index: WordIndex, tmp_path: Path) -> None:
    small = WordIndex(dict(list(corpus().items())[:3]))
    questions = generate(small, 6, seed=0)
    found = run(small, questions, tmp_path, [Started().lane(F16)], truth(questions, {}))
    assert found.rows[0].accuracy is not None and found.rows[0].accuracy.low is None
    assert any("no intervals below 5" in w for w in found.warnings)


def test_what_cannot_be_compared(
    index: WordIndex, questions: list[Question], tmp_path: Path
) -> None:
    ask = truth(questions, {})
    with pytest.raises(NybbleError, match="no 16-bit cache to compare with"):
        run(index, questions, tmp_path, [Started().lane(Q4)], ask)
    with pytest.raises(NybbleError, match="asked for twice"):
        run(index, questions, tmp_path, [Started().lane(F16), Started().lane(F16)], ask)
    only = [q for q in questions if q.kind == "keywords"]
    with pytest.raises(NybbleError, match="none of the questions has an answer"):
        run(index, only, tmp_path, [Started().lane(F16)], ask)
    with pytest.raises(NybbleError, match="there are no questions"):
        EvalRequest((), "none")
    with pytest.raises(NybbleError, match="--k is out of range"):
        EvalRequest(tuple(questions), "x", k=0)
    with pytest.raises(NybbleError, match="need a folder"):
        evaluate(index, EvalRequest(tuple(questions), "x"), [Started().lane(F16)], ask)  # type: ignore[arg-type]
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(NybbleError, match="cannot write to the run folder"):
        run(index, questions, tmp_path / "file", [Started().lane(F16)], ask)


def test_a_folder_in_use(index: WordIndex, questions: list[Question], tmp_path: Path) -> None:
    def say(setting: str, question: str) -> str:
        with pytest.raises(NybbleError, match="another nybble run"):
            run(index, questions, tmp_path, [Started().lane(F16)], Asker(lambda s, q: "x"))
        return "x"

    run(index, questions[:4], tmp_path, [Started().lane(F16)], Asker(say))


@pytest.mark.parametrize(
    ("text", "words"),
    [("{}", "not a run"), ("[]", "not a run"), ('{"schema_version": 99}', "newer nybble"),
     ('{"schema_version": 1}', "damaged")],
)  # fmt: skip
def test_records_that_are_none(text: str, words: str) -> None:
    with pytest.raises(NybbleError, match=words):
        from_json(text)
