"""Right and wrong answers, compared between two caches on the same questions.

Questions about one context err together, so intervals resample contexts (cluster bootstrap) and
widen the percentile levels for few of them, as scoring/statistics.py does. Shares near 0 and 1
need more: where every answer is right, or none differs, resampling finds no spread at all. So a
few made-up questions join every sample: two right and two wrong ones for a share (Agresti and
Coull, The American Statistician 52, 1998), one gained and one lost for a paired change (Bonett and
Price, Journal of Educational and Behavioral Statistics 37, 2012); and their sum varies, with the
variance of one gained and one lost. The value itself is without them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nybble.results.records import Estimate
from nybble.scoring.statistics import DRAWS, MIN_DOCUMENTS, expanded_tail, resamples

Flags = Sequence[bool] | npt.NDArray[np.bool_]
Array = npt.NDArray[np.float64]

LEVEL = 0.05  # a p below counts, after Holm's correction


@dataclass(frozen=True)
class _Prior:
    """The made-up questions: how many, their sum, its variance; and where values end."""

    n: int
    total: float
    variance: float
    low: float
    high: float


_SHARE = _Prior(4, 2.0, 2.0, 0.0, 1.0)
_CHANGE = _Prior(2, 0.0, 2.0, -1.0, 1.0)
_NONE = _Prior(0, 0.0, 0.0, -math.inf, math.inf)


def accuracy(right: Flags, cluster: Sequence[Hashable], seed: int = 0) -> Estimate:
    """Share of questions that are answered rightly.

    Args:
        right: of each question.
        cluster: what each question belongs to: its context, or its source document.
        seed: of the resampling.

    Returns:
        The share, 0 to 1; without an interval below MIN_DOCUMENTS clusters, nan for no question.
    """
    return _mean(np.asarray(right, dtype=np.float64), cluster, seed, _SHARE)


def paired_change(
    before: Flags, after: Flags, cluster: Sequence[Hashable], seed: int = 0
) -> Estimate:
    """Share answered rightly after, less that before, on the same questions.

    Args:
        before: whether each question was answered rightly with the reference.
        after: the same with the candidate, in the same order.
        cluster: what each question belongs to.
        seed: of the resampling.

    Returns:
        The change, -1 to 1; without an interval below MIN_DOCUMENTS clusters.
    """
    change = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    return _mean(change, cluster, seed, _CHANGE)


def mean_change(change: Array, cluster: Sequence[Hashable], seed: int = 0) -> Estimate:
    """Mean of an unbounded paired difference, for example of answers' log-likelihoods."""
    return _mean(np.asarray(change, dtype=np.float64), cluster, seed, _NONE)


def _mean(values: Array, cluster: Sequence[Hashable], seed: int, prior: _Prior) -> Estimate:
    if len(values) != len(cluster):
        raise ValueError(f"{len(values)} questions, {len(cluster)} clusters")
    if not len(values):
        return Estimate(math.nan)
    value = float(values.mean())
    place = {name: i for i, name in enumerate(dict.fromkeys(cluster))}
    if len(place) < MIN_DOCUMENTS:
        return Estimate(value)
    owner = [place[name] for name in cluster]
    sums, counts = np.bincount(owner, weights=values), np.bincount(owner)
    weights = resamples(seed, len(place), DRAWS)
    added = prior.total + math.sqrt(prior.variance) * _noise(seed)
    tail = expanded_tail(len(place))
    drawn = (weights @ sums + added) / (weights @ counts + prior.n)
    low, high = map(float, np.quantile(drawn, [tail, 1 - tail]))
    # The made-up questions pull towards the middle; the value is in its interval all the same.
    return Estimate(
        value, max(prior.low, min(low, value)), min(prior.high, max(high, value))
    )  # fmt: skip


@functools.lru_cache(maxsize=2)
def _noise(seed: int) -> Array:
    return np.random.default_rng((seed, 1)).standard_normal(DRAWS)


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided McNemar test: the binomial chance of so uneven a split of changed answers.

    Takes questions as independent of each other.

    Args:
        gained: questions that only the candidate has right.
        lost: questions that only the reference has right.

    Returns:
        p = min(1, 2 * P(X <= min(gained, lost))), X ~ Binomial(gained + lost, 1/2); 1 for none.
    """
    n, fewer = gained + lost, min(gained, lost)
    if n == 0:
        return 1.0
    if n <= 1000:
        return min(1.0, float(sum(math.comb(n, i) for i in range(fewer + 1)) / 2 ** (n - 1)))
    whole = math.lgamma(n + 1) - n * math.log(2)
    # The largest term is the last one; summed relative to it, none overflows or vanishes.
    terms = [whole - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in range(fewer + 1)]
    tail = math.fsum(math.exp(t - terms[-1]) for t in terms)
    return min(1.0, 2 * math.exp(terms[-1]) * tail)


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's step-down correction for testing several things at once.

    Args:
        ps: p of each test.

    Returns:
        Corrected p in the same order: the chance of one false find among all stays below a limit
        if only those below it are taken as found (Scandinavian Journal of Statistics 6, 1979).
    """
    corrected = [0.0] * len(ps)
    highest = 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[i]))
        corrected[i] = highest
    return corrected


def smallest_loss(n_tests: int) -> int:
    """How many questions a setting must lose, gaining none, to be found among `n_tests` tests.

    The least k with n_tests * 2 * 2^-k < LEVEL, which is what Holm asks of the first find.
    """
    return math.floor(math.log2(2 * max(1, n_tests) / LEVEL)) + 1
