"""Rates of one machine from a few measured runs, in place of the assumed shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nybble.errors import NybbleError
from nybble.formats.setting import KVSetting
from nybble.models.geometry import Geometry
from nybble.planning import assumptions as a
from nybble.planning.assumptions import Assumption
from nybble.planning.interval import Interval, around, positive
from nybble.planning.roofline import Experts, Work, decode_work, prefill_work

_MOST = 4.0  # how much faster or slower than the weights a cache may be read to be believed


@dataclass(frozen=True)
class Decoded:
    """A measured run: tokens/s of all `sequences` together, each `context` tokens long."""

    context: int
    tokens_per_second: float
    sequences: int = 1


@dataclass(frozen=True)
class Prefilled:
    """A measured run: tokens/s of a prompt of `tokens` tokens behind `depth` cached ones."""

    tokens: int
    tokens_per_second: float
    depth: int = 0
    micro_batch: int = 512


@dataclass(frozen=True)
class Calibration:
    """What the measured runs of one machine reach.

    Attributes:
        weights: bytes/s at which weights were read, overheads included.
        cache: bytes/s at which the cache was read.
        prefill: operations/s of the prefill; None where none was measured.
        setting: the cache that was measured; another quantized one keeps its penalty.
        source: what was measured, and where.
        assumptions: the same, for a result to carry.
    """

    weights: Interval
    cache: Interval
    prefill: Interval | None
    setting: str
    source: str
    assumptions: tuple[Assumption, ...]


def calibrate(
    geometry: Geometry,
    setting: KVSetting,
    decoded: Sequence[Decoded],
    prefilled: Sequence[Prefilled] = (),
    *,
    source: str,
    experts: Experts | None = None,
) -> Calibration:
    """Turn measured speeds into rates of this machine.

    With one context, weights and cache are taken to be read at one rate W / t. With two, the
    seconds t of a step are split: (C2 - C1) / (t2 - t1) is the rate of the cache, and what
    remains of t1 is the weights'. Where noise makes that nonsense (a longer context that is
    faster, or rates 4 times apart), one rate that spans all points is used. Each end is widened
    by 5 %, what a repeated run may differ by.

    Args:
        geometry: the measured model, weights included.
        setting: the measured cache.
        decoded: at least one run; the shortest and the longest context are used.
        prefilled: runs of the prefill.
        source: for example "llama-bench b7000 on this machine, 2026-11-24".
        experts: of a mixture.

    Raises:
        NybbleError: no run, or a speed that is not above zero.
    """
    if not decoded:
        raise NybbleError(
            "a calibration needs a measured decoding speed",
            seen="none",
            allowed="tokens/s at one context, better at two",
        )
    points = []
    for run in decoded:
        positive("a measured speed", run.tokens_per_second, "tokens/s")
        work = decode_work(geometry, setting, run.context, run.sequences, experts)
        points.append((work, run.sequences / run.tokens_per_second))
    weights, cache = _split(points)
    speeds = []
    for prompt in prefilled:
        positive("a measured speed", prompt.tokens_per_second, "tokens/s")
        read = prefill_work(
            geometry, setting, prompt.tokens, prompt.depth, prompt.micro_batch, experts
        )
        seconds = prompt.tokens / prompt.tokens_per_second
        speeds.append((read.linear + read.attention) / seconds)
    margin = float(a.REPEAT.value) if isinstance(a.REPEAT.value, float) else 0.0
    prefill = around(speeds, margin) if speeds else None
    used = [
        Assumption("weights are read at", _scaled(weights, 1e-9), "GB/s", source),
        Assumption("the cache is read at", _scaled(cache, 1e-9), "GB/s", source),
    ]
    if prefill is not None:
        used.append(Assumption("prefill computes at", _scaled(prefill, 1e-12), "TFLOPS", source))
    return Calibration(weights, cache, prefill, str(setting), source, (*used, a.REPEAT))


def _split(points: Sequence[tuple[Work, float]]) -> tuple[Interval, Interval]:
    margin = float(a.REPEAT.value) if isinstance(a.REPEAT.value, float) else 0.0
    ordered = sorted(points, key=lambda p: p[0].cache)
    (short, t1), (long, t2) = ordered[0], ordered[-1]
    together = around([(w.weights + w.cache) / t for w, t in points], margin)
    if long.cache <= short.cache or t2 <= t1 or long.weights != short.weights:
        return together, together
    cache = (long.cache - short.cache) / (t2 - t1)
    rest = t1 - short.cache / cache
    if rest <= 0:
        return together, together
    weights = short.weights / rest
    if not 1 / _MOST <= cache / weights <= _MOST:
        return together, together
    return around([weights], margin), around([cache], margin)


def _scaled(value: Interval, factor: float) -> Interval:
    return value.times(factor)
