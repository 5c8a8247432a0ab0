"""Questions of a user's own: the file, what is made of it, and a whole run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nybble.errors import NybbleError
from nybble.formats import parse
from nybble.scoring.request import MeasureRequest
from nybble.scoring.tasks.measure import TaskResult, measure_tasks, plan_tasks
from nybble.scoring.tasks.own import (
    UNKNOWN,
    OwnFile,
    own_items,
    read_own,
    unpack_contexts,
)
from nybble.scoring.tasks.registry import TASKS
from nybble.scoring.tasks.request import TaskRequest

TAKEN = ("all", *TASKS)
NOTES = "The pump was painted green in May. Its valve opens at 40 bar."
GREEN = {"context": NOTES, "question": "Which colour has the pump?", "answer": "green",
         "wrong": ["red", "blue"]}  # fmt: skip
BAR = {"context": NOTES, "question": "At how many bar does the valve open?", "answer": 40,
       "answers": ["forty"], "wrong": [30, 50], "lead": "It opens at "}  # fmt: skip


def written(folder: Path, *lines: dict[str, Any] | str) -> Path:
    path = folder / "mine.jsonl"
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(text), encoding="utf-8")
    return path


def found(folder: Path, *lines: dict[str, Any] | str) -> OwnFile:
    return read_own(written(folder, *lines), TAKEN)


def count(text: str) -> int:
    return len(text.split())


def test_questions_about_one_context_are_one_item(tmp_path: Path) -> None:
    file = found(tmp_path, GREEN, "", BAR, {**GREEN, "context": "Green paint."})
    (first, second) = file.contexts["own"]
    assert (first.text, second.text) == (NOTES, "Green paint.")
    green, bar = first.queries
    assert green.options == (" green", " red", " blue") and green.lead == "The answer is"
    assert green.depth == NOTES.index("green") / len(NOTES)
    assert (bar.answers, bar.options) == (("40", "forty"), (" 40", " 30", " 50"))
    assert bar.lead == "It opens at"
    assert second.queries[0].depth == UNKNOWN  # "Green", not "green"
    assert unpack_contexts(file.pack("own", None)) == [first, second]
    assert unpack_contexts(file.pack("own", 1)) == [first]
    task = file.task("own")
    assert task.title == "questions of mine.jsonl"
    assert task.right(bar, " forty bar.") and task.right(bar, " 40.")
    assert not task.right(bar, " 30, or 40.") and not task.right(bar, " many.")


def test_answers_of_other_lines_stand_in_for_wrong_ones(tmp_path: Path) -> None:
    lines = [{"task": "names", "context": f"{n} came.", "question": "Who?", "answer": n}
             for n in ("Ada", "Ben", "Cy", "Di", "ada")]  # fmt: skip
    file = found(tmp_path, *lines, {**GREEN, "task": "other"})
    for context in file.contexts["names"]:
        (query,) = context.queries
        wrong = [o.strip() for o in query.options[1:]]
        assert len(wrong) == 3 and query.answers[0].lower() not in [w.lower() for w in wrong]
        assert set(wrong) <= {"Ada", "Ben", "Cy", "Di", "ada"}
        assert query.about == {"wrong": wrong}
    assert found(tmp_path, *lines, {**GREEN, "task": "other"}) == file


def test_items_that_do_not_fit_are_left_out_and_keep_their_numbers(tmp_path: Path) -> None:
    long = {**GREEN, "context": "word " * 500 + NOTES}
    file = found(tmp_path, long, *[{**GREEN, "question": f"{i}?"} for i in range(5)])
    items = own_items("own", file.contexts["own"], 100, 2, count)
    assert [(i.index, len(i.queries)) for i in items] == [(1, 2), (2, 2), (3, 1)]
    assert file.items("own", None, 2) == 4
    assert [i.index for i in own_items("own", file.contexts["own"], 1000, 8, count)] == [0, 1]
    assert all(q.most == 32 for i in items for q in i.queries)
    wordy = {**GREEN, "wrong": ["so " * 60, "red"]}
    (item,) = own_items("own", found(tmp_path, wordy).contexts["own"], 1000, 8, count)
    assert item.queries[0].most == 68


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("nonsense", ["not a line of JSON", "mine.jsonl, line 2"]),
        ("[1]", ["not a question", "list"]),
        ("[" * 100_000, ["not a line of JSON"]),
        ({**GREEN, "qestion": "x"}, ["did you mean question", "line 2: qestion"]),
        ({**GREEN, "context": ""}, ["context is not a text"]),
        ({**GREEN, "context": 5}, ["context is not a text"]),
        ({**GREEN, "answer": True}, ["answer is not a text", "True"]),
        ({**GREEN, "question": "a\0b"}, ["question is not a text"]),
        ({**GREEN, "wrong": "red"}, ["wrong is not a list"]),
        ({**GREEN, "wrong": ["red", "Red"]}, ["all different"]),
        ({**GREEN, "wrong": ["Green"]}, ["none of them right"]),
        ({**GREEN, "wrong": [str(i) for i in range(40)]}, ["up to 32"]),
        ({**GREEN, "task": "needle"}, ["task of your own", "needle"]),
        ({**GREEN, "task": "../x"}, ["task of your own", "../x"]),
        ({k: v for k, v in GREEN.items() if k != "answer"}, ["without an answer"]),
        ({**GREEN, "task": "alone", "wrong": []}, ["nothing to choose from"]),
    ],
)
def test_what_is_wrong_with_a_line(
    tmp_path: Path, line: dict[str, Any] | str, words: list[str]
) -> None:
    with pytest.raises(NybbleError) as caught:
        found(tmp_path, GREEN, line)
    for word in words:
        assert word in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(NybbleError, match="no question"):
        found(tmp_path, "", " ")
    with pytest.raises(NybbleError, match=r"cannot read the questions[\s\S]*No such file"):
        read_own(tmp_path / "none.jsonl", TAKEN)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_in_words(data: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.jsonl"
        path.write_bytes(data)
        with pytest.raises(NybbleError):
            read_own(path, TAKEN)


def run(model: Path, out: Path, own: Path, **changes: Any) -> TaskResult:
    return measure_tasks(request(model, out, own, **changes))


def request(model: Path, out: Path, own: Path, **changes: Any) -> TaskRequest:
    tasks = changes.pop("tasks", None)
    measured: dict[str, Any] = {
        "model": model, "out": out, "contexts": (300, 400), "threads": 2,
        "settings": (parse("q8_0"), parse("q4_0")), **changes,
    }  # fmt: skip
    return TaskRequest(MeasureRequest(**measured), tasks, own=own)


def test_a_run_over_a_file(tiny_model: Path, tmp_path: Path) -> None:
    too_long = {**GREEN, "context": "word " * 2000}
    lines = [{**GREEN, "context": f"Note {i}. {NOTES}"} for i in range(5)]
    own = written(tmp_path, *lines, BAR, too_long)
    done = run(tiny_model, tmp_path / "run", own).run
    reference = next(c for c in done.cells if c.role == "reference" and not c.depth)
    # Asked once, at the longer length; the longest context is left out and named.
    assert {c.length for c in done.cells} == {400} and {c.task for c in done.cells} == {"own"}
    assert (reference.n_items, reference.n_queries, reference.chance) == (
        6,
        6,
        pytest.approx(1 / 3),
    )
    assert any("1 of 7 contexts left out, longer than 400 tokens" in w for w in done.warnings)
    assert done.protocol["tasks"] == [
        {"name": "own", "title": "questions of mine.jsonl", "source": ""}
    ]
    assert done.protocol["own"].startswith("mine.jsonl, sha256 ")
    lossy = next(c for c in done.cells if c.setting == "q4_0/q4_0" and not c.depth)
    assert lossy.answer_nll is not None and lossy.answer_nll.low is not None
    # With a task of the registry beside it, what is there is not asked again.
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "run/tasks").glob("own-*")}
    both = run(tiny_model, tmp_path / "run", own, tasks=("needle",), contexts=(400,), documents=6)
    assert {c.task for c in both.run.cells} == {"all", "needle", "own"}
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "run/tasks").glob("own-*")} == before
    planned = plan_tasks(request(tiny_model, tmp_path / "run", own))
    assert [(p.task, p.length, p.contexts, p.queries) for p in planned] == [("own", 400, 7, 1)]


def test_a_file_of_contexts_that_are_all_too_long(tiny_model: Path, tmp_path: Path) -> None:
    own = written(tmp_path, {**GREEN, "context": "word " * 2000})
    with pytest.raises(NybbleError, match="every context is too long"):
        run(tiny_model, tmp_path / "run", own)
