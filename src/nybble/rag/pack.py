"""Packing: which passages go before the model, and as which numbered sources."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nybble.errors import NybbleError
from nybble.rag.answers import Packed, Source
from nybble.rag.passages import Passage

WIDEST_GAP = 8  # characters between neighbours: white space that chunking has left out
_LONGEST_NAME = 200  # characters of a title, path or heading


@dataclass
class _Piece:
    """Neighbours of one document, grown together."""

    rank: int
    first: Passage
    end: int
    text: str
    ids: list[int]


def pack(
    passages: Sequence[Passage], room: int, count: Callable[[str], int], frame: int = 0
) -> Packed:
    """Put passages into the room there is, best first, until one does not fit.

    Neighbours of a document become one source in the document's order, what they share is there
    once, and sources stand in the order of their best passage.

    Args:
        passages: best first; one given twice counts once.
        room: tokens for the sources with their headers and frames.
        count: tokens of a text.
        frame: tokens of the frame around each source.

    Raises:
        NybbleError: there are none, or not even the first fits.
    """
    offered = list({p.id: p for p in passages}.values())
    if not offered:
        raise NybbleError("there is nothing to answer from", seen="0 passages",
                          hint="nybble rag index DIR, or other words")  # fmt: skip
    taken: list[Passage] = []
    spent = 0
    for passage in offered:
        spent += count(header(1, passage) + passage.text) + frame
        if spent > room:  # counted apart; neighbours take less together
            spent = _total(_sources([*taken, passage], count), frame)
        if spent > room:
            break
        taken.append(passage)
    if not taken:
        raise NybbleError(
            "no passage fits into the server's context", allowed=f"up to {max(0, room):,} tokens",
            seen=f"the best passage has {count(offered[0].text):,} tokens",
            hint="a longer --context, a shorter question, fewer --answer-tokens",
        )  # fmt: skip
    sources = _sources(taken, count)
    return Packed(sources, len(offered), len(taken), _total(sources, frame), room)


def header(number: int, at: Passage | Source) -> str:
    """The line above a source's text. Names are of others: they are made one printable line."""
    title, path = name(at.title), name(at.document)
    place = [] if title == path else [path]
    if at.page is not None:
        place.append(f"page {at.page}")
    if at.heading and name(at.heading) != title:
        place.append(name(at.heading))
    return f"[{number}] {title}" + (f" ({', '.join(place)})" if place else "") + "\n"


def name(text: str) -> str:
    """A foreign name on one line, printable, shortened."""
    line = "".join(c if c.isprintable() else " " for c in text)
    line = " ".join(line.split())
    return line if len(line) <= _LONGEST_NAME else line[: _LONGEST_NAME - 1] + "…"


def _sources(taken: Sequence[Passage], count: Callable[[str], int]) -> tuple[Source, ...]:
    found = []
    for number, piece in enumerate(_merged(taken), 1):
        first, text = piece.first, piece.text
        tokens = count(header(number, first) + text)
        found.append(Source(number, first.document, first.title, first.heading, first.page,
                            first.start, piece.end, tokens, text, tuple(piece.ids)))  # fmt: skip
    return tuple(found)


def _total(sources: Sequence[Source], frame: int) -> int:
    return sum(source.tokens + frame for source in sources)


def _merged(taken: Sequence[Passage]) -> list[_Piece]:
    rank = {p.id: i for i, p in enumerate(taken)}
    pieces: list[_Piece] = []
    last: dict[str, _Piece] = {}
    for p in sorted(taken, key=lambda p: (p.document, p.start, p.end)):
        before = last.get(p.document)
        grown = None if before is None else _grown(before, p)
        if before is not None and grown is not None:
            before.text, before.end = grown, max(before.end, p.end)
            before.ids.append(p.id)
            before.rank = min(before.rank, rank[p.id])
        else:
            last[p.document] = piece = _Piece(rank[p.id], p, p.end, p.text, [p.id])
            pieces.append(piece)
    return sorted(pieces, key=lambda piece: piece.rank)


def _grown(piece: _Piece, p: Passage) -> str | None:
    """The piece's text with a passage behind it; None where they are not neighbours."""
    shared = piece.end - p.start
    if shared <= 0:
        gap = " " if shared == -1 else "\n" * -shared
        return piece.text + gap + p.text if -shared <= WIDEST_GAP else None
    if p.end <= piece.end:
        return piece.text if p.text in piece.text else None
    # Offsets of a damaged index must not join what does not belong together.
    same = piece.text.endswith(p.text[:shared])
    return piece.text + p.text[shared:] if same else None
