"""Parts of the page's server: a document out of overlapping passages, the cache's gauge."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nybble.errors import NybbleError
from nybble.rag.passages import Passage
from nybble.rag.web.gauge import Cells, Engine, Gauge, Held
from nybble.rag.web.job import MOST_SKIPPED, Job
from nybble.rag.web.stitch import AROUND, WHOLE, stitch


def cut(text: str, *places: tuple[int, int]) -> list[Passage]:
    return [
        Passage(i, "a.md", "A", "", None, a, b, 1, text[a:b]) for i, (a, b) in enumerate(places)
    ]


class TestStitch:
    @given(
        st.text(alphabet="abc\n é𝄞", min_size=1, max_size=80),
        st.integers(1, 20), st.integers(0, 9), st.integers(0, 80), st.integers(0, 80),
    )  # fmt: skip
    def test_overlapping_passages_give_the_text_once(
        self, text: str, size: int, overlap: int, a: int, b: int
    ) -> None:
        step = max(1, size - overlap)
        places = [(i, min(len(text), i + size)) for i in range(0, len(text), step)]
        start, end = sorted((min(a, len(text)), min(b, len(text))))
        found = stitch(reversed(cut(text, *places)), start, end)
        assert (found.before, found.marked, found.after) == (
            text[:start],
            text[start:end],
            text[end:],
        )
        assert not found.cut_before and not found.cut_after
        whole = stitch(cut(text, *places), None, None)
        assert whole.marked == text and whole.before == whole.after == ""

    def test_what_no_passage_holds_is_an_empty_line(self) -> None:
        text = "one.   two.   three."
        found = stitch(cut(text, (0, 4), (7, 11), (14, 20)), 7, 11)
        assert (found.before, found.marked, found.after) == ("one.\n\n", "two.", "\n\nthree.")
        found = stitch(cut("a b c", (0, 1), (2, 3), (4, 5)), 0, 3)
        assert (found.before, found.marked, found.after) == ("", "a b", " c")

    def test_a_long_document_is_cut_on_both_sides(self) -> None:
        text = "".join(f"{i:07d} " for i in range(10_000))
        places = [(i, i + 1000) for i in range(0, len(text), 1000)]
        found = stitch(cut(text, *places), 40_000, 41_000)
        assert found.marked == text[40_000:41_000]
        assert found.before == text[40_000 - AROUND : 40_000] and found.cut_before
        assert found.after == text[41_000 : 41_000 + AROUND] and found.cut_after
        start = stitch(cut(text, *places), None, None)
        assert start.marked == text[:WHOLE] and start.cut_after and not start.cut_before

    def test_nothing(self) -> None:
        assert stitch([], 3, 5).marked == ""


ENGINE = Engine("tiny", "q4_0/q4_0", 1000, (Cells(1000, 100), Cells(300, 10)), 2)


class Slots:
    """Stands for a server's GET /slots."""

    def __init__(self, found: Any) -> None:
        self.found = found

    def json(self, path: str) -> Any:
        assert path == "/slots"
        return self.found

    def close(self) -> None:
        pass


def gauge(found: Any, engine: Engine = ENGINE) -> Gauge:
    made = Gauge("http://127.0.0.1:1", None, engine)
    made._http.close()
    made._http = Slots(found)  # type: ignore[assignment]
    return made


class TestGauge:
    def test_a_window_holds_no_more_than_its_cells(self) -> None:
        assert ENGINE.held(200) == 200 * 110
        assert ENGINE.held(800) == 800 * 100 + 300 * 10

    def test_tokens_of_all_slots_times_their_bytes(self) -> None:
        found = gauge(
            [{"n_prompt_tokens": 200}, {"n_prompt_tokens": 800, "is_processing": True}]
        ).read()
        assert (found.tokens, found.room) == (1000, 2000)
        assert found.n_bytes == 200 * 110 + 800 * 100 + 300 * 10
        assert found.allocated == 2 * (1000 * 100 + 300 * 10)
        assert "by the plan" in found.how

    def test_a_slot_that_was_never_used(self) -> None:
        assert gauge([{"is_processing": False}, {"n_prompt_tokens": 9}]).read().tokens == 9

    def test_a_server_whose_bytes_are_not_known(self) -> None:
        found = gauge([{"n_prompt_tokens": 5, "n_ctx": 64}], Engine("x")).read()
        assert (found.tokens, found.room, found.n_bytes) == (5, 64, None)
        assert "does not tell the bytes" in found.how

    @pytest.mark.parametrize(
        "found", [None, {}, [], [1], [{"n_prompt_tokens": -1}], [{"n_prompt_tokens": "many"}]]
    )
    def test_other_servers_tell_nothing(self, found: Any) -> None:
        assert gauge(found).read() == Held()

    def test_a_busy_server_keeps_its_last_word(self) -> None:
        made = gauge([{"n_prompt_tokens": 10}])
        first = made.read()
        made._http.found = None  # type: ignore[attr-defined]
        for _ in range(2):
            late = made.read()
            assert late.tokens == first.tokens and late.how.count("told last") == 1
        made._http.found = [{"n_prompt_tokens": 11}]  # type: ignore[attr-defined]
        assert made.read().tokens == 11 and "last" not in made.read().how


class TestJob:
    def test_its_end_is_told_and_it_may_begin_again(self) -> None:
        ended = threading.Event()

        def build(job: Job) -> tuple[str, list[tuple[str, str]]]:
            job.stage("reads")
            job.note("odd")
            ended.set()
            return "done", [(f"{i}", "why") for i in range(MOST_SKIPPED + 7)]

        job = Job(build)
        assert job.as_dict() is None
        for _ in range(2):
            ended.clear()
            job.start()
            assert ended.wait(5)
            _wait(job)
            found = job.as_dict()
            assert found["told"] == "done" and found["notes"] == ["odd"] and found["more"] == 7
            assert len(found["skipped"]) == MOST_SKIPPED

    @pytest.mark.parametrize("error", [NybbleError("no folder", seen="x"), ValueError("odd")])
    def test_a_failure_is_told(self, error: Exception) -> None:
        def build(job: Job) -> tuple[str, list[tuple[str, str]]]:
            raise error

        job = Job(build)
        job.start()
        _wait(job)
        found = job.as_dict()
        assert not found["running"] and found["error"]["what"]
        assert found["error"]["seen"] in ("x", "odd")


def _wait(job: Job) -> None:
    for thread in threading.enumerate():
        if thread.name == "nybble-index":
            thread.join(5)
    assert not (job.as_dict() or {})["running"]
