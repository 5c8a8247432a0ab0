"""Citations and quotations: what is there, what is not, and what is none."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rag_ask_doubles import passage

from nybble.rag.citations import check, plain, supported
from nybble.rag.pack import pack

SOURCES = pack(
    [
        passage(1, "The crane lifts\n  *forty* tonnes, no more. It’s painted red."),
        passage(2, "High water is at noon on the third of May."),
    ],
    1 << 20,
    len,
).sources


def numbers(text: str) -> list[tuple[int, bool]]:
    return [(c.number, c.exists) for c in check(text, SOURCES).citations]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Forty tonnes [1].", [(1, True)]),
        ("So [1][2].", [(1, True), (2, True)]),
        ("So [1, 2] and [7].", [(1, True), (2, True), (7, False)]),
        ("So [1-3].", [(1, True), (2, True), (3, False)]),
        ("So [Source 2] and 【1】.", [(2, True), (1, True)]),
        ("So [0].", [(0, False)]),
        ("Code: `a[1]` and\n```\nx[2] = 1\n``` [2]", [(2, True)]),
        ("None at all, [see] and [1a] and [].", []),
        ("[3-1]", [(3, False), (1, True)]),
    ],
)
def test_numbers_in_brackets(text: str, found: list[tuple[int, bool]]) -> None:
    assert numbers(text) == found


def test_where_a_citation_stands() -> None:
    text = "Forty tonnes [1]."
    (citation,) = check(text, SOURCES).citations
    assert text[citation.start : citation.end] == "[1]" and citation.quote_ok is None


@pytest.mark.parametrize(
    ("text", "ok"),
    [
        ('It "lifts forty tonnes, no more" [1].', True),
        ("It “lifts forty … painted red” [1].", True),
        ('It "LIFTS FORTY tonnes." [1]', True),
        ('It "It\'s painted red" [1].', True),
        ('It "lifts fifty tonnes" [1].', False),
        ('It "painted red ... lifts forty" [1].', False),
        ('It is "high water" [1].', False),
        ('It is "high water" [2].', True),
        ('It is "high water" [9].', False),
        ('It is "red" [1].', None),
    ],
)
def test_quotations_are_held_against_the_cited_source(text: str, ok: bool | None) -> None:
    assert check(text, SOURCES).citations[0].quote_ok is ok


def test_a_quotation_belongs_to_the_next_citation_of_its_paragraph() -> None:
    one, two = check('"lifts forty tonnes" [1] and noon [2].', SOURCES).citations
    assert one.quote_ok is True and two.quote_ok is None
    (late,) = check('"lifts forty tonnes"\n\nand noon [2].', SOURCES).citations
    assert late.quote_ok is None


def test_warnings() -> None:
    assert check("", SOURCES).warnings == ("the answer is empty",)
    assert "cites no source" in check("Forty.", SOURCES).warnings[0]
    assert "[9]" in check("Forty [9].", SOURCES).warnings[0]
    assert "not in source [1]" in check('"fifty tonnes" [1]', SOURCES).warnings[0]
    assert "in no source" in check('[1] says "fifty tonnes of it"', SOURCES).warnings[0]
    assert check('"high water" [2]', SOURCES).warnings == ()


@settings(deadline=None, max_examples=60)
@given(st.text(alphabet='[]0123456789,-– "“”`abc\n…', max_size=200))
def test_no_text_upsets_the_check(text: str) -> None:
    found = check(text, SOURCES)
    for citation in found.citations:
        assert text[citation.start] in "[【" and text[citation.end - 1] in "]】"
        assert citation.exists == (citation.number in (1, 2))


@settings(deadline=None, max_examples=60)
@given(st.text(min_size=1, max_size=80), st.integers(0, 40), st.integers(1, 40))
def test_every_piece_of_a_source_is_supported(text: str, start: int, size: int) -> None:
    words = plain(text).split()
    quote = " ".join(words[start % (len(words) or 1) :][:size])
    if "[" not in quote:
        assert supported(quote, plain(text))
