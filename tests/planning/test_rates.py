"""Rates out of measured runs, against runs made up from known rates."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_shapes import GEMMA4, LLAMA

from nybble.errors import NybbleError
from nybble.formats.setting import parse
from nybble.models.geometry import Weights
from nybble.planning import assumptions as a
from nybble.planning.calibration import Calibration, Decoded, Prefilled, calibrate
from nybble.planning.cards import card
from nybble.planning.interval import Interval
from nybble.planning.roofline import decode_work, prefill_work
from nybble.planning.throughput import decode, prefill

F16, Q4 = parse("f16"), parse("q4_0")
LLAMA_8B = replace(LLAMA, weights=Weights(int(5e9), int(8e9), int(5e9), int(8e9), "tensors"))
GEMMA_31B = replace(GEMMA4, weights=Weights(int(17e9), int(31e9), int(17e9), int(31e9), "tensors"))
RTX = card("rtx-3090")


def run(weights: float, cache: float, context: int, sequences: int = 1) -> Decoded:
    """A run on a machine that reads weights and cache at these rates."""
    work = decode_work(LLAMA_8B, F16, context, sequences)
    seconds = work.weights / weights + work.cache / cache
    return Decoded(context, sequences / seconds, sequences)


def made(*runs: Decoded) -> Calibration:
    return calibrate(LLAMA_8B, F16, runs, source="here")


def near(found: Interval, value: float) -> bool:
    return (found.low, found.high) == (pytest.approx(0.95 * value), pytest.approx(1.05 * value))


@given(st.floats(2e10, 3e12), st.floats(0.3, 3.0), st.integers(1, 3000))
def test_two_contexts_find_both_rates(weights: float, ratio: float, context: int) -> None:
    found = made(run(weights, weights * ratio, 32768), run(weights, weights * ratio, context))
    assert near(found.weights, weights)
    assert near(found.cache, weights * ratio)


def test_one_context_finds_one_rate() -> None:
    found = made(run(5e11, 5e11, 4096))
    assert near(found.weights, 5e11)
    assert found.cache == found.weights
    # Many sequences of one length bring another amount of cache, as a second context does.
    found = made(run(5e11, 2.5e11, 4096), run(5e11, 2.5e11, 4096, 8))
    assert near(found.weights, 5e11)
    assert near(found.cache, 2.5e11)


@pytest.mark.parametrize(
    "runs",
    [
        [Decoded(512, 50.0), Decoded(32768, 50.5)],  # a longer context that is faster
        [Decoded(512, 50.0), Decoded(512, 60.0)],
        [run(5e11, 5e10, 512), run(5e11, 5e10, 32768)],  # rates 10 times apart
        [run(5e10, 5e11, 512), run(5e10, 5e11, 32768)],
    ],
)
def test_noise_gives_one_rate_that_spans_all(runs: list[Decoded]) -> None:
    found = made(*runs)
    assert found.cache == found.weights
    for each in runs:
        work = decode_work(LLAMA_8B, F16, each.context)
        rate = (work.weights + work.cache) * each.tokens_per_second
        assert found.weights.low <= 0.951 * rate
        assert found.weights.high >= 1.049 * rate


@given(st.integers(16, 100_000), st.integers(16, 100_000), st.floats(10, 200), st.floats(0.3, 1))
def test_the_measured_runs_lie_in_their_own_estimate(
    first: int, second: int, speed: float, slower: float
) -> None:
    runs = [Decoded(min(first, second), speed), Decoded(max(first, second), speed * slower)]
    found = made(*runs)
    for each in runs:
        tokens = decode(LLAMA_8B, F16, RTX, each.context, calibration=found).tokens
        assert tokens.low <= each.tokens_per_second <= tokens.high


def test_prefill() -> None:
    work = prefill_work(LLAMA_8B, F16, 512, 0, 512)
    flops = (work.linear + work.attention) * 3000 / 512
    found = calibrate(
        LLAMA_8B, F16, [Decoded(512, 90.0)], [Prefilled(512, 3000.0)], source="llama-bench"
    )
    assert found.prefill is not None
    assert near(found.prefill, flops)
    assert 3000.0 in prefill(LLAMA_8B, F16, RTX, 512, calibration=found).tokens
    # It carries over to other models, and says where it is from.
    other = prefill(GEMMA_31B, F16, RTX, 4096, calibration=found)
    assert other.assumptions[:2] == found.assumptions[:2]
    assert {x.source for x in found.assumptions[:3]} == {"llama-bench"}
    assert a.REPEAT in found.assumptions
    # Without a measured prefill the card's rates count.
    assert a.PREFILL_SHARE in prefill(LLAMA_8B, F16, RTX, 512, calibration=made(run(5e11, 5e11, 9))
                                      ).assumptions  # fmt: skip


def test_another_quantized_cache_keeps_its_penalty() -> None:
    raw = made(run(5e11, 5e11, 1000), run(5e11, 5e11, 30000))
    assert raw.setting == "f16/f16"
    used = decode(LLAMA_8B, Q4, RTX, 30000, calibration=raw)
    assert a.CACHE_PENALTY in used.assumptions
    same = calibrate(LLAMA_8B, Q4, [Decoded(1000, 90.0), Decoded(30000, 80.0)], source="here")
    assert a.CACHE_PENALTY not in decode(LLAMA_8B, Q4, RTX, 30000, calibration=same).assumptions
    assert 80.0 in decode(LLAMA_8B, Q4, RTX, 30000, calibration=same).tokens


def test_a_card_of_unknown_bandwidth_can_be_calibrated() -> None:
    bare = replace(RTX, bandwidth_gbs=None, fp16_tflops=None)
    tokens = decode(LLAMA_8B, F16, bare, 1000, calibration=made(run(5e10, 5e10, 1000))).tokens
    assert tokens.high / tokens.low == pytest.approx(1.05 / 0.95)


def test_wrong_runs_are_refused() -> None:
    with pytest.raises(NybbleError, match="needs a measured decoding speed"):
        made()
    for speed in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(NybbleError, match="a measured speed"):
            made(Decoded(512, speed))
        with pytest.raises(NybbleError, match="a measured speed"):
            calibrate(LLAMA_8B, F16, [Decoded(1, 1.0)], [Prefilled(9, speed)], source="here")
    with pytest.raises(NybbleError, match="size of the weights"):
        calibrate(GEMMA4, F16, [Decoded(512, 9.0)], source="here")
