"""A run, and two runs side by side, in numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nybble.errors import NybbleError
from nybble.results.loads import (
    LoadBlock,
    LoadFailure,
    LoadGood,
    LoadNumbers,
    LoadRatio,
    LoadRequest,
    LoadRun,
    LoadShape,
)
from nybble.results.records import Estimate
from nybble.serving.load import spread
from nybble.serving.load.spread import LEVELS, Values

SLICES = 20  # stretches of time that the interval of a throughput comes from
_RATES = ("tokens_out", "tokens", "requests")


@dataclass(frozen=True)
class Limits:
    """What a good answer keeps to.

    Attributes:
        ttft: most seconds to the first text; None for any.
        tpot: most seconds a token after the first; None for any.

    Raises:
        NybbleError: not above 0.
    """

    ttft: float | None = None
    tpot: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("--max-ttft", self.ttft), ("--max-tpot", self.tpot)):
            if value is not None and not 0 < value < math.inf:
                raise NybbleError(f"{name} is a number of seconds above 0", seen=value,
                                  hint=f"{name} 0.5")  # fmt: skip

    def keeps(self, request: LoadRequest) -> bool:
        """Whether a request got a whole answer in time."""
        if request.error is not None:
            return False
        if self.ttft is not None and (request.first is None or request.first > self.ttft):
            return False
        each = per_token(request)
        return self.tpot is None or each is None or each <= self.tpot


def per_token(request: LoadRequest) -> float | None:
    """Seconds a token behind the first one; None for answers of one token or one piece.

    From the first text to the last: a piece that carries several tokens is spread over them.
    """
    if request.tokens_out < 2 or not request.gaps:
        return None
    return sum(request.gaps) / (request.tokens_out - 1)


NUMBERS: dict[str, Callable[[LoadRequest], Sequence[float]]] = {
    "ttft": lambda r: () if r.first is None else (r.first,),
    "itl": lambda r: r.gaps,
    "tpot": lambda r: () if (each := per_token(r)) is None else (each,),
    "total": lambda r: (r.total,),
}


def values(requests: Sequence[LoadRequest], name: str) -> Values:
    """One of `NUMBERS` of the requests with a whole answer."""
    take = NUMBERS[name]
    return Values.of([(r.block, take(r)) for r in requests if r.error is None])


def numbers(
    requests: Sequence[LoadRequest], blocks: Sequence[LoadBlock], limits: Limits | None = None
) -> LoadNumbers:
    """Sum up one run.

    Rates are over the time in which requests were in flight, ramps included: tokens / seconds of
    all blocks. Tokens of answers that failed on the way do not count.
    """
    done = [r for r in requests if r.error is None]
    seconds = sum(b.seconds for b in blocks)
    counted = [r for r in done if r.tokens_in is not None]
    told = [r for r in counted if r.cached is not None]
    rates = {name: _rate(done, blocks, name) for name in _RATES}
    pieces = sum(1 + len(r.gaps) for r in done if r.first is not None)
    queued = np.array([max(0.0, r.sent - r.due) for r in requests])
    good = None
    if limits is not None and (limits.ttft is not None or limits.tpot is not None):
        kept = [r for r in requests if limits.keeps(r)]
        share = spread.mean([float(limits.keeps(r)) for r in requests])
        good = LoadGood(limits.ttft, limits.tpot, share, _rate(kept, blocks, "requests"))
    return LoadNumbers(
        answered=len(done),
        failed=len(requests) - len(done),
        seconds=round(seconds, 6),
        tokens_in=_mean([r.tokens_in or 0 for r in counted]) if counted else None,
        tokens_out=_mean([r.tokens_out for r in done]),
        cached=sum(r.cached or 0 for r in told) / max(sum(r.tokens_in or 0 for r in told), 1)
        if told
        else None,
        as_asked=_mean([float(r.tokens_out >= r.asked_out) for r in done]),
        per_piece=sum(r.tokens_out for r in done) / pieces if pieces else 0.0,
        rates=rates,
        seconds_at={name: spread.percentiles(values(done, name)) for name in NUMBERS},
        queued={n: spread.percentile(queued, q) if len(queued) else 0.0 for n, q in LEVELS.items()},
        failures=_failures(requests),
        good=good,
    )


def _mean(found: Sequence[float]) -> float:
    return sum(found) / len(found) if found else 0.0


def _failures(requests: Sequence[LoadRequest]) -> tuple[LoadFailure, ...]:
    counts = Counter(r.error for r in requests if r.error is not None)
    details = {r.error: r.detail or "" for r in reversed(requests) if r.error is not None}
    return tuple(LoadFailure(name, n, details[name]) for name, n in counts.most_common())


def _rate(done: Sequence[LoadRequest], blocks: Sequence[LoadBlock], name: str) -> Estimate:
    """A rate, with an interval from the stretches of time that the run is cut into.

    Stretches that are shorter than a request are not independent, and there is no interval then.
    """
    blocks = [b for b in blocks if b.seconds > 0]
    seconds = sum(b.seconds for b in blocks)
    if not done or not blocks:
        return Estimate(0.0)
    value = sum(_amount(r, name) for r in done) / seconds
    n = max(1, math.ceil(SLICES / len(blocks)))
    middle = spread.percentile(np.array([r.total for r in done]), 0.5)
    if any(b.seconds / n < middle for b in blocks):
        n = min(n, max(1, int(min(b.seconds for b in blocks) / max(middle, 1e-9))))
    if n * len(blocks) < spread.MIN_REQUESTS:
        return Estimate(value)
    slices = [s for b in blocks for s in _slices(done, b, n, name)]
    found = spread.mean(slices)
    if found.low is None or found.high is None or found.value <= 0:
        return Estimate(value)
    # Blocks differ a little in length, so the mean of stretches is not quite the rate of all.
    return Estimate(value, found.low * value / found.value, found.high * value / found.value)


def _amount(request: LoadRequest, name: str) -> float:
    if name == "requests":
        return 1.0
    return request.tokens_out + (request.tokens_in or 0 if name == "tokens" else 0)


def _slices(done: Sequence[LoadRequest], block: LoadBlock, n: int, name: str) -> list[float]:
    """The rate in each of n equal stretches of a block."""
    at: list[float] = []
    amount: list[float] = []
    for r in done:
        if r.block != block.index:
            continue
        times = r.sent + np.cumsum([r.first if r.first is not None else r.total, *r.gaps])
        if name == "requests":
            at.append(r.sent + r.total)
            amount.append(1.0)
            continue
        if name == "tokens" and r.tokens_in:
            at.append(float(times[0]))  # its prompt has been read by then
            amount.append(r.tokens_in)
        at.extend(times)
        amount.extend([r.tokens_out / len(times)] * len(times))
    inside = np.minimum(at, block.seconds)  # the last piece may be rounded past the end
    counts, _ = np.histogram(inside, bins=n, range=(0.0, block.seconds), weights=amount)
    return [float(c) for c in counts / (block.seconds / n)]


def ratio(of: LoadRun, against: LoadRun, *, in_turns: bool) -> LoadRatio:
    """One run divided by another of the same shape.

    Args:
        of: the later one.
        against: the first one.
        in_turns: whether their blocks alternated; only then are they compared block by block.
    """
    paired = in_turns and len(of.blocks) == len(against.blocks)
    rates = {}
    for name in _RATES:
        low = against.numbers.rates[name]
        value = of.numbers.rates[name].value / low.value if low.value else 0.0
        rates[name] = (
            spread.ratio_of_pairs(_by_block(of, name), _by_block(against, name), value)
            if paired
            else _apart(of.numbers.rates[name], low, value)
        )
    draws = spread.block_draws(len(of.blocks)) if paired and len(of.blocks) > 1 else None
    seconds_at: dict[str, dict[str, Estimate]] = {}
    for name in NUMBERS:
        ours, theirs = of.numbers.seconds_at[name], against.numbers.seconds_at[name]
        a = spread.drawn_percentiles(values(of.requests, name), draws)
        b = spread.drawn_percentiles(values(against.requests, name), draws, seed=0 if paired else 1)
        seconds_at[name] = {
            level: spread.ratio_of_draws(
                None if a is None else a[:, i],
                None if b is None else b[:, i],
                ours[level].value / theirs[level].value,
            )
            for i, level in enumerate(LEVELS)
            if level in ours and level in theirs and theirs[level].value > 0
        }
    notes = []
    if not in_turns:
        notes.append("not driven in turns: what the machine did in between is in no interval")
    if of.model != against.model:
        notes.append(f"models differ: {of.model} and {against.model}")
    return LoadRatio(of.name, against.name, in_turns, rates, seconds_at, tuple(notes))


def _by_block(run: LoadRun, name: str) -> list[float]:
    done = [r for r in run.requests if r.error is None]
    return [
        sum(_amount(r, name) for r in done if r.block == b.index) / b.seconds if b.seconds else 0.0
        for b in run.blocks
    ]


def _apart(of: Estimate, against: Estimate, value: float) -> Estimate:
    """A ratio of two rates that were measured apart: their relative errors add in squares."""
    if None in (of.low, of.high, against.low, against.high) or value <= 0:
        return Estimate(value)
    half = math.hypot(_relative(of), _relative(against))
    if not math.isfinite(half):
        return Estimate(value)
    return Estimate(value, value / math.exp(half), value * math.exp(half))


def _relative(rate: Estimate) -> float:
    """Half the interval of a rate, as a difference of logarithms."""
    if rate.low is None or rate.high is None or rate.low <= 0:
        return math.inf
    return math.log(rate.high / rate.low) / 2


def check_same(ours: LoadShape, theirs: LoadShape, where: str) -> None:
    """Refuse to compare runs of which not the same was asked.

    Raises:
        NybbleError: naming what differs.
    """
    names = [n for n in vars(ours) if n != "blocks" and getattr(ours, n) != getattr(theirs, n)]
    if names:

        def show(shape: LoadShape) -> str:
            return ", ".join(f"{n} {getattr(shape, n)}" for n in names)

        raise NybbleError("runs of different load profiles are not compared",
                          seen=f"{where}: {show(theirs)}", allowed=show(ours),
                          hint="the same options for both, or leave out --against")  # fmt: skip
