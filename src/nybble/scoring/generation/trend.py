"""Does the error grow along the answer? The slope of log KLD over log place.

The model is KLD at place t = c * t^slope, fitted as Poisson pseudo-maximum likelihood, which takes
zeros and needs nothing of a distribution but its mean (Santos Silva and Tenreyro, The Log of
Gravity, Review of Economics and Statistics 88, 2006); the mean of log KLD would be about the many
undecided tokens, this is about the mean KLD. With one regressor, c falls out, and the slope is
where the mean of log t, weighted by the model, equals that weighted by the KLD:

    sum_t n_t t^slope log t / sum_t n_t t^slope = sum_t y_t log t / sum_t y_t

with y_t the summed KLD of the n_t answers that reach place t. The left side rises with the slope.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nybble.results.records import Estimate
from nybble.scoring.statistics import MIN_DOCUMENTS, expanded_tail, resamples

Array = npt.NDArray[np.float64]

_DRAWS = 1_000  # a fit each; at 4,096 places that is 32 MiB a table of draws
_STEEPEST = 8.0  # slopes beyond are not told apart
_HALVINGS = 40
_LEAST = 16  # places that say something of a slope


def trend(klds: Sequence[Array], seed: int = 0) -> Estimate | None:
    """Slope of log mean KLD over log place, with an interval over prompts.

    Args:
        klds: of each prompt the KLD at every place of its answer, nats; not finite ones count
            nothing.
        seed: of the resampling.

    Returns:
        0 for no trend, 1 where the KLD grows as the number of tokens; None for fewer than _LEAST
        places or no KLD at all. No interval for fewer than MIN_DOCUMENTS prompts.
    """
    klds = [k for k in klds if np.isfinite(k).any()]
    longest = max(map(len, klds), default=0)
    if longest < _LEAST:
        return None
    summed = np.zeros((len(klds), longest))
    seen = np.zeros((len(klds), longest))
    for i, kld in enumerate(klds):
        known = np.isfinite(kld)
        summed[i, : len(kld)][known] = kld[known]
        seen[i, : len(kld)] = known
    if not summed.any():
        return None
    value = float(_slopes(summed.sum(0)[None], seen.sum(0)[None])[0])
    if len(klds) < MIN_DOCUMENTS:
        return Estimate(value)
    weights = resamples(seed, len(klds), _DRAWS)
    drawn = _slopes(weights @ summed, weights @ seen)
    tail = expanded_tail(len(klds))
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Estimate(value, float(low), float(high))


def _slopes(summed: Array, seen: Array) -> Array:
    """The slope of every row: [rows, places] to [rows], by halving an interval."""
    logs = np.log(np.arange(1, summed.shape[1] + 1, dtype=np.float64))
    totals = summed.sum(1)
    wanted = np.divide(summed @ logs, totals, out=np.zeros_like(totals), where=totals > 0)
    low, high = np.full(len(summed), -_STEEPEST), np.full(len(summed), _STEEPEST)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        weights = seen * np.exp(np.outer(middle, logs - logs[-1]))
        found = (weights @ logs) / weights.sum(1)
        low, high = np.where(found < wanted, middle, low), np.where(found < wanted, high, middle)
    return np.asarray((low + high) / 2)
