"""Documents to token pieces and chunks, with whatever tokenizer an engine has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from nybble.engines.child import Frame
from nybble.engines.vocabulary import Vocabulary
from nybble.scoring.chunks import Chunk, Piece, cut
from nybble.scoring.corpora import CATEGORIES, Document, request_for
from nybble.scoring.corpora.render import framed, plain

_SPLIT = "nybble7f3c1e5a9b"  # stands for the text while the template's frame is taken apart


class Tokenizing(Protocol):
    """What llama.cpp's Model and a folder's Tokenizer both offer."""

    vocabulary: Vocabulary

    def tokenize(self, text: str, *, special: bool) -> npt.NDArray[np.int32]:
        """Token ids without BOS; `special` reads control tokens written in the text."""


def documents_of(header: dict[str, Any]) -> Iterator[Document]:
    """The documents of a request: those in it, or a built-in category's."""
    given = header["documents"]
    return (
        CATEGORIES[header["category"]].load()
        if given is None
        else iter(Document(**{**d, "messages": tuple(d["messages"]),
                              "tools": tuple(d["tools"])}) for d in given)
    )  # fmt: skip


def chunks(model: Tokenizing, header: dict[str, Any], event: Callable[..., None]) -> Frame:
    """Render, tokenize and cut one category; the answer's payload is the tokens.

    Args:
        model: the tokenizer.
        header: category, documents (None for the built-in ones), template, context, wanted.
        event: told of every document.
    """
    documents = documents_of(header)
    how: set[str] = set()
    seen = 0

    def pieces() -> Iterator[Piece]:
        nonlocal seen
        for document in documents:
            piece = _piece(model, document, header["template"], how)
            seen += len(piece.head) + len(piece.body)
            event(step="tokenize", document=document.id)
            yield piece

    bos = model.vocabulary.bos if model.vocabulary.add_bos else None
    found: list[Chunk] = cut(header["category"], pieces(), header["context"], header["wanted"], bos)
    meta = [{"document": c.document, "index": c.index} for c in found]
    payload = b"".join(c.tokens.tobytes() for c in found)
    return Frame({"chunks": meta, "how": sorted(how), "tokens": seen}, payload)


def _piece(model: Tokenizing, document: Document, template: str | None, how: set[str]) -> Piece:
    vocabulary = model.vocabulary
    nothing = np.empty(0, dtype=np.int32)
    if template is None:
        how.add("raw text")
        body = model.tokenize(plain(document), special=False)
        return Piece(document.id, nothing, body, cuttable=not document.messages)
    names = {"bos": vocabulary.bos_text, "eos": vocabulary.eos_text}
    request = request_for(document.category)
    if document.messages:
        rendered = framed(document, template, request=request, **names)
        how.add(rendered.how)
        body = _without_bos(model, rendered.text)
        return Piece(document.id, nothing, body, cuttable=False)
    # Every chunk of a text gets the template's frame, so cut the text, not the rendering.
    stand_in = Document(document.id, document.category, text=_SPLIT)
    rendered = framed(stand_in, template, request=request, **names)
    how.add(rendered.how)
    head = _without_bos(model, rendered.text.split(_SPLIT)[0])
    return Piece(document.id, head, model.tokenize(document.text, special=False), True)


def _without_bos(model: Tokenizing, text: str) -> npt.NDArray[np.int32]:
    """Template text with its control tokens; BOS is put in front of chunks, not pieces."""
    tokens = model.tokenize(text, special=True)
    has_bos = model.vocabulary.add_bos and len(tokens) and tokens[0] == model.vocabulary.bos
    return tokens[1:] if has_bos else tokens
