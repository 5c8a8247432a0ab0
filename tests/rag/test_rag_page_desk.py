"""The desk over a real index: what the page is told of it, and how an answer is handed on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from page_doubles import HOSTILE
from page_index import small_index
from rag_index_doubles import Silent

from nybble.errors import NybbleError
from nybble.rag.answers import (
    Answer,
    Citation,
    Event,
    Options,
    Packed,
    PrefixUse,
    Server,
    Source,
    Timings,
    Usage,
)
from nybble.rag.build import IndexOptions, build
from nybble.rag.index import Index, open_index
from nybble.rag.web.asked import Asked
from nybble.rag.web.desk import Desk
from nybble.rag.web.gauge import Engine
from nybble.rag.web.job import Job
from nybble.rag.web.turns import HungUp, Turn

NOWHERE = Server("http://127.0.0.1:9/v1", setting="q8_0/q4_0")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "harbour"


@pytest.fixture
def index(folder: Path) -> Iterator[Index]:
    with open_index(small_index(folder)) as found:
        yield found


class Scripted:
    """Stands for rag.ask.ask: retrieves for real, then says what it is given."""

    def __init__(self, text: str = "", citations: tuple[Citation, ...] = ()) -> None:
        self.text, self.citations = text, citations
        self.options: list[Options] = []

    def __call__(
        self, index: Index, question: str, server: Server, options: Options,
        on_event: Callable[[Event], None],
    ) -> Answer:  # fmt: skip
        self.options.append(options)
        found = [h.passage for h in index.search(question, options.k)]
        sources = tuple(
            Source(n, p.document, p.title, p.heading, p.page, p.start, p.end, p.tokens, p.text,
                   (p.id,)) for n, p in enumerate(found, 1)
        )  # fmt: skip
        packed = Packed(sources, len(found), len(found), 90, 800)
        on_event(Event("note", text="packs less"))
        on_event(Event("sources", packed=packed))
        on_event(Event("text", text=self.text))
        answer = Answer(
            question, self.text, sources, self.citations, packed, Usage(100, 80, 11),
            Timings(0.02, 0.01, 0.5, 1.5, 1.0), PrefixUse("read", 80, 80, 0.05, 9.0, 1, 1),
            ("a note", "cited, but no such source: [9]"), "stop",
        )  # fmt: skip
        on_event(Event("done", answer=answer))
        return answer


def told(desk: Desk, asked: Asked, gone: bool = False) -> list[dict[str, Any]]:
    """What a turn hears."""

    async def listen() -> list[dict[str, Any]]:
        turn = Turn(asyncio.get_running_loop())
        if gone:
            turn.hang_up()
        try:
            desk.ask(asked, turn)
        finally:
            turn.end()
        return [event async for event in turn.events(5) if event is not None]

    return asyncio.run(listen())


def made(index: Index, ask: Any, **more: Any) -> Desk:
    engine = Engine("tiny", "q8_0/q4_0", 4096)
    return Desk(index, NOWHERE, engine, Options(k=3, context=4096), ask, **more)


class TestAnswers:
    def test_an_answer_is_handed_on_in_plain_values(self, index: Index) -> None:
        cited = (Citation(1, True, None, 6, 9), Citation(9, False, None, 10, 13))
        ask = Scripted("Seven [1] [9].", cited)
        found = told(made(index, ask), Asked("crane number 3"))
        assert [e["kind"] for e in found] == ["note", "sources", "text", "done"]
        first = found[1]["sources"][0]
        assert first["number"] == 1 and first["document"] == "cranes.md"
        assert "crane number" in first["text"] and first["heading"].startswith("Crane")
        assert found[1]["packed"] == "packed 3 of 3 passages: 90 of 800 tokens"
        done = found[3]["answer"]
        assert done["first"] == 0.5 and done["tokens"] == 11 and done["speed"] == 10
        assert done["notes"][0].startswith("80 tokens of context read from a file in 0.05 s")
        assert done["notes"][1:] == ["a note"]
        assert done["warnings"] == ["cited, but no such source: [9]"]
        assert done["text"] == "Seven [1] [9]." and done["citations"][1]["number"] == 9
        assert done["citations"][1]["exists"] is False and done["citations"][1]["start"] == 10
        assert len(done["same"]) == 3

    def test_the_same_passages_and_whole_documents(self, index: Index) -> None:
        ask = Scripted()
        desk = made(index, ask)
        told(desk, Asked("crane", same=(3, 1)))
        told(desk, Asked("crane", over=("tides.txt",)))
        assert [(o.passages, o.over, o.k) for o in ask.options] == [
            ((3, 1), (), 3), ((), ("tides.txt",), 3),
        ]  # fmt: skip

    def test_an_asker_who_is_gone_ends_the_answer(self, index: Index) -> None:
        with pytest.raises(HungUp):
            told(made(index, Scripted("text")), Asked("crane"), gone=True)


class TestIndex:
    def test_its_state(self, index: Index) -> None:
        failed: list[NybbleError] = []
        desk = made(index, Scripted(), trouble=lambda: failed[0] if failed else None)
        state = desk.state()
        assert state["index"]["documents"] == 3 and state["index"]["folder"] == "harbour"
        assert state["index"]["embedding"] == "hashed, 64 dimensions"
        assert state["index"]["again"] is False and state["job"] is None
        assert state["server"] == {"model": "tiny", "kv": "q8_0/q4_0", "context": 4096}
        assert state["cache"]["tokens"] is None and "does not tell" in state["cache"]["how"]
        failed.append(NybbleError("it dies again and again", hint="more memory"))
        assert desk.state()["trouble"]["what"] == "it dies again and again"
        with pytest.raises(NybbleError, match="not here"):
            desk.index_again()
        desk.close()

    def test_documents_are_found_by_path_and_title(self, index: Index) -> None:
        desk = made(index, Scripted())
        everything = desk.documents("", 0)
        assert everything["total"] == 3
        assert [d["document"] for d in desk.documents("HARBOUR cranes", 0)["documents"]] == [
            "cranes.md"
        ]
        assert desk.documents("", 2)["documents"] == everything["documents"][2:]
        assert desk.documents("nothing", 0) == {"documents": [], "total": 0}
        assert any(HOSTILE in d["title"] for d in everything["documents"])

    def test_a_passage_lies_in_its_document(self, index: Index, folder: Path) -> None:
        text = (folder / "cranes.md").read_text()
        desk = made(index, Scripted())
        for passage in index.passages_of("cranes.md"):
            found = desk.source("cranes.md", passage.start, passage.end)
            assert found["marked"] == passage.text == text[passage.start : passage.end]
            around = found["before"] + found["marked"] + found["after"]
            assert around.split() == text[
                max(0, passage.start - 4000) : passage.end + 4000
            ].split() or found["cut_before"] or found["cut_after"]  # fmt: skip
        whole = desk.source("cranes.md", None, None)
        assert whole["marked"].split() == text.split()
        with pytest.raises(NybbleError, match="no such document"):
            desk.source("../outside", None, None)

    def test_indexing_again_while_it_is_read(self, index: Index, folder: Path) -> None:
        def again(job: Job) -> Any:
            report = build(folder, index.path, IndexOptions(), job)
            return f"{report.added} added", [(s.path, s.reason) for s in report.skipped]

        desk = made(index, Scripted("x"), job=Job(again))
        before = desk.state()["index"]["revision"]
        (folder / "locks.md").write_text("# Locks\n\nThe lock gate opens to the dolphins.\n")
        (folder / "x.pdf").write_bytes(b"%PDF-1.4 nothing")
        desk.index_again()
        for thread in threading.enumerate():
            if thread.name == "nybble-index":
                thread.join(60)
        state = desk.state()
        assert state["job"]["told"] == "1 added" and state["job"]["error"] is None
        assert [s["path"] for s in state["job"]["skipped"]] == ["x.pdf"]
        assert state["index"]["revision"] != before and state["index"]["documents"] == 4
        assert "locks.md" in [d["document"] for d in desk.documents("", 0)["documents"]]
        found = told(desk, Asked("lock gate dolphins"))
        assert found[1]["sources"][0]["document"] == "locks.md"
        build(folder, index.path, IndexOptions(), Silent())
