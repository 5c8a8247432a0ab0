"""Percentiles, and how far to trust them.

The request is the sampling unit: tokens of one answer are slow together, so they are never drawn
apart. Requests are drawn with replacement from their own block, and blocks likewise where there
are several (a two-stage bootstrap), so that what changes from block to block is in the interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nybble.results.records import Estimate

Array = npt.NDArray[np.float64]
LEVELS = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
MIN_REQUESTS = 10  # below, an interval says more about luck than about the server
MIN_PAIRS = 3
DRAWS = 1000
_FEWEST, _WORK = 200, 10**8  # draws of a long run, and values to pass over before it counts as one
_TAIL = 0.025
# Two-sided 95 % quantiles of Student's t for 1 to 30 degrees of freedom.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
      2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
      2.052, 2.048, 2.045, 2.042)  # fmt: skip


@dataclass(frozen=True)
class Values:
    """Some numbers of each request of one run.

    Attributes:
        values: of all requests, one array.
        owner: which request each is of: 0, 1, ...
        block: of each request.
    """

    values: Array
    owner: npt.NDArray[np.int64]
    block: npt.NDArray[np.int64]

    @classmethod
    def of(cls, requests: Sequence[tuple[int, Sequence[float]]]) -> Values:
        """From (block, numbers) of each request; those without a number are left out."""
        kept = [(b, v) for b, v in requests if len(v)]
        return cls(
            np.array([x for _, v in kept for x in v], dtype=np.float64),
            np.repeat(np.arange(len(kept)), [len(v) for _, v in kept]),
            np.array([b for b, _ in kept], dtype=np.int64),
        )

    @property
    def n(self) -> int:
        """Requests with a number."""
        return len(self.block)


def percentile(values: Array, level: float) -> float:
    """The smallest value with at least that share of all values up to it.

    Not interpolated: a p99 is a latency that some request had.
    """
    ranked = np.sort(values)
    return float(ranked[_rank(len(ranked), level)])


def percentiles(found: Values, draws: npt.NDArray[np.int64] | None = None) -> dict[str, Estimate]:
    """p50, p90 and p99, with intervals where there are enough requests. Empty without a value."""
    if not len(found.values):
        return {}
    drawn = drawn_percentiles(found, draws)
    made = {}
    for i, (name, level) in enumerate(LEVELS.items()):
        few = round(len(found.values) * (1 - level), 6) < 1  # the largest is not yet a percentile
        ends = (None, None) if drawn is None or few else _ends(drawn[:, i])
        made[name] = Estimate(percentile(found.values, level), *ends)
    return made


def drawn_percentiles(
    found: Values, blocks: npt.NDArray[np.int64] | None = None, seed: int = 0
) -> Array | None:
    """Bootstrap draws of the percentiles: [draws, levels]; None for too few requests.

    A draw without a single request is not a number. Runs of the same requests get the same draws
    of them, so their ratio is paired.

    Args:
        found: the numbers.
        blocks: how often each block is drawn, [draws, blocks]; None draws them here. Two runs
            that took turns share them.
        seed: of the draws.
    """
    if found.n < MIN_REQUESTS:
        return None
    rng = np.random.default_rng(seed)
    n_blocks = int(found.block.max()) + 1
    if blocks is None:
        blocks = block_draws(n_blocks, seed)
    blocks = blocks[: max(_FEWEST, min(len(blocks), _WORK // len(found.values)))]
    members = [np.flatnonzero(found.block == b) for b in range(n_blocks)]
    order = np.argsort(found.values, kind="stable")
    ranked, owner = found.values[order], found.owner[order]
    made = np.empty((len(blocks), len(LEVELS)))
    for i, times in enumerate(blocks):
        weight = np.zeros(found.n, dtype=np.int64)
        for b, members_of in enumerate(members):
            size = len(members_of)
            if size and times[b]:
                drawn = rng.integers(0, size, size * int(times[b]))
                weight[members_of] += np.bincount(drawn, minlength=size)
        total = np.cumsum(weight[owner])
        if not total[-1]:  # all drawn blocks were without an answer
            made[i] = np.nan
            continue
        wanted = [max(1, math.ceil(level * total[-1])) for level in LEVELS.values()]
        made[i] = ranked[np.searchsorted(total, wanted)]
    return made


def block_draws(n: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """How often each of n blocks is drawn: [draws, n]; a single one is always drawn once."""
    return np.random.default_rng([seed, 1]).multinomial(n, np.full(n, 1 / n), size=DRAWS)


def mean(values: Sequence[float], seed: int = 0) -> Estimate:
    """Mean of a number of each unit (requests, or stretches of time), by a plain bootstrap."""
    found = np.asarray(values, dtype=np.float64)
    if len(found) < MIN_REQUESTS:
        return Estimate(float(found.mean()) if len(found) else 0.0)
    picked = np.random.default_rng(seed).integers(0, len(found), (DRAWS, len(found)))
    return Estimate(float(found.mean()), *_ends(found[picked].mean(axis=1)))


def ratio_of_pairs(of: Sequence[float], against: Sequence[float], value: float) -> Estimate:
    """A ratio with Student's interval over pairs of blocks, of the logarithms.

    Args:
        of: of each block.
        against: of the block beside it in time.
        value: ratio of the whole runs, which the interval is laid around.
    """
    pairs = [math.log(a / b) for a, b in zip(of, against, strict=False) if a > 0 and b > 0]
    if len(pairs) < MIN_PAIRS or value <= 0:
        return Estimate(value)
    spread = float(np.std(pairs, ddof=1)) / math.sqrt(len(pairs))
    t = _T[len(pairs) - 2] if len(pairs) - 2 < len(_T) else 1.96
    half = math.exp(t * spread)
    return Estimate(value, value / half, value * half)


def ratio_of_draws(of: Array | None, against: Array | None, value: float) -> Estimate:
    """A ratio with the interval of its draws."""
    if of is None or against is None:
        return Estimate(value)
    n = min(len(of), len(against))
    with np.errstate(divide="ignore", invalid="ignore"):
        return Estimate(value, *_ends(of[:n] / against[:n]))


def _ends(drawn: Array) -> tuple[float, float] | tuple[None, None]:
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return None, None
    low, high = np.quantile(drawn, [_TAIL, 1 - _TAIL])
    return float(low), float(high)


def _rank(n: int, level: float) -> int:
    return min(n - 1, max(0, math.ceil(level * n) - 1))
