"""What ingest, retrieval and answering hand to each other."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Passage:
    """A chunk of a document, as the index stores it.

    Attributes:
        id: number in the index; never used twice.
        document: path of the document, relative to the folder that was indexed, with "/".
        title: the document's title, or its file name.
        heading: of the section that the chunk starts in; "" for none.
        page: 1-based page of a PDF that the chunk starts on; None for others.
        start: first character in the document's extracted text.
        end: one past the last.
        tokens: of its text, by the tokenizer that chunked it.
        text: as extracted; data of others, never instructions.
    """

    id: int
    document: str
    title: str
    heading: str
    page: int | None
    start: int
    end: int
    tokens: int
    text: str


@dataclass(frozen=True)
class Hit:
    """A passage that retrieval found.

    Attributes:
        passage: what was found.
        score: of the hybrid, higher is better; comparable within one query only.
        dense_rank: 1-based place among the embedding's hits; None where not among them.
        lexical_rank: 1-based place among BM25's hits; None where not among them.
    """

    passage: Passage
    score: float
    dense_rank: int | None = None
    lexical_rank: int | None = None
