"""Questions written with their sources for `nybble measure --tasks`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from rag_eval_doubles import WordIndex, corpus
from rag_index_doubles import Silent

from nybble.cli.main import main
from nybble.errors import NybbleError
from nybble.rag import judge
from nybble.rag.questions import Question, generate
from nybble.rag.task_file import HEAD, Written, write_tasks
from nybble.scoring.tasks.own import read_own
from nybble.scoring.tasks.registry import TASKS


@pytest.fixture(scope="module")
def index() -> WordIndex:
    return WordIndex(corpus())


def written(
    index: WordIndex, folder: Path, questions: list[Question], k: int = 4, seed: int = 0
) -> tuple[Written, list[dict[str, Any]]]:
    path = folder / "tasks.jsonl"
    done = write_tasks(index, questions, k, "hybrid", seed, path, Silent())  # type: ignore[arg-type]
    return done, [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_line_can_be_answered_and_its_wrong_options_are_wrong(
    index: WordIndex, tmp_path: Path
) -> None:
    questions = generate(index, 24, seed=0)
    done, lines = written(index, tmp_path, questions)
    assert done.asked == len(lines) >= 8
    assert done.asked + done.unfound + done.unanswered == len(questions)
    assert done.unanswered >= sum(not q.answer for q in questions)
    asked = {q.text: q for q in questions}
    assert sum("lead" in line for line in lines) >= 4
    for line in lines:
        question = asked[line["question"]]
        assert line["task"] == f"rag-{question.kind}"
        assert line["context"].startswith(HEAD) and "\n\n[2] " in line["context"]
        # The retrieved sources hold the passage that the question was made of, or one like it.
        assert any(
            p.text.strip()[:40] in line["context"]
            for d in index.documents() for p in index.passages_of(d.path)
            if p.id in question.accepted
        )  # fmt: skip
        if "lead" in line:  # what stands before the answer in a source
            assert question.kind == "cloze" and 4 <= len(line["lead"].split()) <= 14
            assert line["lead"] in " ".join(line["context"].split())
        accepted = judge.accepted(question)
        assert line["answers"] == list(accepted) and 1 <= len(line["wrong"]) <= 3
        for option in line["wrong"]:
            assert not judge.right(option, accepted)
            assert judge.reduced(option) not in judge.reduced(accepted[0])


def test_the_file_is_one_that_measure_reads(index: WordIndex, tmp_path: Path) -> None:
    questions = generate(index, 16, seed=1)
    done, _ = written(index, tmp_path, questions)
    file = read_own(tmp_path / "tasks.jsonl", ("all", *TASKS))
    assert sum(len(c.queries) for cs in file.contexts.values() for c in cs) == done.asked
    assert set(file.contexts) <= {"rag-cloze", "rag-section"}


def test_the_same_seed_writes_the_same_file(index: WordIndex, tmp_path: Path) -> None:
    questions = generate(index, 16, seed=1)
    _, first = written(index, tmp_path, questions)
    _, again = written(index, tmp_path, questions)
    _, other = written(index, tmp_path, questions, seed=5)
    assert first == again
    assert [line["wrong"] for line in first] != [line["wrong"] for line in other]


def test_options_have_the_answers_shape(index: WordIndex, tmp_path: Path) -> None:
    questions = [q for q in generate(index, 24, seed=0) if q.answer and q.answer[0].isdigit()]
    _, lines = written(index, tmp_path, questions, k=8)
    near = [w for line in lines for w in line["wrong"] if w in line["context"]]
    assert near and all(any(c.isdigit() for c in w) for line in lines for w in line["wrong"])


def test_nothing_to_ask(index: WordIndex, tmp_path: Path) -> None:
    keywords = generate(index, 4, seed=0, kinds=("keywords",))
    with pytest.raises(NybbleError, match="no question can be asked of its sources") as caught:
        written(index, tmp_path, keywords)
    assert "4 without an answer" in str(caught.value.seen)
    assert not (tmp_path / "tasks.jsonl").exists()


def test_from_the_command_line(
    index: WordIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nybble.rag.index.open_index", lambda path, **named: index)
    monkeypatch.delitem(sys.modules, "nybble.rag.ask", raising=False)
    assert main(["rag", "eval", "--generate", "12", "--write-tasks", "q.jsonl", "--k", "3"]) == 0
    out = capsys.readouterr().out
    assert "questions in q.jsonl" in out and "nybble measure MODEL --tasks q.jsonl" in out
    assert (tmp_path / "q.jsonl").is_file() and not (tmp_path / "nybble-results").exists()
    for wrong, words in (
        (["--write-tasks", "q.txt"], "--write-tasks q.jsonl"),
        (["--write-tasks", "q.jsonl", "--model", "x.gguf"], "tasks are asked by nybble measure"),
    ):
        assert main(["rag", "eval", "--generate", "4", *wrong]) == 1
        assert words in capsys.readouterr().err
