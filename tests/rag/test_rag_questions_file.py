"""A user's own questions: what is read, and what is refused with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nybble.errors import NybbleError
from nybble.rag import judge
from nybble.rag.question_file import digest, read_questions

DOCUMENTS = {"notes.md": "notes.md", "sub/c# guide.md": "sub/c# guide.md", "copy.md": "notes.md"}
GOOD = {"question": "What port?", "answer": "8080", "source": "notes.md"}


def write(folder: Path, *lines: object) -> Path:
    path = folder / "q.jsonl"
    text = "\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines)
    path.write_text(text, encoding="utf-8")
    return path


def test_what_is_read(tmp_path: Path) -> None:
    path = write(
        tmp_path, GOOD, "", {**GOOD, "answers": ["8,080", "http-alt"], "source": "notes.md#Ports "},
        {**GOOD, "answer": 8080, "source": "sub/c# guide.md"},
        {"question": "q", "answers": ["a"], "source": "./sub\\c# guide.md#Part"},
    )  # fmt: skip
    one, two, three, four = read_questions(path, DOCUMENTS)
    assert (one.text, one.answer, one.document, one.heading) == (
        "What port?", "8080", "notes.md", "",
    )  # fmt: skip
    assert one.passage_id == -1 and one.kind == "file" and not one.accepted
    assert judge.accepted(two) == ("8080", "8,080", "http-alt") and two.heading == "Ports"
    assert three.answer == "8080" and three.document == "sub/c# guide.md" and three.heading == ""
    assert (four.document, four.heading, four.answer) == ("sub/c# guide.md", "Part", "a")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{bad", "not a line of JSON"),
        ("[1]", "not a question"),
        ({**GOOD, "anwser": "x"}, "unknown field of a question; did you mean answer?"),
        ({"question": "q", "source": "notes.md"}, "a question without an answer"),
        ({**GOOD, "answers": "x"}, "answers is not a list"),
        ({**GOOD, "answers": [""]}, "answer is not a text"),
        ({**GOOD, "question": " "}, "question is not a text"),
        ({**GOOD, "question": 5}, "question is not a text"),
        ({**GOOD, "question": "x" * 20_001}, "question is not a text"),
        ({**GOOD, "answer": True}, "answer is not a text"),
        ({"question": "q", "answer": "a"}, "source is not a text"),
        ({**GOOD, "source": "note.md"}, "the source is not in the index"),
        ({**GOOD, "source": "../../etc/passwd#root"}, "the source is not in the index"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: object, words: str) -> None:
    with pytest.raises(NybbleError) as error:
        read_questions(write(tmp_path, GOOD, "", line), DOCUMENTS)
    assert error.value.what == words and "q.jsonl, line 3" in str(error.value)


def test_the_nearest_source_is_offered(tmp_path: Path) -> None:
    with pytest.raises(NybbleError) as error:
        read_questions(write(tmp_path, {**GOOD, "source": "note.md#Ports"}), DOCUMENTS)
    assert error.value.allowed == "notes.md"


def test_a_copy_stands_for_what_was_indexed(tmp_path: Path) -> None:
    lines = [{**GOOD, "source": s} for s in ("copy.md", "copy.md#Ports")]
    one, two = read_questions(write(tmp_path, *lines), DOCUMENTS)
    assert (one.document, two.document, two.heading) == ("notes.md", "notes.md", "Ports")


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(NybbleError, match="cannot read the questions"):
        read_questions(tmp_path / "absent", DOCUMENTS)
    with pytest.raises(NybbleError, match="cannot read the questions"):
        read_questions(tmp_path, DOCUMENTS)
    with pytest.raises(NybbleError, match="the file has no question"):
        read_questions(write(tmp_path, "", "  "), DOCUMENTS)
    (tmp_path / "latin").write_bytes(b'{"question": "caf\xe9"}')
    with pytest.raises(NybbleError, match="not a line of JSON"):
        read_questions(tmp_path / "latin", DOCUMENTS)


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "bom"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n")
    assert len(read_questions(path, DOCUMENTS)) == 1 and len(digest(path)) == 16


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes
) -> None:
    path = tmp_path_factory.mktemp("any") / "q.jsonl"
    path.write_bytes(raw)
    with pytest.raises(NybbleError):
        read_questions(path, DOCUMENTS)


@given(
    st.dictionaries(
        st.sampled_from(["question", "answer", "answers", "source"]),
        st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=9),
                     lambda x: st.lists(x, max_size=3), max_leaves=4),
    )
)  # fmt: skip
def test_any_object_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: dict[str, object]
) -> None:
    path = write(tmp_path_factory.mktemp("any"), data)
    try:
        (found,) = read_questions(path, DOCUMENTS)
    except NybbleError as error:
        assert "line 1" in str(error)
        return
    assert found.document in DOCUMENTS.values() and judge.accepted(found)
