"""What a stored load test gives to a cost and a plan, and when it gives nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from load_builders import SHAPE, answer, in_blocks, report_of, run_of
from nybble.errors import NybbleError
from nybble.formats.setting import parse
from nybble.models.gguf_geometry import geometry_of_gguf
from nybble.planning.cards import Card
from nybble.planning.cost import LoadProfile, Option
from nybble.planning.costs import CostRequest, cost
from nybble.planning.interval import Interval
from nybble.planning.measured import MEASURED_ON, load, save
from nybble.planning.measured_load import measured_load, rates, throughput
from nybble.planning.roofline import decode_work
from nybble.planning.throughput import decode, prefill
from nybble.results.loads import write

F16 = parse("f16/f16")
HERE = Card(name="this machine", vendor="cpu", memory_bytes=0)
STEADY = run_of([answer(i) for i in range(20)])


def at(length: int, index: int, prefill: float, step: float) -> Any:
    gaps = (step,) * 10
    return answer(index, tokens_in=length, asked_in=length, first=length / prefill, gaps=gaps)


class TestThroughput:
    def test_widened_by_what_a_repeat_may_differ(self) -> None:
        found = throughput(SHAPE, STEADY, "x.json")
        assert found.rate.low < 55 / 1.04 and found.rate.high > 55 * 1.04
        assert "x.json" in found.assumption.source and found.concurrency == 1

    def test_open_loops_and_failures_are_refused(self) -> None:
        with pytest.raises(NybbleError, match="open loop"):
            throughput(dataclasses.replace(SHAPE, rate=2.0), STEADY, "x")
        broken = run_of([answer(i, error="HTTP 500" if i > 15 else None) for i in range(20)])
        with pytest.raises(NybbleError, match="failed"):
            throughput(SHAPE, broken, "x")

    @pytest.mark.parametrize(
        ("change", "words"),
        [({"tokens_in": 200}, "--in 100"), ({"tokens_out": 22}, "--out 11"),
         ({"cached": 0.5}, "--cached 0.00")],
    )  # fmt: skip
    def test_another_load_is_refused(self, change: dict[str, Any], words: str) -> None:
        profile = LoadProfile(**{"tokens_in": 100, "tokens_out": 11, **change})
        with pytest.raises(NybbleError) as caught:
            throughput(SHAPE, STEADY, "x").check(profile)
        assert words in str(caught.value)

    def test_fewer_users_than_measured_are_refused(self) -> None:
        found = throughput(dataclasses.replace(SHAPE, concurrency=4), STEADY, "x")
        found.check(LoadProfile(100, 11, users=4))
        with pytest.raises(NybbleError, match="more requests at once"):
            found.check(LoadProfile(100, 11, users=3))

    def test_the_run_is_named_where_there_are_two(self, tmp_path: Path) -> None:
        two = run_of(in_blocks(5, 4, lambda b: 2.0), "two", blocks=5)
        path = write(report_of(run_of(in_blocks(5, 4), blocks=5), two), tmp_path / "l.json")
        assert measured_load(f"{path}#two").rate.high < measured_load(f"{path}#one").rate.low
        for text in (str(path), f"{path}#three"):
            with pytest.raises(NybbleError, match="which run"):
                measured_load(text)


class TestCost:
    def test_seconds_are_those_that_were_measured(self) -> None:
        option = Option("x", HERE, 1, 4, Interval(50, 60), None)
        assert option.seconds(LoadProfile(10_000, 120)) == Interval(2.0, 2.4)

    def test_it_replaces_the_estimate(self, tmp_path: Path) -> None:
        """22 tokens a second for 4 at once: 1,000 requests of 11 tokens take 500 s."""
        shape = dataclasses.replace(SHAPE, concurrency=4)
        path = write(report_of(STEADY, shape=shape), tmp_path / "l.json")
        way = "rtx-4090:q8_0/q4_0"
        request = CostRequest("gemma-4-31b-qat", (way,), LoadProfile(100, 11, users=4),
                              measured={way: measured_load(str(path))})  # fmt: skip
        for found in cost(request).costs:
            assert found.sequences == 4
            assert found.assumptions[0].source.startswith("measured: l.json")
            a_month = 55 * 30.4 * 24 * 3600 / 1e6
            assert found.million_out[0] < a_month * 1.01 and found.million_out[1] > a_month * 0.99
        with pytest.raises(NybbleError, match="no option"):
            cost(dataclasses.replace(request, measured={"l40s": measured_load(str(path))}))
        with pytest.raises(NybbleError, match="picture"):
            cost(dataclasses.replace(request, curve=True))


class TestRates:
    def test_a_plan_gives_the_measured_speeds_back(self, tiny_model: Path, tmp_path: Path) -> None:
        geometry = geometry_of_gguf(tiny_model)

        def step(length: int) -> float:
            work = decode_work(geometry, F16, length + 6)
            return work.weights / 2e8 + work.cache / 1e8

        run = run_of([at(n, i, 2000.0, step(n)) for n in (100, 1000) for i in range(10)])
        made = rates(report_of(run), run, geometry, F16)
        path = save(made, tmp_path / "rates.json")
        calibration = load(path)
        for length in (100, 500, 1000):
            found = decode(geometry, F16, HERE, length + 6, calibration=calibration).tokens
            assert found.low <= 1 / step(length) <= found.high and found.high / found.low < 1.2
        found = prefill(geometry, F16, HERE, 1000, calibration=calibration).tokens
        assert found.low <= 2000 <= found.high
        assert [a for a in calibration.assumptions if a.name == MEASURED_ON]

    @pytest.mark.parametrize(
        ("shape", "run", "words"),
        [
            ({"concurrency": 4}, {}, "one request at a time"),
            ({"rate": 1.0}, {}, "one request at a time"),
            ({}, {"url": "http://10.0.0.1:80/v1"}, "another one"),
            ({}, {"url": "https://example.com/v1"}, "another one"),
            ({}, {"requests": STEADY.requests[:5]}, "too few"),
        ],
    )
    def test_refused(
        self, tiny_model: Path, shape: dict[str, Any], run: dict[str, Any], words: str
    ) -> None:
        geometry, changed = geometry_of_gguf(tiny_model), dataclasses.replace(STEADY, **run)
        report = report_of(changed, shape=dataclasses.replace(SHAPE, **shape))
        with pytest.raises(NybbleError, match=words):
            rates(report, changed, geometry, F16)

    def test_lengths_that_were_not_counted(self, tiny_model: Path) -> None:
        run = run_of([answer(i, tokens_in=None) for i in range(20)])
        with pytest.raises(NybbleError, match="too few"):
            rates(report_of(run), run, geometry_of_gguf(tiny_model), F16)

    def test_cached_prompts_are_no_prefill(self, tiny_model: Path) -> None:
        run = run_of([answer(i, cached=100) for i in range(20)])
        with pytest.raises(NybbleError, match="too few"):
            rates(report_of(run), run, geometry_of_gguf(tiny_model), F16)
