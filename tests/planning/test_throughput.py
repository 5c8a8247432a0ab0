"""Speed: ordered, monotone, adding up, and as the bench says of published runs."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_shapes import GEMMA4, LLAMA

from nybble.errors import NybbleError
from nybble.formats.setting import parse
from nybble.models.geometry import Geometry, Weights
from nybble.planning import assumptions as a
from nybble.planning.calibration import Calibration, Decoded, Prefilled, calibrate
from nybble.planning.cards import card, change
from nybble.planning.interval import Interval
from nybble.planning.roofline import Experts
from nybble.planning.throughput import Speed, decode, prefill

BENCH = Path(__file__).parents[2] / "bench"
RESULT = json.loads((BENCH / "results/plan_throughput.json").read_text(encoding="utf-8"))
F16, Q4 = parse("f16"), parse("q4_0")
RTX = card("rtx-3090")


def weighted(model: Geometry, params: float, bits: float, **types: int) -> Geometry:
    n = int(params)
    size = int(params * bits / 8)
    return replace(model, weights=Weights(size, n, size, n, "published", types))


LLAMA_8B = weighted(LLAMA, 8.03e9, 4.9)
GEMMA_31B = weighted(GEMMA4, 30.7e9, 4.5)


def lines(speed: Speed) -> dict[str, Interval]:
    return {line.name: line.value for line in speed.lines}


def test_llama_on_a_3090_by_hand() -> None:
    # 4.918 GB of weights and 0.537 GB of cache at 0.55 to 0.92 of 936 GB/s; 32 layers x 80 us.
    speed = decode(LLAMA_8B, F16, RTX, 4096)
    moved = 8.03e9 * 4.9 / 8 + 4096 * 131072
    slow, fast = moved / (0.55 * 936e9) + 32 * 80e-6, moved / (0.92 * 936e9)
    assert (speed.seconds.low, speed.seconds.high) == (pytest.approx(fast), pytest.approx(slow))
    assert speed.tokens.low == pytest.approx(1 / slow)
    assert speed.tokens.high == pytest.approx(1 / fast)
    assert speed.each == speed.tokens
    assert speed.bound == "bandwidth"


def test_prefill_by_hand() -> None:
    # 2 x 8.03 G less the output matrix x 512, and attention, at 0.2 of 71.2 TFLOPS up to 0.35 of
    # 285 TOPS in INT8, which is more than 0.95 of 71.2.
    speed = prefill(LLAMA_8B, F16, RTX, 512)
    output = 128256 * 4096
    n = 2 * ((8.03e9 - output) * 512 + output) + 32 * 16384 * 512 * 513 / 2
    assert speed.seconds.low == pytest.approx(n / (0.35 * 285e12))
    assert speed.seconds.high == pytest.approx(n / (0.2 * 71.2e12) + 32 * 80e-6)
    assert speed.bound == "compute"
    # Weights of 16 bits are not multiplied in INT8.
    wide = prefill(weighted(LLAMA, 8.03e9, 16), F16, RTX, 512)
    assert wide.seconds.low == pytest.approx(n / (0.95 * 71.2e12))


@pytest.mark.parametrize("kind", ["fp4", "fp8"])
def test_narrow_floats_use_their_rate(kind: str) -> None:
    types = {"fp4": "MXFP4", "fp8": "F8_E4M3"}[kind]
    b200 = card("b200")
    plain, narrow = (
        prefill(weighted(LLAMA, 8.03e9, 8 if kind == "fp8" else 4.25, **t), F16, b200, 4096)
        for t in ({}, {types: 1})
    )
    assert narrow.tokens.high > plain.tokens.high
    assert narrow.tokens.low == plain.tokens.low
    assert any(kind.upper() in used.name for used in narrow.assumptions)


ANY = {
    "setting": st.sampled_from(["f16", "q8_0", "q4_0", "q8_0/q4_0"]),
    "context": st.integers(0, 200_000),
    "sequences": st.integers(1, 256),
    "cards": st.integers(1, 8),
    "split": st.sampled_from(["layer", "tensor"]),
    "name": st.sampled_from(["rtx-3090", "m3-ultra-96gb", "h100-sxm", "dgx-spark"]),
    "experts": st.sampled_from([None, Experts(128, 8, 10**10), Experts(8, 2)]),
}


@settings(max_examples=60)
@given(**ANY)  # type: ignore[arg-type]
def test_lines_add_up(setting: str, context: int, name: str, experts: Any, **given_: Any) -> None:
    speed = decode(GEMMA_31B, parse(setting), card(name), context, experts=experts, **given_)
    n, parts = given_["sequences"], lines(speed)
    assert 0 < speed.tokens.low <= speed.tokens.high
    assert speed.tokens.low == pytest.approx(n * speed.each.low)
    assert speed.tokens.high == pytest.approx(n / speed.seconds.low)
    cards, split = given_["cards"], given_["split"]
    parallel = Interval(1, 1)
    if cards > 1 and split == "tensor":
        parallel = Interval(max(cards * 0.45, 1), cards * 0.95)
    lost = 0.0
    if setting != "f16":
        lost = 0.17 if context <= 32768 else 0.35
    adding = parts.get("arithmetic", Interval(0, 0))
    low = max(parts["weights"].low + parts["cache"].low, adding.low) / parallel.high
    high = max(parts["weights"].high + parts["cache"].high, adding.high) / parallel.low
    assert parts["together"] == speed.seconds
    assert speed.seconds.low == pytest.approx(low)
    assert speed.seconds.high == pytest.approx((high + parts["overhead"].high) / (1 - lost))
    assert all(any(c.isdigit() for c in x.formula) for x in speed.lines if x.name != "together")


@settings(max_examples=60)
@given(more=st.floats(1, 3), **ANY)  # type: ignore[arg-type]
def test_monotone(
    more: float, setting: str, context: int, name: str, experts: Any, **given_: Any
) -> None:
    def ends(kv: str, tokens: int, factor: float = 1.0) -> tuple[float, float]:
        known = card(name)
        assert known.bandwidth_gbs is not None
        wider = change(known, bandwidth_gbs=known.bandwidth_gbs * factor)
        speed = decode(GEMMA_31B, parse(kv), wider, tokens, experts=experts, **given_)
        return speed.tokens.low, speed.tokens.high

    def no_slower(first: tuple[float, float], second: tuple[float, float]) -> bool:
        return all(x >= y * (1 - 1e-9) for x, y in zip(first, second, strict=True))

    here = ends(setting, context)
    assert no_slower(ends(setting, context, more), here)
    assert no_slower(here, ends(setting, int(context * more) + 1))
    # Fewer bits are faster at the good end only: a quantized cache may also be slower than f16.
    assert ends("q4_0", context)[1] >= ends("q8_0", context)[1] * (1 - 1e-9)
    assert ends("q8_0", context)[1] >= ends("f16", context)[1] * (1 - 1e-9)
    assert ends("q4_0", context)[0] <= ends("f16", context)[0]


def test_prefill_is_monotone() -> None:
    def at(**given_: Any) -> Interval:
        return prefill(GEMMA_31B, F16, RTX, given_.pop("tokens", 4096), **given_).tokens

    depths = [at(depth=n) for n in (0, 1000, 50_000)]
    assert [x.low for x in depths] == sorted((x.low for x in depths), reverse=True)
    assert [x.high for x in depths] == sorted((x.high for x in depths), reverse=True)
    assert at(cards=2, split="layer").high == pytest.approx(2 * at().high, rel=0.01)
    assert at(cards=2, split="layer").low == pytest.approx(at().low)
    # One micro-batch cannot be in two cards at once.
    assert at(tokens=512, cards=2, split="layer") == at(tokens=512)


def test_cards_that_take_turns_decode_no_faster() -> None:
    one, two = (decode(GEMMA_31B, F16, RTX, 100, cards=n) for n in (1, 2))
    assert two.tokens == one.tokens
    both = decode(GEMMA_31B, F16, RTX, 100, cards=2, split="tensor")
    assert both.tokens.high > one.tokens.high
    assert both.tokens.low >= one.tokens.low


def test_many_sequences_are_bound_by_arithmetic() -> None:
    speed = decode(GEMMA_31B, F16, RTX, 100, sequences=512)
    assert speed.bound == "compute"
    assert speed.tokens.high <= 0.35 * 285e12 / (2 * 30.7e9)


def test_assumptions_travel_with_the_result() -> None:
    used = decode(GEMMA_31B, Q4, RTX, 40_000, sequences=2, experts=Experts(8, 2)).assumptions
    assert {a.DECODE_SHARE, a.STEP_OVERHEAD, a.CACHE_PENALTY_LONG, a.EXPERTS_SHARED} <= set(used)
    assert next(x for x in used if x.name == "bandwidth").source == RTX.source
    mine = decode(GEMMA_31B, F16, change(RTX, bandwidth_gbs=900, fp16_tflops=60), 1).assumptions
    given_ = [x for x in mine if x.name in ("bandwidth", "dense FP16 rate")]
    assert [(x.value, x.source) for x in given_] == [(900, "given"), (60, "given")]
    assert a.CACHE_PENALTY not in mine
    batch = prefill(GEMMA_31B, F16, RTX, 100, micro_batch=64).assumptions
    assert next(x for x in batch if x.name == a.MICRO_BATCH.name).given


def test_what_is_not_known_is_asked_for() -> None:
    bare = replace(RTX, bandwidth_gbs=None)
    for call in (decode, prefill):
        with pytest.raises(NybbleError, match="bandwidth is not known") as caught:
            call(LLAMA_8B, F16, bare, 100)
        assert caught.value.hint == "--bandwidth NUMBER, or --calibrate"
        with pytest.raises(NybbleError, match="size of the weights"):
            call(LLAMA, F16, RTX, 100)
    no_rate = replace(RTX, fp16_tflops=None)
    with pytest.raises(NybbleError, match="FP16 rate is not known"):
        prefill(LLAMA_8B, F16, no_rate, 100)
    unlimited = decode(LLAMA_8B, F16, no_rate, 100, sequences=512)
    assert unlimited.bound == "bandwidth"
    assert any("not known" in str(x.value) for x in unlimited.assumptions)


@pytest.mark.parametrize("wrong", [{"cards": 0}, {"sequences": 0}, {"sequences": -1}])
def test_wrong_counts_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(NybbleError):
        decode(LLAMA_8B, F16, RTX, 100, **wrong)  # type: ignore[arg-type]


MEASURED: Calibration = calibrate(
    LLAMA_8B, F16, [Decoded(256, 120.0), Decoded(16384, 80.0)], source="here"
)


def test_a_calibrated_card_still_has_a_rate() -> None:
    # Bandwidth measured with one sequence says nothing of 512 of them.
    assumed = decode(LLAMA_8B, F16, RTX, 100, sequences=512)
    here = decode(LLAMA_8B, F16, RTX, 100, sequences=512, calibration=MEASURED)
    assert here.bound == "compute"
    assert here.tokens.high <= assumed.tokens.high * 1.001
    both = calibrate(LLAMA_8B, F16, [Decoded(256, 120.0)], [Prefilled(512, 3000.0)], source="here")
    measured = decode(LLAMA_8B, F16, RTX, 100, sequences=512, calibration=both).tokens
    assert measured.high <= 1.05 * 3000 * 1.1  # no more than prefill, plus the output matrix


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        import plan_throughput

        yield plan_throughput


def test_published_points_are_whole() -> None:
    with (BENCH / "published_speed.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["use"] for row in rows} == {"set", "held out", "old build", "no"}
    assert all(row["source"] and float(row["tokens_per_second"]) > 0 for row in rows)
    assert all(row["note"] for row in rows if row["use"] == "no")
    keys = [tuple(v for k, v in r.items() if k not in ("tokens_per_second", "note")) for r in rows]
    assert len(set(keys)) == len(keys)


def test_the_stored_result_is_current(bench: Any) -> None:
    found = bench.points()
    assert len(found) == len(RESULT["points"])
    for point, stored in zip(found, RESULT["points"], strict=True):
        assert point.row.items() <= stored.items()
        tokens = point.speed.tokens
        assert (stored["low"], stored["high"]) == (round(tokens.low, 2), round(tokens.high, 2))
        assert (stored["bound"], stored["published"]) == (point.speed.bound, point.side)
    for name, stored in RESULT["coverage"].items():
        kind, use = name.split(", ")
        assert bench.coverage(found, kind, use) == stored


@pytest.mark.parametrize(("kind", "use", "least"), [
    ("decode", "set", 0.95), ("decode", "held out", 0.8),
    ("prefill", "set", 1.0), ("prefill", "held out", 0.95),
])  # fmt: skip
def test_coverage(kind: str, use: str, least: float) -> None:
    row = RESULT["coverage"][f"{kind}, {use}"]
    assert row["points"] >= 20
    assert row["inside"] + row["slower"] + row["faster"] == row["points"]
    assert row["inside"] / row["points"] >= least
    assert row["high_over_low"] < (2.5 if kind == "decode" else 5.5)  # wide ones are no use
