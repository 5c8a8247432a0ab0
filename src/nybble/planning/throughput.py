"""How fast a card decodes and reads prompts: intervals from a roofline, never one number.

A step takes as long as the slower of its memory traffic and its arithmetic (Williams, Waterman,
Patterson 2009, "Roofline", doi:10.1145/1498765.1498785):

    seconds = max(weights / (B * w) + cache / (B * w), operations / (F * f)) + layers * o

with the card's bandwidth B and rate F; w, f and o are the shares and overheads that published
runs reach, each an interval of `assumptions.py`, or this machine's own of a calibration. The slow
end takes the worse end of each, the fast end the better one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from nybble.errors import NybbleError
from nybble.formats.setting import KVSetting
from nybble.models.geometry import Geometry, Weights
from nybble.planning import assumptions as a
from nybble.planning.assumptions import Assumption
from nybble.planning.calibration import Calibration
from nybble.planning.cards import Card
from nybble.planning.interval import Interval, as_interval, exact, positive
from nybble.planning.roofline import (
    SIXTEEN,
    Experts,
    Work,
    decode_work,
    prefill_work,
    weights_of,
)

Split = Literal["layer", "tensor"]
_FEW_BITS = 1.5  # bytes a weight, from which on weights are 16-bit and not multiplied in INT8


@dataclass(frozen=True)
class Line:
    """One line of `--explain`: a number, its unit, and the arithmetic behind it."""

    name: str
    value: Interval
    unit: str
    formula: str


@dataclass(frozen=True)
class Speed:
    """An estimate of speed.

    Attributes:
        tokens: tokens/s of all sequences together.
        each: tokens/s of one sequence.
        seconds: of one step (decoding), or of the whole prompt (prefill).
        bound: what the slow end waits for.
        lines: the arithmetic.
        assumptions: what it rests on.
    """

    tokens: Interval
    each: Interval
    seconds: Interval
    bound: Literal["bandwidth", "compute"]
    lines: tuple[Line, ...]
    assumptions: tuple[Assumption, ...]


@dataclass(frozen=True)
class _Rates:
    """One end of the interval: bytes/s of weights and cache, operations/s (None: not known)."""

    weights: float
    cache: float
    compute: float | None
    overhead: float


def decode(
    geometry: Geometry,
    setting: KVSetting,
    card: Card,
    context: int,
    *,
    sequences: int = 1,
    cards: int = 1,
    split: Split = "layer",
    experts: Experts | None = None,
    calibration: Calibration | None = None,
) -> Speed:
    """How fast new tokens come, `context` tokens being in the cache of each sequence.

    Sequences that are decoded together share one reading of the weights. With `split` "layer"
    the cards take turns and none is read faster; with "tensor" they work together.

    Args:
        geometry: the model, weights included.
        setting: of the cache.
        card: each of the cards.
        context: tokens, at least 0.
        sequences: decoded at once.
        cards: cards that the model is split over.
        split: how.
        experts: of a mixture; without them a batch is taken to read no more weights than one
            sequence.
        calibration: measured rates in place of the assumed ones.

    Raises:
        NybbleError: the weights' size or the card's bandwidth is not known, or a count is not
            above zero.
    """
    positive("the number of cards", cards)
    # A quantized cache may be no faster than a 16-bit one, which the penalties were published
    # against; tokens of a batch may have no expert in common.
    slow = SIXTEEN if setting.quantized and not _measured(setting, calibration) else setting
    power = as_interval(_value(a.EXPERTS_SHARED))
    work = (
        decode_work(geometry, slow, context, sequences, experts, power.high),
        decode_work(geometry, setting, context, sequences, experts, power.low),
    )
    shared = (a.EXPERTS_SHARED,) if experts is not None and sequences > 1 else ()
    costs = _costs(setting, context, calibration)
    penalty = _penalty(costs)
    rates, used = _rates(geometry, card, calibration, sequences=sequences)
    parallel, more = _parallel(cards, split, pipelined=False)
    steps, bound = _seconds(work, rates, parallel, penalty, len(geometry.layers), 1)
    lines = _lines(work, rates, parallel, penalty, steps, len(geometry.layers), 1)
    return Speed(
        tokens=Interval(sequences / steps.high, sequences / steps.low),
        each=Interval(1 / steps.high, 1 / steps.low),
        seconds=steps,
        bound=bound,
        lines=lines,
        assumptions=(*used, *more, *shared, *costs),
    )


def prefill(
    geometry: Geometry,
    setting: KVSetting,
    card: Card,
    tokens: int,
    *,
    depth: int = 0,
    micro_batch: int | None = None,
    cards: int = 1,
    split: Split = "layer",
    experts: Experts | None = None,
    calibration: Calibration | None = None,
) -> Speed:
    """How fast a prompt of `tokens` tokens is read, `depth` tokens being in the cache before it.

    Args:
        geometry: the model, weights included.
        setting: of the cache.
        card: each of the cards.
        tokens: of the prompt.
        depth: tokens already there.
        micro_batch: tokens read together; None for the usual 512.
        cards: cards that the model is split over; with `split` "layer", micro-batches may
            follow each other through them, so that up to `cards` work at once.
        split: how.
        experts: of a mixture.
        calibration: measured rates in place of the assumed ones.

    Raises:
        NybbleError: the weights' size, the card's bandwidth or FP16 rate is not known, or a
            count is not above zero.
    """
    positive("the number of cards", cards)
    size = 512 if micro_batch is None else micro_batch
    work = prefill_work(geometry, setting, tokens, depth, size, experts)
    batches = -(-tokens // size)
    costs = _costs(setting, depth + tokens, calibration, cpu_prefill=card.vendor == "cpu")
    penalty = _penalty(costs)
    rates, used = _rates(geometry, card, calibration, prefill=True)
    if any(r.compute is None for r in rates):
        raise NybbleError(
            "the card's FP16 rate is not known, and prefill is bound by it",
            seen=card.name,
            allowed="dense TFLOPS of FP16 with FP32 sums",
            hint="--tflops NUMBER, or --calibrate",
        )
    parallel, more = _parallel(cards, split, pipelined=batches > 1)
    both = (work, work)
    seconds, bound = _seconds(both, rates, parallel, penalty, len(geometry.layers), batches)
    lines = _lines(both, rates, parallel, penalty, seconds, len(geometry.layers), batches)
    speed = Interval(tokens / seconds.high, tokens / seconds.low)
    batch = Assumption(a.MICRO_BATCH.name, size, a.MICRO_BATCH.unit, "given")
    return Speed(
        tokens=speed,
        each=speed,
        seconds=seconds,
        bound=bound,
        lines=lines,
        assumptions=(
            *used,
            a.MICRO_BATCH if micro_batch is None else batch,
            *more,
            *costs,
        ),
    )


def _seconds(
    work: tuple[Work, Work],
    rates: tuple[_Rates, _Rates],
    parallel: Interval,
    penalty: Interval,
    layers: int,
    batches: int,
) -> tuple[Interval, Literal["bandwidth", "compute"]]:
    ends = []
    bound: Literal["bandwidth", "compute"] = "bandwidth"
    shares = ((parallel.low, penalty.high), (parallel.high, penalty.low))
    for i, (w, r, (n, lost)) in enumerate(zip(work, rates, shares, strict=True)):
        moving = w.weights / r.weights + w.cache / r.cache
        adding = 0.0 if r.compute is None else (w.linear + w.attention) / r.compute
        if i == 0 and adding > moving:
            bound = "compute"
        ends.append((max(moving, adding) / n + r.overhead * layers * batches) / (1 - lost))
    return Interval(min(ends), max(ends)), bound


def _rates(
    geometry: Geometry,
    card: Card,
    calibration: Calibration | None,
    *,
    prefill: bool = False,
    sequences: int = 1,
) -> tuple[tuple[_Rates, _Rates], tuple[Assumption, ...]]:
    """Slow and fast end of the card's rates, and what they rest on."""
    if calibration is not None and (not prefill or calibration.prefill is not None):
        c = calibration
        limit, more = (c.prefill, ()) if c.prefill else _compute(card, weights_of(geometry))
        if not prefill and sequences == 1:
            # The arithmetic of one sequence is in its measured rates already; that of many is not.
            limit, more = None, ()
        return (
            (
                _Rates(c.weights.low, c.cache.low, None if limit is None else limit.low, 0.0),
                _Rates(c.weights.high, c.cache.high, None if limit is None else limit.high, 0.0),
            ),
            (*c.assumptions, *more),
        )
    if card.bandwidth_gbs is None:
        raise NybbleError(
            "the card's memory bandwidth is not known",
            seen=card.name,
            allowed="GB/s of its memory",
            hint="--bandwidth NUMBER, or --calibrate",
        )
    share, overhead = as_interval(_value(a.DECODE_SHARE)), as_interval(_value(a.STEP_OVERHEAD))
    compute, used = _compute(card, weights_of(geometry))
    low, high = (card.bandwidth_gbs * 1e9 * end for end in (share.low, share.high))
    return (
        (
            _Rates(low, low, None if compute is None else compute.low, overhead.high),
            _Rates(high, high, None if compute is None else compute.high, overhead.low),
        ),
        (
            Assumption("bandwidth", card.bandwidth_gbs, "GB/s", card.origin("bandwidth_gbs")),
            a.DECODE_SHARE,
            a.STEP_OVERHEAD,
            *used,
        ),
    )


def _compute(card: Card, weights: Weights) -> tuple[Interval | None, tuple[Assumption, ...]]:
    """Operations/s, and what they rest on."""
    if card.fp16_tflops is None:
        nothing = "not known: arithmetic is taken to be no limit"
        return None, (Assumption("dense FP16 rate", nothing, "", card.source or "given"),)
    share = as_interval(_value(a.PREFILL_SHARE))
    source = card.source or "given"
    rate16 = Assumption("dense FP16 rate", card.fp16_tflops, "TFLOPS", card.origin("fp16_tflops"))
    used = [rate16, a.PREFILL_SHARE]
    fastest = card.fp16_tflops * share.high
    small = weights.n_bytes / max(weights.n_params, 1)
    names = " ".join(weights.types).lower()
    for kind, rate in (("fp8", card.fp8_tflops), ("fp4", card.fp4_tflops)):
        if rate is not None and (kind in names or kind.replace("p", "") + "_e" in names):
            used.append(Assumption(f"dense {kind.upper()} rate", rate, "TFLOPS", source))
            fastest = max(fastest, rate * share.high)
    if card.int8_tops is not None and small < _FEW_BITS:
        rate8 = Assumption("dense INT8 rate", card.int8_tops, "TOPS", card.origin("int8_tops"))
        used += [rate8, a.INT8_SHARE]
        fastest = max(fastest, card.int8_tops * as_interval(_value(a.INT8_SHARE)).high)
    return Interval(card.fp16_tflops * share.low * 1e12, fastest * 1e12), tuple(used)


def _parallel(
    cards: int, split: Split, *, pipelined: bool
) -> tuple[Interval, tuple[Assumption, ...]]:
    """How many times one card's speed, and what that rests on."""
    if cards == 1:
        return exact(1.0), ()
    if split == "tensor":
        share = as_interval(_value(a.TENSOR_SHARE))
        # No card is ever a loss here: who loses by the second card leaves it out.
        return Interval(max(cards * share.low, 1.0), cards * share.high), (a.TENSOR_SHARE,)
    source = "layer split: cards take turns, except where micro-batches follow each other"
    found = Interval(1.0, float(cards) if pipelined else 1.0)
    return found, (Assumption(f"times one card's speed with {cards}", found, "", source),)


def _measured(setting: KVSetting, calibration: Calibration | None) -> bool:
    return calibration is not None and calibration.setting == str(setting)


def _costs(
    setting: KVSetting, context: int, calibration: Calibration | None, *, cpu_prefill: bool = False
) -> tuple[Assumption, ...]:
    """What a quantized cache costs in speed; nothing where it was measured itself."""
    if not setting.quantized or _measured(setting, calibration):
        return ()
    if cpu_prefill:
        return (a.CACHE_PENALTY_CPU,)
    return (a.CACHE_PENALTY if context <= a.LONG else a.CACHE_PENALTY_LONG,)


def _penalty(costs: Sequence[Assumption]) -> Interval:
    return as_interval(_value(costs[0])) if costs else exact(0.0)


def _value(assumption: Assumption) -> float | Interval:
    assert not isinstance(assumption.value, str)
    return assumption.value


def _lines(
    work: tuple[Work, Work],
    rates: tuple[_Rates, _Rates],
    parallel: Interval,
    penalty: Interval,
    seconds: Interval,
    layers: int,
    batches: int,
) -> tuple[Line, ...]:
    """The arithmetic with its numbers; a range in a formula is of that number alone."""
    fast, slow = work[1], work[0]
    good, bad = rates[1], rates[0]
    found = [
        _moved("weights", (fast.weights, slow.weights), (good.weights, bad.weights)),
        _moved("cache", (fast.cache, slow.cache), (good.cache, bad.cache)),
    ]
    if good.compute is not None and bad.compute is not None:
        n = fast.linear + fast.attention
        found.append(
            Line(
                "arithmetic",
                Interval(n / good.compute, n / bad.compute),
                "s",
                f"({fast.linear / 1e9:,.4g} GFLOP with weights + {fast.attention / 1e9:,.4g} GFLOP "
                f"attention) / ({bad.compute / 1e12:,.4g} to {good.compute / 1e12:,.4g} TFLOPS)",
            )
        )
    if bad.overhead:
        n_steps = layers * batches
        found.append(
            Line(
                "overhead",
                Interval(good.overhead * n_steps, bad.overhead * n_steps),
                "s",
                f"{layers} layers x {batches} steps x {good.overhead * 1e6:g} to "
                f"{bad.overhead * 1e6:g} us",
            )
        )
    total = "the slower of moving and arithmetic"
    if parallel != exact(1.0):
        total += f" / {parallel.low:g} to {parallel.high:g} (cards)"
    total += " + overhead" if bad.overhead else ""
    if penalty.high:
        total = f"({total}) / (1 - {penalty.low:g} to {penalty.high:g} (quantized cache))"
    found.append(Line("together", seconds, "s", total))
    return tuple(found)


def _moved(name: str, n_bytes: Sequence[float], rate: Sequence[float]) -> Line:
    ends = [n / r for n, r in zip(n_bytes, rate, strict=True)]
    size = " to ".join(dict.fromkeys(f"{n / 1e9:,.4g}" for n in n_bytes))
    speed = " to ".join(dict.fromkeys(f"{r / 1e9:,.4g}" for r in reversed(rate)))
    return Line(name, Interval(min(ends), max(ends)), "s", f"{size} GB / ({speed} GB/s)")
