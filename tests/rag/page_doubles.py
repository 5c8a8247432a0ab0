"""A desk that answers from a script, for tests of the page without an index and a model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from nybble.errors import NybbleError
from nybble.rag.passages import Passage
from nybble.rag.web.asked import Asked
from nybble.rag.web.job import Job
from nybble.rag.web.server import PageServer
from nybble.rag.web.stitch import stitch
from nybble.rag.web.turns import Turn

HOSTILE = '<script>window.bad = 1</script><img src=x onerror="window.bad = 2">'
TITLES = {
    "guide/kv.md": "The cache",
    f"bad/{HOSTILE.replace('/', '')}.md": f"{HOSTILE} a title",
    "notes/" + "long" * 40 + ".txt": "long" * 40 + ".txt",
}
ANSWER = f"𝄞 Blocks of 32 [1]; see [2, 3] and [9]. {HOSTILE} A bracket [4 that stays open"
# As nybble.rag.citations finds them, the quotation before the third made up.
CITED = [
    {"number": n, "exists": n < 4, "quote_ok": False if n == 3 else None,
     "start": ANSWER.index(b), "end": ANSWER.index(b) + len(b)}
    for n, b in ((1, "[1]"), (2, "[2, 3]"), (3, "[2, 3]"), (9, "[9]"))
]  # fmt: skip
_TEXT = "A quantized cache keeps blocks of 32 numbers with one scale. "


def passages(document: str) -> list[Passage]:
    """Three passages of twenty sentences; the second is hostile."""
    found, at = [], 0
    for i in range(3):
        text = f"Section {i}\n" + (HOSTILE if i == 1 else "") + _TEXT * 20
        found.append(Passage(i, document, TITLES[document], f"Section {i}", i + 1, at,
                             at + len(text), 300, text))  # fmt: skip
        at += len(text) + 2
    return found


class ScriptedDesk:
    """Answers every question alike.

    Attributes:
        step: called before each piece of the answer, so that a test can hold it.
        fails: raised in the middle of an answer.
        asked: the questions so far.
        done: answers that came to their end.
        changed: whether the documents are others than those that were read.
    """

    def __init__(self) -> None:
        self.step: Callable[[], object] = lambda: None
        self.fails: Exception | None = None
        self.asked: list[Asked] = []
        self.done = 0
        self.begun = threading.Event()
        self.job = Job(self._build)
        self.revision = "r1"
        self.changed = False

    def state(self) -> dict[str, Any]:
        return {
            "index": {"folder": "corpus", "documents": 3, "passages": 9, "embedding": "minilm",
                      "revision": self.revision, "again": True},
            "server": {"model": "tiny", "kv": "q8_0/q4_0", "context": 4096},
            "cache": {"tokens": 1024, "room": 4096, "bytes": 1024 * 144, "allocated": 4096 * 144,
                      "how": "as the plan says"},
            "job": self.job.as_dict(), "trouble": None,
        }  # fmt: skip

    def documents(self, find: str, start: int) -> dict[str, Any]:
        rows = [{"document": d, "title": t, "kind": "text", "passages": 3}
                for d, t in TITLES.items() if find in d]  # fmt: skip
        return {"documents": rows[start:], "total": len(rows)}

    def source(self, document: str, start: int | None, end: int | None) -> dict[str, Any]:
        if document not in TITLES:
            raise NybbleError("no such document", seen=document)
        if self.changed and start is not None:
            start += 1
        return asdict(stitch(passages(document), start, end))

    def ask(self, asked: Asked, turn: Turn) -> None:
        self.asked.append(asked)
        self.begun.set()
        sources = []
        for number, document in enumerate(TITLES, 1):
            p = passages(document)[1]
            sources.append({"number": number, "document": document, "title": p.title,
                            "heading": p.heading, "page": p.page, "start": p.start,
                            "end": p.end, "text": p.text})  # fmt: skip
        turn.tell({"kind": "sources", "sources": sources, "packed": "3 of 5 passages"})
        for i in range(0, len(ANSWER), 4):
            self.step()
            turn.tell({"kind": "text", "text": ANSWER[i : i + 4]})
            if self.fails and i > 40:
                raise self.fails
        turn.tell({"kind": "done", "answer": {
            "text": ANSWER, "citations": CITED,
            "first": 0.84, "tokens": 96, "speed": 31.4159, "found": 0.041,
            "warnings": ["cites [9], which does not exist", "a quotation is not there"],
            "notes": ["4,012 tokens from a file"],
            "same": [1, 4, 7],
        }})  # fmt: skip
        self.done += 1

    def index_again(self) -> None:
        self.job.start()

    def _build(self, job: Job) -> tuple[str, list[tuple[str, str]]]:
        job.begin("embeds 10 passages", 10)
        for _ in range(10):
            self.step()
            job.advance(1)
        self.revision += "+"
        return "1 document added", [("scan.pdf", f"encrypted {HOSTILE}")]


@contextmanager
def page(desk: Any, **options: Any) -> Iterator[PageServer]:
    """The page's server while a block runs."""
    ready = threading.Event()
    server = PageServer(desk, port=0, on_ready=lambda _: ready.set(), **options)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert ready.wait(20)
        yield server
    finally:
        server.stop()
        thread.join(20)
        assert not thread.is_alive()
