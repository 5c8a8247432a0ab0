"""From kept answers to one row a setting: where it diverges, and how its error develops.

The prompt is the sampling unit. What is yes or no of a prompt (same until there, ended, looped)
is a share as in scoring/tasks/paired.py; means resample prompts as scoring/statistics.py does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from nybble.results.records import Estimate
from nybble.results.tasks import Divergence
from nybble.scoring.generation.cells import Kept, LaneSpec
from nybble.scoring.generation.sequences import agreement, first_difference, looped
from nybble.scoring.generation.trend import trend
from nybble.scoring.statistics import (
    DRAWS,
    MIN_DOCUMENTS,
    Sample,
    ScoredChunk,
    expanded_tail,
    resamples,
)
from nybble.scoring.tasks.paired import accuracy

Array = npt.NDArray[np.float64]

PLACES = (64, 256, 1024, 4096)
_FEWEST_RATIOS = 3  # answers that both end; of fewer a ratio says nothing


def places(limit: int) -> list[int]:
    """Where answers are compared: PLACES within the limit, and the limit."""
    return sorted({*(p for p in PLACES if p < limit), limit})


def stretches(limit: int, ends: Sequence[int]) -> list[tuple[int, int]]:
    """Places from and to, 1-based, up to each end and the limit."""
    stops = [e for e in ends if e < limit] + [limit]
    return list(zip([1, *(s + 1 for s in stops[:-1])], stops, strict=True))


def fine(limit: int) -> list[tuple[int, int]]:
    """Stretches that double, for a picture: 1-4, 5-8, 9-16, ..."""
    return stretches(limit, [2**i for i in range(2, 13)])


def divergence(
    lane: LaneSpec, pairs: Sequence[tuple[Kept, Kept]], limit: int, seed: int
) -> Divergence:
    """One row of the result.

    Args:
        lane: whose answers.
        pairs: of each prompt the 16-bit cache's and this lane's; at least one. The reference is
            paired with itself.
        limit: most tokens of an answer.
        seed: of the resampling.
    """
    refs, own = [a for a, _ in pairs], [b for _, b in pairs]
    firsts = np.array([first_difference(a.tokens, b.tokens) for a, b in pairs])
    which = list(range(len(pairs)))
    at = places(limit)
    found = Divergence(
        str(lane.setting),
        lane.role,
        len(pairs),
        ended=accuracy([k.ended for k in own], which, seed),
        looped=accuracy([looped(k.tokens) for k in own], which, seed),
        mean_length=mean(np.array([len(k.tokens) for k in own], dtype=np.float64), seed),
    )
    if lane.role == "reference":
        return found
    stopped = [i for i, ref in enumerate(refs) if ref.ended]
    return replace(
        found,
        first_median=median(firsts, seed),
        first_at=[0 if math.isinf(f) else int(f) for f in sorted(firsts)],
        same_at={str(n): accuracy(firsts > n, which, seed) for n in at},
        agreement_at={
            str(n): mean(np.array([agreement(a.tokens, b.tokens, n) for a, b in pairs]), seed)
            for n in at
        },
        kld_at=_klds(own, stretches(limit, PLACES), seed),
        kld_along=_klds(own, fine(limit), seed),
        trend=trend([k.rows["kld"].astype(np.float64) for k in own], seed),
        length_ratio=_ratio(pairs, seed),
        failed_to_stop=accuracy([not own[i].ended for i in stopped], stopped, seed)
        if stopped
        else None,
    )


def change(
    own: Sequence[tuple[Kept, Kept]], floor: Sequence[tuple[Kept, Kept]], limit: int, seed: int
) -> Estimate:
    """Agreement with the 16-bit cache less that of the noise floor on the same prompts.

    Args:
        own: reference's and lane's answers of each prompt.
        floor: the same of the floor, in the same order; at least one.
        limit: most tokens of an answer.
        seed: of the resampling.

    Returns:
        Below 0 where the lane parts further from the reference than 16-bit rounding does.
    """
    mine, other = (
        np.array([agreement(a.tokens, b.tokens, limit) for a, b in pairs]) for pairs in (own, floor)
    )
    return mean(mine - other, seed)


def mean(values: Array, seed: int) -> Estimate:
    """Mean over prompts; no interval where they are few, or all equal."""
    value = float(values.mean())
    if len(values) < MIN_DOCUMENTS or np.ptp(values) == 0:
        return Estimate(value)
    drawn = resamples(seed, len(values), DRAWS) @ values / len(values)
    return Estimate(value, *_interval(drawn, len(values)))


def median(firsts: Array, seed: int) -> Estimate | None:
    """Lower median of first differing places, some of which may be infinite.

    Returns:
        None where it is infinite; `high` is None where only that end is.
    """
    n = len(firsts)
    ranked = np.sort(firsts)
    value = float(ranked[math.ceil(n / 2) - 1])
    if math.isinf(value):
        return None
    if n < MIN_DOCUMENTS:
        return Estimate(value)
    counts = np.cumsum(resamples(seed, n, DRAWS), axis=1)
    drawn = np.sort(ranked[np.argmax(counts >= n / 2, axis=1)])
    tail = expanded_tail(n)
    # Quantiles by rank: between a number and infinity there is no middle.
    low = float(drawn[int(tail * (DRAWS - 1))])
    high = float(drawn[math.ceil((1 - tail) * (DRAWS - 1))])
    return Estimate(value, low, None if math.isinf(high) else high)


def _klds(own: Sequence[Kept], cuts: Sequence[tuple[int, int]], seed: int) -> dict[str, Estimate]:
    found = {}
    for start, stop in cuts:
        # The place of a prompt names it: no two are drawn together.
        chunks = [
            ScoredChunk("", str(i), k.rows[start - 1 : stop])
            for i, k in enumerate(own)
            if len(k.rows) >= start
        ]
        if not chunks:
            continue
        sample = Sample(chunks, seed)
        if sample.n_tokens:
            found[f"{start}-{stop}"] = sample.mean(sample.rows["kld"].astype(np.float64))
    return found


def _ratio(pairs: Sequence[tuple[Kept, Kept]], seed: int) -> Estimate | None:
    logs = np.array(
        [math.log(len(b.tokens) / len(a.tokens)) for a, b in pairs if a.ended and b.ended]
    )
    if len(logs) < _FEWEST_RATIOS:
        return None
    found = mean(logs, seed)
    ends = (None if x is None else math.exp(x) for x in (found.low, found.high))
    return Estimate(math.exp(found.value), *ends)


def _interval(drawn: Array, n: int) -> tuple[float, float]:
    tail = expanded_tail(n)
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return float(low), float(high)
