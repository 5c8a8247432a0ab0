"""Properties of cutting documents into chunks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nybble.scoring.chunks import Chunk, Piece, cut

BOS = -1


def piece(name: str, body: int, head: int = 0, *, cuttable: bool = True) -> Piece:
    """A document whose token ids tell which document and which place they come from."""
    base = 1000 * (1 + int(name))
    heads = np.arange(head, dtype=np.int32) + base + 900
    return Piece(name, heads, np.arange(body, dtype=np.int32) + base, cuttable)


@st.composite
def pieces(draw: st.DrawFn, min_body: int = 0) -> list[Piece]:
    sizes = st.tuples(st.integers(min_body, 90), st.integers(0, 12), st.booleans())
    drawn = draw(st.lists(sizes, max_size=12))
    return [piece(str(i), b, h, cuttable=c) for i, (b, h, c) in enumerate(drawn)]


CONTEXTS = st.integers(4, 40)
WANTED = st.integers(0, 30)
STARTS = st.sampled_from([None, BOS])


@given(pieces(), CONTEXTS, WANTED, STARTS)
def test_shape(found: list[Piece], context: int, wanted: int, bos: int | None) -> None:
    chunks = cut("code", found, context, wanted, bos)
    assert len(chunks) <= wanted
    for chunk in chunks:
        assert chunk.tokens.dtype == np.int32
        assert len(chunk.tokens) == context
        assert chunk.category == "code"
        assert (chunk.tokens[0] == BOS) == (bos is not None)
        assert BOS not in chunk.tokens[1:]
    assert len({(c.document, c.index) for c in chunks}) == len(chunks)


@given(pieces(), CONTEXTS, WANTED, STARTS)
def test_first_chunks_of_all_before_second_of_any(
    found: list[Piece], context: int, wanted: int, bos: int | None
) -> None:
    chunks = cut("c", found, context, wanted, bos)
    indices = [c.index for c in chunks]
    assert indices == sorted(indices)
    order = {p.id: i for i, p in enumerate(found)}
    for a, b in pairwise(chunks):
        if a.index == b.index:
            assert order[a.document.split("+")[-1]] < order[b.document.split("+")[-1]]


@given(pieces(), CONTEXTS, WANTED, STARTS)
def test_asking_for_more_keeps_what_was_there(
    found: list[Piece], context: int, wanted: int, bos: int | None
) -> None:
    """Finished cells stay valid when --documents grows."""
    less, more = (cut("c", found, context, n, bos) for n in (wanted, wanted + 1))
    for a, b in zip(less, more, strict=False):
        assert (a.document, a.index) == (b.document, b.index)
        np.testing.assert_array_equal(a.tokens, b.tokens)


@given(pieces(), CONTEXTS, STARTS)
def test_chunks_of_one_document_are_its_consecutive_parts(
    found: list[Piece], context: int, bos: int | None
) -> None:
    chunks = cut("c", found, context, 10_000, bos)
    by_id = {p.id: p for p in found}
    start = [] if bos is None else [bos]
    for name in {c.document for c in chunks if "+" not in c.document}:
        p = by_id[name]
        mine = [c for c in chunks if c.document == name]
        assert [c.index for c in mine] == list(range(len(mine)))
        front = [*start, *p.head.tolist()]
        room = context - len(front)
        bodies = [c.tokens.tolist() for c in mine]
        assert all(b[: len(front)] == front for b in bodies)
        joined = [t for b in bodies for t in b[len(front) :]]
        assert joined == p.body[: len(joined)].tolist()
        if len(front) + len(p.body) >= context:
            # Every whole part is used, the unfinished end is not.
            assert len(mine) == (len(p.body) // room if p.cuttable else 1)


@given(pieces(), CONTEXTS, STARTS)
def test_no_token_is_lost_in_the_first_pass(
    found: list[Piece], context: int, bos: int | None
) -> None:
    """Short pieces come back joined whole, but for the end of the last one."""
    start = [] if bos is None else [bos]
    short = [
        p for p in found if len(start) + len(p.head) + len(p.body) < context
    ]  # fmt: skip
    chunks = [c for c in cut("c", found, context, 10_000, bos) if c.index == 0]
    names = {p.id for p in short}
    joined = [c for c in chunks if set(c.document.split("+")) <= names]
    used = [name for c in joined for name in c.document.split("+")]
    # Each once, in order; what is left at the end is too little for one context.
    assert used == [p.id for p in short][: len(used)]
    rest = short[len(used) :]
    assert len(start) + sum(len(p.head) + len(p.body) for p in rest) < context
    by_id = {p.id: p for p in short}
    for chunk in joined:
        parts = [by_id[n] for n in chunk.document.split("+")]
        whole = [*start, *(t for p in parts for t in [*p.head.tolist(), *p.body.tolist()])]
        assert chunk.tokens.tolist() == whole[:context]
        # No piece was taken that was not needed.
        last = len(parts[-1].head) + len(parts[-1].body)
        assert len(whole) - last < context


@given(pieces(), CONTEXTS, STARTS)
def test_conversations_are_never_cut_again(
    found: list[Piece], context: int, bos: int | None
) -> None:
    fixed = {p.id for p in found if not p.cuttable}
    assert not [c for c in cut("c", found, context, 10_000, bos) if c.index and c.document in fixed]


@given(pieces(min_body=1), CONTEXTS, st.integers(1, 8), STARTS)
def test_takes_no_more_pieces_than_needed(
    found: list[Piece], context: int, wanted: int, bos: int | None
) -> None:
    taken: list[str] = []

    def stream() -> Iterator[Piece]:
        for p in found:
            taken.append(p.id)
            yield p

    chunks = cut("c", stream(), context, wanted, bos)
    if len(chunks) == wanted and chunks[-1].index == 0:
        # One more is asked for before it is seen that it is not needed.
        last = chunks[-1].document.split("+")[-1]
        assert int(taken[-1]) <= int(last) + 1
    else:
        assert len(taken) == len(found)


def test_endless_streams_are_fine() -> None:
    def endless() -> Iterable[Piece]:
        i = 0
        while True:
            yield piece(str(i), 30)
            i += 1

    assert [c.document for c in cut("c", endless(), 16, 3, BOS)] == ["0", "1", "2"]


def test_by_hand() -> None:
    found = [piece("0", 20, 2), piece("1", 4), piece("2", 5, 1, cuttable=False), piece("3", 9)]
    chunks = cut("c", found, 10, 10, BOS)
    assert [(c.document, c.index) for c in chunks] == [
        ("0", 0), ("1+2", 0), ("3", 0), ("0", 1),
    ]  # fmt: skip
    assert chunks[0].tokens.tolist() == [BOS, 1900, 1901, *range(1000, 1007)]
    assert chunks[1].tokens.tolist() == [BOS, *range(2000, 2004), 3900, *range(3000, 3004)]
    assert chunks[3].tokens.tolist() == [BOS, 1900, 1901, *range(1007, 1014)]


@pytest.mark.parametrize("cuttable", [True, False])
@pytest.mark.parametrize("head", [14, 15, 16, 40])
def test_a_head_that_fills_the_context(head: int, cuttable: bool) -> None:
    """A chat template's frame can be longer than a short context."""
    chunks: list[Chunk] = cut("c", [piece("0", 50, head, cuttable=cuttable)], 16, 5, BOS)
    assert all(len(c.tokens) == 16 for c in chunks)
    # Nothing but the frame would be scored: such a chunk says nothing of the text.
    assert len(chunks) == (1 if head == 14 and not cuttable else 5 if head == 14 else 0)


def test_nothing_from_nothing() -> None:
    assert cut("c", [], 16, 5, BOS) == []
    assert cut("c", [piece("0", 50)], 16, 0, BOS) == []
    assert cut("c", [piece("0", 14)], 16, 5, BOS) == []
