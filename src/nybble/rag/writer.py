"""Documents on their way into the index: embedded in batches, written a batch a transaction."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from nybble.rag.chunks import Chunk, framed
from nybble.rag.documents import Found
from nybble.rag.embed.base import Embedder, Vectors
from nybble.rag.store import Store

BATCH = 256  # passages that are embedded and written together


@dataclass
class _Document:
    file: Found
    sha256: str
    kind: str
    title: str
    id: int | None = None
    any: bool = False
    ended: bool = False
    chunks: list[Chunk] = field(default_factory=list)


class Writer:
    """Takes documents piece by piece; memory is bounded by a batch and a piece.

    Args:
        store: open for writing.
        model: that embeds.

    Attributes:
        written: passages in the index by this writer.
    """

    def __init__(self, store: Store, model: Embedder) -> None:
        self._store, self._model = store, model
        self._waiting: list[_Document] = []
        self._now: _Document | None = None
        self.written = 0

    @property
    def has_text(self) -> bool:
        """Whether the document at hand has given any passage."""
        return self._now is not None and self._now.any

    def begin(self, file: Found, sha256: str, kind: str, title: str) -> None:
        """Start a document."""
        self._now = _Document(file, sha256, kind, title)
        self._waiting.append(self._now)

    def add(self, chunks: list[Chunk]) -> None:
        """Passages of the document at hand."""
        assert self._now is not None
        for at in range(0, len(chunks), BATCH):
            more = chunks[at : at + BATCH]
            self._now.chunks += more
            self._now.any = True
            if sum(len(d.chunks) for d in self._waiting) >= BATCH:
                self.flush()

    def end(self) -> None:
        """The document at hand is whole."""
        assert self._now is not None
        self._now.ended = True
        self._now = None

    def abandon(self, file: Found) -> None:
        """Forget the document at hand, what is written of it too."""
        document, self._now = self._now, None
        if document is None:
            return
        self._waiting.remove(document)
        if document.id is not None:
            with self._store.transaction():
                self._store.remove(document.id)
                self._store.changed()

    def note_unreadable(self, file: Found, sha256: str, reason: str) -> None:
        """Keep why a file is left out; what the index had of it goes."""
        with self._store.transaction():
            self._remove_former(file.path)
            self._store.run("INSERT OR REPLACE INTO files VALUES(?, ?, ?, ?, NULL, ?)",
                            (file.path, file.size, file.mtime_ns, sha256, reason))  # fmt: skip

    def flush(self) -> None:
        """Embed and write what waits."""
        documents = self._waiting
        texts = [framed(d.title, c.heading, c.text) for d in documents for c in d.chunks]
        vectors: Vectors = np.empty((0, 0), np.float32)
        if texts:
            vectors = self._model.passages(texts)
        if documents:
            with self._store.transaction():
                at = 0
                for document in documents:
                    self._write(document, vectors[at : at + len(document.chunks)])
                    at += len(document.chunks)
                self._store.changed()
            self.written += len(texts)
        for document in documents:
            document.chunks = []
        self._waiting = [d for d in documents if not d.ended]

    def _write(self, document: _Document, vectors: Vectors) -> None:
        file = document.file
        if document.id is None:
            self._remove_former(file.path)
            document.id = self._store.insert(
                "INSERT INTO documents(path, title, kind, sha256, bytes) VALUES(?, ?, ?, ?, ?)",
                (file.path, document.title, document.kind, document.sha256, file.size))  # fmt: skip
        for chunk, vector in zip(document.chunks, vectors, strict=True):
            passage = self._store.insert(
                'INSERT INTO passages(document, heading, page, "start", "end", tokens, text) '
                "VALUES(?, ?, ?, ?, ?, ?, ?)",
                (document.id, chunk.heading, chunk.page, chunk.start, chunk.end, chunk.tokens,
                 chunk.text))  # fmt: skip
            self._store.run("INSERT INTO vectors VALUES(?, ?)", (passage, vector.tobytes()))
        if document.ended:
            self._store.run("UPDATE documents SET whole = 1 WHERE id = ?", (document.id,))
            self._store.run(
                "INSERT OR REPLACE INTO files VALUES(?, ?, ?, ?, ?, NULL)",
                (file.path, file.size, file.mtime_ns, document.sha256, document.id),
            )

    def _remove_former(self, path: str) -> None:
        """Delete the document of this path, or leave it to a copy of its former content."""
        for (former,) in self._store.all("SELECT id FROM documents WHERE path = ?", (path,)):
            self._store.run("DELETE FROM files WHERE path = ?", (path,))
            heirs = self._store.all(
                "SELECT path FROM files WHERE document = ? ORDER BY path", (former,)
            )
            if heirs:
                self._store.run("UPDATE documents SET path = ? WHERE id = ?", (heirs[0][0], former))
            else:
                self._store.remove(former)
                self._store.changed()
