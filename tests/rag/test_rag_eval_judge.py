"""Right and wrong answers, and passages that answer."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nybble.rag import judge
from nybble.rag.passages import Passage
from nybble.rag.questions import Question


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("The port is 8080 [1].", "8080"),
        ("It holds 1,024 cells", "1024"),
        ("It holds 1024 cells", "1,024"),
        ("Use functools.total_ordering for it.", "functools.total_ordering()"),
        ("Call it **TB_NEXT**.", "tb_next"),
        ("the lantern", "The Lantern"),
        ("the green [2] lantern", "green lantern"),
        ("ＰＬＡＴＥ index", "plate_index"),
        ("floor division is written //", "//"),
        ("kept for 35 years", "35"),
    ],
)
def test_right(text: str, accepted: str) -> None:
    assert judge.right(text, ["something else", accepted])


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("", "8080"),
        ("port 18080", "8080"),
        ("see [35]", "35"),  # a citation is no answer
        ("see [3, 35] and [34-35]", "35"),
        ("1,024,5", "10245"),
        ("lanterns", "lantern"),
        ("nothing", "//"),
        ("nothing", ""),
    ],
)
def test_wrong(text: str, accepted: str) -> None:
    assert not judge.right(text, [accepted] if accepted else [])


@given(st.text(), st.text(min_size=1))
def test_an_answer_is_found_wherever_it_stands(around: str, answer: str) -> None:
    wanted = judge.reduced(answer)
    assert judge.reduced(judge.reduced(around)) == judge.reduced(around)
    if wanted:
        assert judge.right(f"{wanted} and more", [answer])


def passage(number: int, document: str = "a.md", heading: str = "") -> Passage:
    return Passage(number, document, "A", heading, None, 0, 1, 1, "x")


def test_passages_that_answer() -> None:
    made = Question("q", "a", "a.md", 4, "cloze", also=(9,))
    assert [judge.answers(made, passage(n, "b.md")) for n in (4, 9, 5)] == [True, True, False]
    own = Question("q", "a", "a.md", -1, "file")
    assert judge.answers(own, passage(5)) and not judge.answers(own, passage(5, "b.md"))
    part = dataclasses.replace(own, heading="The ports")
    assert judge.answers(part, passage(5, heading="Ports"))
    assert not judge.answers(part, passage(5, heading="Other ports"))
