"""Cut documents into chunks of exactly one context, lazily and in a fixed order.

Pieces shorter than the context are joined with the next ones; longer ones are cut into
consecutive chunks, of which the first of every piece is used before the second of any, so that
few chunks still come from many documents. A conversation is never cut into a second chunk:
what follows would lack its beginning.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Piece:
    """One tokenized document.

    Attributes:
        id: the document's id; chunks of one document share it and are resampled together.
        head: tokens repeated at the start of each of its chunks (a template's frame).
        body: the tokens to cut.
        cuttable: whether more than the first chunk may be used.
    """

    id: str
    head: Tokens
    body: Tokens
    cuttable: bool


@dataclass(frozen=True)
class Chunk:
    """Tokens of one context, and the document it counts for in the intervals."""

    category: str
    document: str
    index: int
    tokens: Tokens


def cut(
    category: str,
    pieces: Iterable[Piece],
    context: int,
    wanted: int,
    bos: int | None,
) -> list[Chunk]:
    """Return up to `wanted` chunks of `context` tokens.

    Args:
        category: name the chunks carry.
        pieces: tokenized documents, consumed only as far as needed.
        context: tokens of a chunk, BOS included.
        wanted: most chunks to return.
        bos: id put in front of every chunk, or None.
    """
    start = np.array([] if bos is None else [bos], dtype=np.int32)
    firsts: list[Chunk] = []
    longer: list[Piece] = []
    joined: list[Piece] = []
    for piece in pieces if wanted else ():
        if len(start) + len(piece.head) >= context:
            continue  # the frame alone fills the context: nothing of the text would be scored
        if len(start) + len(piece.head) + len(piece.body) >= context:
            firsts.append(_take(category, piece, 0, context, start))
            if piece.cuttable:
                longer.append(piece)
        else:
            joined.append(piece)
            parts = [start, *(np.concatenate([p.head, p.body]) for p in joined)]
            if sum(map(len, parts)) >= context:
                name = "+".join(p.id for p in joined)
                firsts.append(Chunk(category, name, 0, np.concatenate(parts)[:context]))
                joined = []
        if len(firsts) >= wanted:
            break
    rest = _later(category, longer, context, start)
    while len(firsts) < wanted and (chunk := next(rest, None)) is not None:
        firsts.append(chunk)
    return firsts


def _take(category: str, piece: Piece, index: int, context: int, start: Tokens) -> Chunk:
    room = context - len(start) - len(piece.head)
    body = piece.body[index * room : (index + 1) * room]
    return Chunk(category, piece.id, index, np.concatenate([start, piece.head, body]))


def _later(category: str, pieces: list[Piece], context: int, start: Tokens) -> Iterator[Chunk]:
    """Second chunks of every piece, then third ones, while any is whole."""
    index = 1
    while pieces:
        pieces = [
            p for p in pieces if (index + 1) * (context - len(start) - len(p.head)) <= len(p.body)
        ]
        for piece in pieces:
            yield _take(category, piece, index, context, start)
        index += 1
