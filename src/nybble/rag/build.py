"""An index made from a folder, or brought up to date with it.

What did not change is kept (size and time of change first, then SHA-256), moved files keep
their vectors, copies are noted. What cannot be read is left out with its reason and tried again
when it changes; after a crash or a time limit, in the next run, and what the index had of it
stays till then. Killed at any moment, the same command goes on where it stopped.
"""

from __future__ import annotations

import os
import time
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from nybble.errors import NybbleError
from nybble.rag import lexical
from nybble.rag.changes import Changes, apply_moves, find_changes, note_copies
from nybble.rag.chunks import Chunker, framed
from nybble.rag.documents import Found, Skipped, listing
from nybble.rag.embed.base import Timed
from nybble.rag.embed.registry import DEFAULT, embedder, is_address
from nybble.rag.index import other_embedding
from nybble.rag.loaders import Opened, Reader, UnreadableError, unchanged
from nybble.rag.store import FILE, Store
from nybble.rag.writer import Writer
from nybble.scoring.request import Progress

CHUNK_TOKENS = 200
OVERLAP = 40


@dataclass(frozen=True)
class IndexOptions:
    """How to index; None keeps what the index has, or takes the default for a new one.

    Attributes:
        chunk_tokens: of a passage at most, by the embedding's tokenizer.
        overlap: tokens that neighbours may share.
        embedding: minilm, a folder or name of sentence-transformers, http(s)://HOST/v1.
        embedding_model: that a server is asked for.
        include: globs; where given, other files are left out. An empty one forgets what was kept.
        exclude: globs of files that are left out.
        max_mb: larger files are left out, in millions of bytes.
        seconds: that a parser may take for one document.
        fresh: empty the index first.
    """

    chunk_tokens: int | None = None
    overlap: int | None = None
    embedding: str | None = None
    embedding_model: str = ""
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] | None = None
    max_mb: float = 50.0
    seconds: float = 60.0
    fresh: bool = False


@dataclass(frozen=True)
class IndexReport:
    """What indexing did.

    Attributes:
        added: documents that are new.
        changed: documents whose content changed.
        moved: documents whose file has another path now; nothing was embedded for them.
        deleted: documents that went.
        kept: documents as they were.
        copies: files with the bytes of a document.
        skipped: files that were left out, with reasons.
        documents: in the index now.
        passages: in the index now.
        new_passages: made by this run.
        seconds: that the run took.
        embed_seconds: of them, in the embedding model, loading it included.
        revision: of the index now.
        include: globs that were in effect.
        exclude: globs that were in effect.
    """

    added: int
    changed: int
    moved: int
    deleted: int
    kept: int
    copies: int
    skipped: tuple[Skipped, ...]
    documents: int
    passages: int
    new_passages: int
    seconds: float
    embed_seconds: float
    revision: int
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    @property
    def per_second(self) -> float | None:
        """New passages a second; None where there were none."""
        return self.new_passages / self.seconds if self.new_passages else None

    @property
    def per_second_without_embedding(self) -> float | None:
        """The same for reading, cutting, storing and the word index alone."""
        spent = self.seconds - self.embed_seconds
        return self.new_passages / spent if self.new_passages and spent > 0 else None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        rates = {
            "per_second": self.per_second,
            "per_second_without_embedding": self.per_second_without_embedding,
        }
        return {**asdict(self), **rates}


@dataclass
class _Run:
    folder: Path
    index: Path
    options: IndexOptions
    progress: Progress
    store: Store
    model: Timed
    skipped: list[Skipped] = field(default_factory=list)
    added: int = 0
    changed: int = 0


def build(folder: Path, index: Path, options: IndexOptions, progress: Progress) -> IndexReport:
    """Bring an index up to date with a folder, or make it.

    Args:
        folder: of the documents.
        index: the index's folder.
        options: how.
        progress: told how far it is.

    Raises:
        NybbleError: no folder, nothing in it to index, another run at the index, an index of
            another folder, embedding or chunk size without `fresh`, or a full disk.
        MissingExtraError: a package of the extra `rag` is not installed.
    """
    begun = time.monotonic()
    max_bytes = int(options.max_mb * 1e6)
    include, exclude = _globs(index, options)
    found = listing(folder, own=index, include=include, exclude=exclude, max_bytes=max_bytes)
    if not found.found and not (index / FILE).exists():
        what = "no document in the folder can be indexed" if found.skipped else (
            "there are no documents in the folder")  # fmt: skip
        reasons = "; ".join(f"{s.path}: {s.reason}" for s in found.skipped[:3])
        raise NybbleError(what, seen=reasons or folder,
                          allowed="text, Markdown, HTML, PDF, DOCX, ODT, RTF, source code",
                          hint="--include and --exclude choose files")  # fmt: skip
    try:
        index.mkdir(parents=True, exist_ok=True)
        lock = FileLock(index / "lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise NybbleError("another run is at this index", seen=index,
                          hint="wait for it; searching goes on meanwhile") from None  # fmt: skip
    except OSError as error:
        raise NybbleError(f"cannot write the index: {error.strerror or error}", seen=index,
                          hint="--index PATH in a folder you can write") from error  # fmt: skip
    store = None
    try:
        store = Store(index, write=True)
        model = _prepare(store, folder, index, options)
        with store.transaction():
            store.set_meta(include="\n".join(include), exclude="\n".join(exclude))
        run = _Run(folder, index, options, progress, store, model, list(found.skipped))
        report = _update(run, found.found, begun)
        return replace(report, include=include, exclude=exclude)
    finally:
        if store is not None:
            store.close()
        lock.release()


def _globs(index: Path, options: IndexOptions) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """As asked, or as the index was last told: what was left out once must not slip in later."""
    kept: dict[str, str] = {}
    if (index / FILE).is_file() and not options.fresh:
        with suppress(NybbleError), closing(Store(index)) as store:  # damage is told by the writer
            kept = store.meta()
    include, exclude = (
        tuple(g for g in (kept.get(name, "").split("\n") if told is None else told) if g)
        for name, told in (("include", options.include), ("exclude", options.exclude))
    )
    return include, exclude


def _prepare(store: Store, folder: Path, index: Path, options: IndexOptions) -> Timed:
    """The embedding of the index; a new or fresh one is made to fit the options."""
    meta = store.meta()
    place = os.path.relpath(folder.resolve(), index.resolve())
    if meta and not options.fresh:
        if meta["folder"] != place:
            raise NybbleError(
                "the index is of another folder", seen=folder,
                allowed=str((index / meta["folder"]).resolve()),
                hint="--index PATH for another index, or --fresh")  # fmt: skip
        name = options.embedding or meta["embedding"]
        model = embedder(name, options.embedding_model or (
            meta["embedding_model"] if is_address(name) else ""))  # fmt: skip
        if model.fingerprint != meta["fingerprint"]:
            raise other_embedding(meta, model)
        for key in ("chunk_tokens", "overlap"):
            asked = getattr(options, key)
            if asked is not None and str(asked) != meta[key]:
                raise NybbleError(f"the index was made with another {key.replace('_', ' ')}",
                                  seen=f"index: {meta[key]}, asked: {asked}",
                                  hint="--fresh, which embeds all anew")  # fmt: skip
        return Timed(model)
    size = CHUNK_TOKENS if options.chunk_tokens is None else options.chunk_tokens
    overlap = min(OVERLAP, size // 5) if options.overlap is None else options.overlap
    model = Timed(embedder(options.embedding or DEFAULT, options.embedding_model))
    Chunker(model.tokenizer(), size, overlap)  # refuses sizes that make no sense
    dims = len(model.query("dimensions"))
    with store.transaction():
        for table in ("documents", "files", "passages"):
            store.run(f"DELETE FROM {table}")
        store.make_vectors(dims)
        store.set_meta(folder=place, embedding=model.name, embedding_model=model.model,
                       fingerprint=model.fingerprint, dims=dims, chunk_tokens=size,
                       overlap=overlap)  # fmt: skip
        store.changed()
    return model


def _update(run: _Run, found: tuple[Found, ...], begun: float) -> IndexReport:
    run.progress.stage("comparing the folder with the index")
    with run.store.transaction():
        _drop_partial(run.store)
    changes = find_changes(run.store, found, run.skipped)
    moved, deleted = apply_moves(run.store, changes)
    writer = Writer(run.store, run.model)
    _read_all(run, changes, writer)
    copies = note_copies(run.store, changes, run.skipped)
    _words(run)
    documents = int(run.store.all("SELECT count(*) FROM documents")[0][0])
    return IndexReport(
        added=run.added,
        changed=run.changed,
        moved=moved,
        deleted=deleted,
        kept=documents - run.added - run.changed - moved,
        copies=copies,
        skipped=tuple(sorted(run.skipped, key=lambda s: s.path)),
        documents=documents,
        passages=int(run.store.all("SELECT count(*) FROM passages")[0][0]),
        new_passages=writer.written,
        seconds=time.monotonic() - begun,
        embed_seconds=run.model.seconds,
        revision=run.store.revision,
    )


def _drop_partial(store: Store) -> None:
    """Delete what a killed run left half read."""
    for (document,) in store.all("SELECT id FROM documents WHERE whole = 0"):
        store.remove(document)


def _read_all(run: _Run, changes: Changes, writer: Writer) -> None:
    meta = run.store.meta()
    chunker = Chunker(run.model.tokenizer(), int(meta["chunk_tokens"]), int(meta["overlap"]))
    if not changes.read:
        return
    run.progress.begin("indexing", float(sum(f.size for f, _ in changes.read)))
    memory = max(4 << 30, 64 * int(run.options.max_mb * 1e6))
    with Reader(seconds=run.options.seconds, memory=memory) as reader:
        for file, sha256 in changes.read:
            was_there = file.path in changes.had
            try:
                opened = reader.open(file)
                _read(file, sha256, opened, chunker, writer)
            except UnreadableError as error:
                writer.abandon(file)
                if not error.again:
                    writer.note_unreadable(file, sha256, str(error))
                run.skipped.append(Skipped(file.path, str(error)))
            else:
                run.changed += was_there
                run.added += not was_there
            run.progress.advance(float(file.size))
    writer.flush()


def _read(file: Found, sha256: str, opened: Opened, chunker: Chunker, writer: Writer) -> None:
    """Cut one document and hand it on, piece by piece."""
    from nybble.rag.markup import headings

    title, heading, first = opened.title, "", True
    for part in opened.parts:
        marks = headings(part.text) if opened.markdown else []
        if first:
            tops = [m.words for m in marks if m.level == 1]
            title = " ".join((title or (tops[0] if tops else "")).split())[:300]
            writer.begin(file, sha256, opened.kind, title or file.path.rsplit("/", 1)[-1])
            first = False
        writer.add(chunker.cut(part, markdown=opened.markdown, heading=heading))
        heading = marks[-1].words if marks else heading
    if first or not writer.has_text:
        raise UnreadableError("no text in it")
    unchanged(file)
    writer.end()


def _words(run: _Run) -> None:
    """Make the word index anew if the content is not what it was made of."""
    meta = run.store.meta()
    name = meta.get("lexical", "")
    current = meta.get("lexical_revision") == meta["revision"]
    if not (current and name and (run.index / name / "ids.npy").is_file()):
        run.progress.stage("making the word index")
        with run.store.snapshot():
            revision = run.store.revision
            texts = ((i, framed(t, h, text)) for i, t, h, text in run.store.texts())
            name = lexical.write(run.index, texts)
        with run.store.transaction():
            run.store.set_meta(lexical=name, lexical_revision=revision)
    lexical.remove_others(run.index, name)
