"""Texts in passages: by tokens, at their joints, with headings and pages."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nybble.errors import NybbleError
from nybble.rag.chunks import Chunker, framed
from nybble.rag.embed.minilm import minilm
from nybble.rag.loaders import Part
from nybble.rag.words import words

TOKENIZER = minilm().tokenizer()
CHUNKER = Chunker(TOKENIZER, 48, 10)


def n_tokens(text: str) -> int:
    return len(TOKENIZER.encode(text, add_special_tokens=False).ids)


def paragraphs(n: int) -> str:
    return "\n\n".join(f"Paragraph {k} tells of thing {k} and of its {k} uses." for k in range(n))


def test_chunks_are_pieces_of_the_text_of_the_size_asked() -> None:
    text = paragraphs(40)
    chunks = CHUNKER.cut(Part(text, 100), markdown=False)
    assert len(chunks) > 8
    for chunk in chunks:
        assert text[chunk.start - 100 : chunk.end - 100] == chunk.text
        assert chunk.tokens == n_tokens(chunk.text) <= 48
    # Nothing is lost between them.
    gaps = [text[a.end - 100 : b.start - 100] for a, b in itertools.pairwise(chunks)]
    assert not "".join(gaps).strip()


def test_neighbours_overlap() -> None:
    text = " ".join(f"word{k}" for k in range(300))
    chunks = CHUNKER.cut(Part(text, 0), markdown=False)
    shared = [text[b.start : a.end] for a, b in itertools.pairwise(chunks)]
    assert all(0 < n_tokens(s) <= 10 for s in shared)


def test_headings_and_pages() -> None:
    text = "# Top\n\n## First\n\n" + paragraphs(6) + "\n\n## Second\n\n" + paragraphs(6)
    second = text.index("## Second")
    chunks = CHUNKER.cut(Part(text, 0, (0, second)), markdown=True, heading="before")
    assert chunks[0].heading == "First" and chunks[0].page == 1
    assert {c.heading for c in chunks if c.start >= second} == {"Second"}
    assert {c.page for c in chunks if c.start >= second} == {2}
    plain = CHUNKER.cut(Part("no heading here", 0), markdown=True, heading="before")
    assert plain[0].heading == "before" and plain[0].page is None


def test_short_pieces_are_joined() -> None:
    text = "\n\n".join(f"## Part {k}\n\nTiny." for k in range(12))
    chunks = CHUNKER.cut(Part(text, 0), markdown=True)
    assert 1 < len(chunks) < 6 and max(c.tokens for c in chunks) <= 48


def test_long_words_are_cut() -> None:
    for text in ("x" * 3_000, "数" * 600):
        chunks = CHUNKER.cut(Part(text, 0), markdown=False)
        assert max(len(c.text) for c in chunks) <= 48 * 5
        assert chunks[-1].end == len(text) and len(chunks) >= len(text) // 240


@pytest.mark.parametrize(("size", "overlap"), [(8, 0), (100, 51), (100, -1), (0, 0)])
def test_sizes_that_make_no_sense(size: int, overlap: int) -> None:
    with pytest.raises(NybbleError):
        Chunker(TOKENIZER, size, overlap)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=600), st.booleans())
def test_any_text_is_cut_into_its_own_pieces(text: str, markdown: bool) -> None:
    chunks = CHUNKER.cut(Part(text, 0), markdown=markdown)
    assert all(text[c.start : c.end] == c.text and c.text for c in chunks)
    starts = [c.start for c in chunks]
    assert starts == sorted(starts)


def test_what_is_embedded_names_its_document() -> None:
    assert framed("Title", "Head", "text") == "Title\nHead\ntext"
    assert framed("Title", "Title", "text") == framed("Title", "", "text") == "Title\ntext"
    assert len(framed("t" * 999, "h" * 999, "text")) < 260


def test_words_of_identifiers_and_plurals() -> None:
    assert words("The max_parallel_workers of readTable") == [
        "max_parallel_worker", "max", "parallel", "worker", "readtable", "read", "table",
    ]  # fmt: skip
    assert words("queries classes bus HTTPServer2 q4_0") == [
        "query", "classe", "bus", "httpserver2", "http", "server2", "q4_0", "q4",
    ]  # fmt: skip
    assert words("") == words("the of --- !") == []
