"""An index, opened to be asked: hybrid search over what `nybble rag index` made.

Reading goes on while another process writes: every search sees one moment of the database. The
word index may be behind it until that process ends; what it cannot know yet is then found by
the embedding alone.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from nybble.errors import NybbleError
from nybble.loopback import loopback_url
from nybble.rag.embed.base import Embedder, Vectors
from nybble.rag.embed.registry import embedder, is_address
from nybble.rag.fuse import Ranking, fuse
from nybble.rag.lexical import DamagedWordsError, Lexical
from nybble.rag.passages import Hit, Passage
from nybble.rag.store import Store

FOLDER = ".nybble-rag"
MODES = ("hybrid", "dense", "lexical")
DEPTH = 100  # places of either ranking that are fused, at the least
_MAX_K = 1000


@dataclass(frozen=True)
class DocumentRow:
    """A document of the index.

    Attributes:
        path: relative to the folder that was indexed.
        title: its own, or its file's name.
        kind: text, markdown, html, pdf, ...
        sha256: of the file's bytes, in hex.
        n_passages: that it was cut into.
        bytes: of the file.
        copies: paths of files with the same bytes, which are not indexed again.
    """

    path: str
    title: str
    kind: str
    sha256: str
    n_passages: int
    bytes: int
    copies: tuple[str, ...] = ()


@dataclass(frozen=True)
class About:
    """What an index is.

    Attributes:
        path: its folder.
        folder: of the documents, as seen from here; it may be gone.
        revision: changes with the content.
        documents: in it.
        passages: in it.
        embedding: name of the model or address of its server.
        embedding_model: that a server is asked for; "" for local ones.
        dims: of a vector.
        chunk_tokens: of a passage at most.
        overlap: tokens that neighbours may share.
        bytes: of the database on disk.
        lexical_current: whether the word index is of this revision.
    """

    path: str
    folder: str
    revision: int
    documents: int
    passages: int
    embedding: str
    embedding_model: str
    dims: int
    chunk_tokens: int
    overlap: int
    bytes: int
    lexical_current: bool

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Index:
    """An index that can be searched, from several threads at once.

    Args:
        path: its folder.
        embedding: the model to ask with, where the index names a server that is not this
            machine's own; it must be the one that made the index.
        embedding_model: of that server.

    Raises:
        NybbleError: there is no index, it is damaged, or made with another embedding.
        MissingExtraError: a package of the extra `rag` is not installed.
    """

    def __init__(
        self, path: Path, *, embedding: str | None = None, embedding_model: str = ""
    ) -> None:
        self.path = path
        self._local = threading.local()
        self._lock = threading.Lock()
        # Weak: the connection of a thread that has ended is closed with it.
        self._stores: weakref.WeakSet[Store] = weakref.WeakSet()
        self._lexical: tuple[str, Lexical] | None = None
        self._closed = False
        meta = self._store().meta()
        if "embedding" not in meta:
            raise NybbleError("the index holds nothing yet", seen=path, hint="nybble rag index DIR")
        self._embedding = meta["embedding"]
        self._fingerprint = meta["fingerprint"]
        self._embedder = self._choose(meta, embedding, embedding_model)

    def __enter__(self) -> Index:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Close the database; nothing can be asked afterwards."""
        with self._lock:
            self._closed = True
            for store in self._stores:
                store.close()
            self._stores.clear()

    def warm(self) -> None:
        """Load the embedding model and the word index, so that the first search is quick."""
        self._embedder.query("warm")
        self._words(self._store().meta())

    def search(self, query: str, k: int = 10, mode: str = "hybrid") -> list[Hit]:
        """The passages that fit a question best.

        Args:
            query: the question.
            k: passages to return at most.
            mode: hybrid (both, fused), dense (the embedding) or lexical (BM25).

        Raises:
            NybbleError: no question, an unknown mode, the index was made anew since it was
                opened, or its embedding cannot be used.
        """
        if mode not in MODES:
            raise NybbleError(
                "unknown way to search", seen=mode, allowed=MODES, hint="--mode hybrid"
            )
        if not query.strip():
            raise NybbleError("there is no question", hint='nybble rag search "..."')
        if not 1 <= k <= _MAX_K:
            raise NybbleError(
                "so many passages cannot be asked for", seen=k, allowed=f"1 to {_MAX_K}"
            )
        depth = max(DEPTH, 2 * k)
        vector = self._embedder.query(query) if mode != "lexical" else None
        while True:
            try:
                return self._ranked(query, vector, depth, mode)[:k]
            except DamagedWordsError as error:
                # An update that ends between the reading of its name and its opening removes it.
                if self._store().meta().get("lexical") == error.name:
                    raise

    def _ranked(self, query: str, vector: Vectors | None, depth: int, mode: str) -> list[Hit]:
        store = self._store()
        with store.snapshot():
            meta = store.meta()
            self._same(meta)
            cosines = {} if vector is None else store.nearest(vector, depth)
            order, lexical = list(cosines), Ranking()
            if mode != "dense" and (found := self._words(meta)):
                lexical = found.nearest(query, depth, cosines)
            if vector is not None:
                cosines |= store.cosines(vector, set(lexical.order) - set(cosines))
            ranked = fuse(Ranking(order, cosines), lexical)
            passages = store.passages([f.id for f in ranked])
        return [
            Hit(passages[f.id], f.score, f.dense_rank, f.lexical_rank)
            for f in ranked
            if f.id in passages  # the word index may know what is deleted
        ]

    def passages(self, ids: Sequence[int]) -> list[Passage]:
        """The passages with these ids, in their order; those that are gone are left out."""
        found = self._store().passages(ids)
        return [found[i] for i in ids if i in found]

    def passages_of(self, document: str) -> list[Passage]:
        """A document's passages, first to last.

        Raises:
            NybbleError: no document of this path is in the index.
        """
        found = self._store().passages_of(document)
        if not found:
            raise NybbleError("there is no such document in the index", seen=document,
                              hint="a path as `nybble rag search` shows it")  # fmt: skip
        return found

    def documents(self) -> list[DocumentRow]:
        """The documents, by path."""
        store = self._store()
        with store.snapshot():
            copies: dict[int, list[str]] = {}
            for path, document in store.all(
                "SELECT f.path, f.document FROM files f JOIN documents d ON d.id = f.document "
                "WHERE f.path <> d.path ORDER BY f.path"
            ):
                copies.setdefault(document, []).append(path)
            rows = store.all(
                "SELECT d.id, d.path, d.title, d.kind, d.sha256, count(p.id), d.bytes "
                "FROM documents d LEFT JOIN passages p ON p.document = d.id "
                "GROUP BY d.id ORDER BY d.path"
            )
        return [
            DocumentRow(path, title, kind, sha256, n, n_bytes, tuple(copies.get(document, ())))
            for document, path, title, kind, sha256, n, n_bytes in rows
        ]

    @property
    def revision(self) -> int:
        """A number that changes with the content."""
        return self._store().revision

    def about(self) -> About:
        """What the index is."""
        store = self._store()
        with store.snapshot():
            meta = store.meta()
            documents = int(store.all("SELECT count(*) FROM documents")[0][0])
            passages = int(store.all("SELECT count(*) FROM passages")[0][0])
        return About(
            path=str(self.path),
            folder=str((self.path / meta["folder"]).resolve()),
            revision=int(meta["revision"]),
            documents=documents,
            passages=passages,
            embedding=meta["embedding"],
            embedding_model=meta["embedding_model"],
            dims=int(meta["dims"]),
            chunk_tokens=int(meta["chunk_tokens"]),
            overlap=int(meta["overlap"]),
            bytes=store.n_bytes(),
            lexical_current=meta.get("lexical_revision") == meta["revision"],
        )

    def _store(self) -> Store:
        store: Store | None = getattr(self._local, "store", None)
        if store is None or self._closed:
            with self._lock:
                if self._closed:
                    raise NybbleError("the index is closed", seen=self.path)
                store = Store(self.path)
                self._stores.add(store)
            self._local.store = store
        return store

    def _words(self, meta: dict[str, str]) -> Lexical | None:
        name = meta.get("lexical")
        if not name:
            return None
        with self._lock:
            if self._lexical is None or self._lexical[0] != name:
                self._lexical = (name, Lexical(self.path, name))
            return self._lexical[1]

    def _choose(self, meta: dict[str, str], embedding: str | None, model: str) -> Embedder:
        name, made_with = meta["embedding"], meta["embedding_model"]
        if embedding is None and is_address(name) and not loopback_url(name):
            # Else a stranger's index could have questions sent to an address of theirs.
            raise NybbleError("the index was made with a server elsewhere, which must be named "
                              "before questions are sent to it", seen=f"{made_with} at {name}",
                              hint=f"--embedding {name} --embedding-model {made_with}")  # fmt: skip
        made = embedder(
            embedding or name, model or (made_with if is_address(embedding or name) else "")
        )
        if made.fingerprint != meta["fingerprint"]:
            raise other_embedding(meta, made)
        return made

    def _same(self, meta: dict[str, str]) -> None:
        if meta["fingerprint"] != self._fingerprint:
            raise NybbleError("the index was made anew with another embedding since it was opened",
                              seen=f"{meta['embedding']}, opened with {self._embedding}",
                              hint="open it again")  # fmt: skip


def other_embedding(meta: dict[str, str], wanted: Embedder) -> NybbleError:
    """The error for an index of another embedding model: names both, says how to rebuild."""
    had = " ".join(x for x in (meta["embedding_model"], meta["embedding"]) if x)
    want = " ".join(x for x in (wanted.model, wanted.name) if x)
    if had == want:
        had += f" of other weights ({meta['fingerprint'][:8]}, now {wanted.fingerprint[:8]})"
    option = f"--embedding {wanted.name}" + (
        f" --embedding-model {wanted.model}" if wanted.model else ""
    )
    return NybbleError("the index was made with another embedding model; their vectors do not mix",
                       seen=f"index: {had}; asked: {want}",
                       hint=f"nybble rag index DIR --fresh {option}")  # fmt: skip


def open_index(
    path: Path | str, *, embedding: str | None = None, embedding_model: str = ""
) -> Index:
    """Open an index to search it; see Index."""
    return Index(Path(path), embedding=embedding, embedding_model=embedding_model)
