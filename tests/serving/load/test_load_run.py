"""llama.cpp's own server with a tiny model, driven for real."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from nybble.errors import NybbleError
from nybble.results.loads import LoadReport, from_json, to_json, write
from nybble.serving.load.lengths import Lengths
from nybble.serving.load.profile import BenchProfile
from nybble.serving.load.run import BenchRequest, bench
from nybble.serving.load.summary import Limits


class Told:
    """Progress that remembers."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.total = self.done = 0.0

    def stage(self, text: str) -> None:
        self.stages.append(text)

    def begin(self, text: str, total: float) -> None:
        self.total = total

    def advance(self, done: float) -> None:
        self.done += done

    def note(self, text: str) -> None:
        raise AssertionError(text)


def profile(**options: Any) -> BenchProfile:
    given = {"tokens_in": Lengths.parse("150..300"), "tokens_out": Lengths.parse("12"),
             "concurrency": 3, "requests": 20, **options}  # fmt: skip
    return BenchProfile(**given)


@pytest.fixture(scope="module")
def pair(served: str, served_too: str) -> LoadReport:
    """An f16 and a q4_0 cache in turns."""
    request = BenchRequest((served, served_too), profile(), names=("f16", "q4_0"),
                           limits=Limits(ttft=60.0))  # fmt: skip
    return bench(request)


class TestOne:
    @pytest.mark.parametrize("api", ["chat", "completions"])
    def test_every_request_is_measured(self, served: str, api: str) -> None:
        told = Told()
        found = bench(BenchRequest((served,), profile(api=api)), told)
        run = found.runs[0]
        assert run.server == "llamacpp" and run.model.endswith(".gguf")
        # One of 20 failed once in some thousands: random weights write what a chat parser may
        # refuse. Only the server's own refusals are let through.
        assert run.numbers.answered >= 19, run.numbers.failures
        assert {f.error for f in run.numbers.failures} <= {"HTTP 500", "server error"}
        assert (told.total, told.done) == (20, 20) and "3 warm-up" in told.stages[-1]
        assert [r.index for r in run.requests] == list(range(20))
        for r in (r for r in run.requests if r.error is None):
            assert r.first is not None and r.tokens_out == r.asked_out == 12
            assert abs((r.tokens_in or 0) / r.asked_in - 1) < 0.15, "a vocabulary of bytes"
            assert 0 <= r.due <= r.sent and r.first + sum(r.gaps) <= r.total + 1e-4
        assert run.numbers.as_asked == 1 or run.numbers.failed
        assert run.numbers.cached is not None and run.numbers.cached < 0.15
        assert found.ratios == () and from_json(to_json(found)) == found

    def test_a_second_run_is_not_found_in_the_cache(self, served: str) -> None:
        for _ in range(2):
            found = bench(BenchRequest((served,), profile(requests=8))).runs[0]
            assert found.numbers.cached is not None and found.numbers.cached < 0.15

    def test_a_shared_beginning_is(self, served: str) -> None:
        found = bench(BenchRequest((served,), profile(shared=0.8, concurrency=1))).runs[0]
        assert found.numbers.cached is not None and found.numbers.cached > 0.4

    def test_longer_than_the_context(self, served: str) -> None:
        """Some fit and some do not: the others' answers are not lost, and the words are told."""
        found = bench(BenchRequest((served,), profile(tokens_in=Lengths.parse("200..1700"))))
        n = found.runs[0].numbers
        assert n.answered and n.failed and n.failures[0].error == "HTTP 400"
        assert "exceeds the available context" in n.failures[0].detail

    def test_answers_may_end_early(self, served: str) -> None:
        found = bench(BenchRequest((served,), profile(ignore_eos=False, requests=5)))
        assert not found.runs[0].numbers.failed

    def test_in_a_notebook(self, served: str) -> None:
        """There a loop is running already."""

        async def inside() -> LoadReport:
            return bench(BenchRequest((served,), profile(requests=1)))

        assert asyncio.run(inside()).runs[0].numbers.answered == 1


class TestTwo:
    def test_take_turns(self, pair: LoadReport) -> None:
        one, two = pair.runs
        began = [(b.began, name) for run, name in ((one, "f16"), (two, "q4_0"))
                 for b in run.blocks]  # fmt: skip
        assert [name for _, name in sorted(began)] == ["f16", "q4_0"] * 5
        for a, b in zip(one.blocks, two.blocks, strict=True):
            assert a.began + a.seconds <= b.began + 1e-3, "never both at once"
        assert [r.asked_in for r in one.requests] == [r.asked_in for r in two.requests]
        assert one.mark != two.mark

    def test_ratio(self, pair: LoadReport) -> None:
        (found,) = pair.ratios
        assert (found.of, found.against, found.in_turns) == ("q4_0", "f16", True)
        assert found.rates["tokens_out"].low is not None
        assert found.seconds_at["ttft"]["p50"].low is not None
        assert pair.runs[0].numbers.good is not None

    def test_against_a_stored_run(self, pair: LoadReport, served: str, tmp_path: Any) -> None:
        path = write(pair, tmp_path / "pair.json")
        found = bench(BenchRequest((served,), profile(), names=("f16",), against=path))
        assert [r.name for r in found.runs] == ["f16 (stored)", "q4_0", "f16"]
        assert [r.in_turns for r in found.ratios] == [True, False]
        with pytest.raises(NybbleError, match="different load profiles"):
            bench(BenchRequest((served,), profile(seed=1), against=path))

    def test_names(self) -> None:
        for urls, names in ((("a", "b"), ("x",)), (("a", "b"), ("x", "x")), ((), ())):
            with pytest.raises(NybbleError):
                BenchRequest(urls, names=names)
