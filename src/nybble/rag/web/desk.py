"""What the page's server answers from: an index, a server of a model, and the run of the index."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from nybble.errors import NybbleError
from nybble.rag.answers import Answer, Options, Packed, Server, Source
from nybble.rag.answers import Event as AskEvent
from nybble.rag.citations import check
from nybble.rag.index import DocumentRow, Index
from nybble.rag.web.asked import Asked
from nybble.rag.web.gauge import Engine, Gauge
from nybble.rag.web.job import Job
from nybble.rag.web.stitch import stitch
from nybble.rag.web.turns import Event, Turn

ROWS = 100  # documents in one answer

Ask = Callable[[Index, str, Server, Options, Callable[[AskEvent], None]], Answer]


class Desk:
    """What the page can ask for; its methods are called from several threads.

    Args:
        index: that is searched.
        server: that answers.
        engine: what is known of it.
        options: of every question.
        ask: `rag.ask.ask`.
        job: indexes the folder again; None where that is not offered.
        trouble: what is wrong with the server, for the user; None for nothing.
    """

    def __init__(
        self,
        index: Index,
        server: Server,
        engine: Engine,
        options: Options,
        ask: Ask,
        job: Job | None = None,
        trouble: Callable[[], NybbleError | None] = lambda: None,
    ) -> None:
        self._index, self._server, self._engine = index, server, engine
        self._options, self._ask, self._job, self._trouble = options, ask, job, trouble
        self._gauge = Gauge(server.url.rstrip("/").removesuffix("/v1"), server.key, engine)
        self._rows = _Rows(index)

    def state(self) -> dict[str, Any]:
        """Index, server, cache and the run of the index, as they are now."""
        about, held, wrong = self._index.about(), self._gauge.read(), self._trouble()
        size = f"{about.embedding}, {about.dims:,} dimensions"
        return {
            "index": {
                "folder": Path(about.folder).name, "documents": about.documents,
                "passages": about.passages, "embedding": size,
                "revision": about.revision, "again": self._job is not None,
            },
            "server": {"model": self._engine.model, "kv": self._engine.kv,
                       "context": self._engine.context},
            "cache": {"tokens": held.tokens, "room": held.room, "bytes": held.n_bytes,
                      "allocated": held.allocated, "how": held.how},
            "job": self._job.as_dict() if self._job else None,
            "trouble": told(wrong) if wrong else None,
        }  # fmt: skip

    def documents(self, find: str, start: int) -> dict[str, Any]:
        """Documents whose path or title has some words, from the `start`th on."""
        words = find.casefold().split()
        rows = self._rows.now()
        if words:
            rows = [r for r in rows if all(w in f"{r.path} {r.title}".casefold() for w in words)]
        shown = [
            {"document": r.path, "title": r.title, "kind": r.kind, "passages": r.n_passages,
             "copies": len(r.copies)}
            for r in rows[start : start + ROWS]
        ]  # fmt: skip
        return {"documents": shown, "total": len(rows)}

    def source(self, document: str, start: int | None, end: int | None) -> dict[str, Any]:
        """A stretch of a document in its surroundings; see `stitch`.

        Raises:
            NybbleError: there is no such document.
        """
        return asdict(stitch(self._index.passages_of(document), start, end))

    def ask(self, asked: Asked, turn: Turn) -> None:
        """Answer a question, telling the turn what happens.

        Raises:
            NybbleError: see `rag.ask.ask`.
            HungUp: the asker is gone.
        """
        options = replace(self._options, passages=asked.same, over=asked.over)

        def tell(event: AskEvent) -> None:
            if event.kind == "sources" and event.packed is not None:
                turn.tell(_sources(event.packed))
            elif event.kind in ("text", "note"):
                turn.tell({"kind": event.kind, "text": event.text})
            elif event.kind == "reading":  # also finds out whether the asker is still there
                turn.tell({"kind": event.kind, "done": event.done, "total": event.total})

        answer = self._ask(self._index, asked.question, self._server, options, tell)
        turn.tell({"kind": "done", "answer": _answer(answer)})

    def close(self) -> None:
        """Close the connection to the server's cache readings."""
        self._gauge.close()

    def index_again(self) -> None:
        """Begin to bring the index up to date with its folder.

        Raises:
            NybbleError: it is being done, or not offered.
        """
        if self._job is None:
            raise NybbleError("the folder of this index is not here", hint="nybble rag index DIR")
        self._job.start()


class _Rows:
    """The list of documents, kept until the index changes."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._kept: tuple[int, list[DocumentRow]] | None = None
        self._lock = threading.Lock()

    def now(self) -> list[DocumentRow]:
        with self._lock:
            revision = self._index.revision
            if self._kept is None or self._kept[0] != revision:
                self._kept = (revision, self._index.documents())
            return self._kept[1]


def told(error: NybbleError) -> dict[str, Any]:
    """An error as the page shows it."""
    return {"what": error.what, "seen": error.seen, "allowed": error.allowed, "hint": error.hint}


def _sources(packed: Packed) -> Event:
    shown = [_source(source) for source in packed.sources]
    return {"kind": "sources", "sources": shown, "packed": packed.told()}


def _source(source: Source) -> dict[str, Any]:
    return {
        "number": source.number, "document": source.document, "title": source.title,
        "heading": source.heading, "page": source.page, "start": source.start,
        "end": source.end, "tokens": source.tokens, "text": source.text,
    }  # fmt: skip


def _answer(answer: Answer) -> dict[str, Any]:
    usage, timings = answer.usage, answer.timings
    warnings = check(answer.text, answer.sources).warnings
    prefix = [answer.prefix.told()] if answer.prefix is not None else []
    notes = [note for note in answer.notes if note not in warnings]
    return {
        "text": answer.text, "citations": [asdict(c) for c in answer.citations],
        "first": timings.first, "tokens": usage.answer, "speed": timings.rate(usage.answer),
        "found": timings.retrieve, "prompt": usage.prompt, "cached": usage.cached,
        "warnings": list(warnings), "notes": [*prefix, *notes],
        "same": [number for source in answer.sources for number in source.passages],
    }  # fmt: skip
