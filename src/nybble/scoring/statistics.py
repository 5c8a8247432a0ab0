"""Numbers with honest intervals, from per-token rows.

The document is the sampling unit: tokens of one text err together, so intervals that take
tokens as independent are several times too narrow. Documents are resampled with replacement
(cluster bootstrap); every setting sees the same draws, so differences between settings are
paired. With few documents plain percentiles are too narrow as well, so the percentile levels
are widened as Hesterberg's "expanded percentile interval" does (What Teachers Should Know
About the Bootstrap, 2015): alpha/2 becomes Phi(-sqrt(n / (n-1)) * t_{n-1}).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from nybble.results.records import Estimate
from nybble.scoring.compare import Rows

MIN_DOCUMENTS = 5  # below, a resampled spread says more about luck than about the model
DRAWS = 10_000
QUANTILE_DRAWS = 2_000  # each draw of a quantile costs a pass over all tokens
FLIP_MARGIN = 0.5  # nats; a lead of 0.5 is 1.65 times the runner-up's probability
_LEVEL = 0.95

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ScoredChunk:
    """Rows of one chunk under one setting, and the document it belongs to."""

    category: str
    document: str
    rows: Rows


class Sample:
    """All scored tokens of one setting, ready for estimates.

    Args:
        chunks: in the same order for every setting that is to be paired.
        seed: of the resampling; equal seeds and documents give equal draws.
    """

    def __init__(self, chunks: Sequence[ScoredChunk], seed: int = 0) -> None:
        # A document without one finite token has nothing to draw, so it is not a document here.
        kept = [c for c in chunks if _finite(c.rows).any()]
        names = list(dict.fromkeys((c.category, c.document) for c in kept))
        place = {name: i for i, name in enumerate(names)}
        rows = np.concatenate([c.rows for c in chunks])
        owner = np.repeat(
            [place.get((c.category, c.document), -1) for c in chunks],
            [len(c.rows) for c in chunks],
        )
        finite = _finite(rows)
        self.n_nonfinite = int((~finite).sum())
        self.rows: Rows = rows[finite]
        self.owner: npt.NDArray[np.int64] = owner[finite]
        self.documents = names
        self._seed = seed
        self._counts = np.bincount(self.owner, minlength=len(names)).astype(np.float64)

    @property
    def n_documents(self) -> int:
        """Documents, the sampling unit."""
        return len(self.documents)

    @property
    def n_tokens(self) -> int:
        """Scored tokens with finite numbers."""
        return len(self.rows)

    def draws(self, n: int) -> Array:
        """How often each document is drawn: [n, documents], the same for equal seeds."""
        return resamples(self._seed, self.n_documents, n)

    def sums(self, values: Array) -> Array:
        """Sum of a per-token value in every document."""
        summed = np.bincount(self.owner, weights=values, minlength=self.n_documents)
        return summed.astype(np.float64)

    def mean(self, values: Array, transform: Callable[[Array], Array] = lambda x: x) -> Estimate:
        """Mean over tokens, transformed (exp, sqrt) after averaging."""
        if not self.n_tokens:
            return Estimate(math.nan)
        sums = self.sums(values)
        value = float(transform(np.asarray(sums.sum() / self._counts.sum())))
        if self.n_documents < MIN_DOCUMENTS:
            return Estimate(value)
        weights = self.draws(DRAWS)
        means = transform((weights @ sums) / (weights @ self._counts))
        return Estimate(value, *self.interval(means))

    def quantiles(self, values: Array, levels: Sequence[float]) -> list[Estimate]:
        """Quantiles over tokens; a level of 1 is the maximum."""
        order = np.argsort(values, kind="stable")
        ranked, owner = values[order], self.owner[order]
        at = [_rank(len(ranked), level) for level in levels]
        found = [float(ranked[i]) for i in at]
        if self.n_documents < MIN_DOCUMENTS:
            return [Estimate(v) for v in found]
        weights = self.draws(QUANTILE_DRAWS)
        drawn = np.empty((len(weights), len(levels)))
        for i, weight in enumerate(weights):
            cumulative = np.cumsum(weight[owner])
            targets = [max(1.0, math.ceil(level * cumulative[-1])) for level in levels]
            drawn[i] = ranked[np.searchsorted(cumulative, targets)]
        return [Estimate(v, *self.interval(drawn[:, j])) for j, v in enumerate(found)]

    def interval(self, drawn: Array) -> tuple[float, float]:
        """Expanded percentile interval of bootstrap draws."""
        tail = expanded_tail(self.n_documents)
        low, high = np.quantile(drawn, [tail, 1 - tail])
        return float(low), float(high)


def _finite(rows: Rows) -> npt.NDArray[np.bool_]:
    fields = ("kld", "nll", "nll_ref")
    found: npt.NDArray[np.bool_] = np.logical_and.reduce([np.isfinite(rows[f]) for f in fields])
    return found


def _exp(x: Array) -> Array:
    """e^x, at most 1e304: a broken model's perplexity is large, not infinite."""
    found: Array = np.exp(np.minimum(x, 700.0))
    return found


@functools.lru_cache(maxsize=8)
def resamples(seed: int, size: int, n: int) -> Array:
    """How often each of `size` units is drawn, [n, size]; the same for every metric and setting."""
    rng = np.random.default_rng(seed)
    drawn: Array = rng.multinomial(size, np.full(size, 1 / size), size=n).astype(np.float64)
    return drawn


def expanded_tail(n: int) -> float:
    """Percentile level of one tail for n documents; 0.025 as n grows."""
    t = _student_quantile(1 - (1 - _LEVEL) / 2, n - 1)
    return NormalDist().cdf(-math.sqrt(n / (n - 1)) * t)


def _student_quantile(p: float, df: int) -> float:
    """Student's t quantile by Cornish-Fisher (Abramowitz & Stegun 26.7.5), 0.5 % at df >= 4."""
    z = NormalDist().inv_cdf(p)
    return (
        z
        + (z**3 + z) / (4 * df)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * df**3)
    )


def _rank(n: int, level: float) -> int:
    """Index of the quantile: the smallest value with at least level*n values up to it."""
    return min(n - 1, max(0, math.ceil(level * n) - 1))


def flipped(rows: Rows) -> Array:
    """1 where the top token changed although the reference led by more than FLIP_MARGIN."""
    changed = (rows["top"] != rows["top_ref"]) & (rows["margin_ref"] > FLIP_MARGIN)
    out: Array = changed.astype(np.float64)
    return out


def metrics(sample: Sample) -> dict[str, Estimate]:
    """Every metric of one setting; names and units are those of docs/method.md."""
    rows = sample.rows
    kld = rows["kld"].astype(np.float64)
    nll, nll_ref = rows["nll"].astype(np.float64), rows["nll_ref"].astype(np.float64)
    change = np.exp(-nll) - np.exp(-nll_ref)
    median, p99, p999, top = sample.quantiles(kld, [0.5, 0.99, 0.999, 1.0])
    return {
        "mean_kld": sample.mean(kld),
        "median_kld": median,
        "p99_kld": p99,
        "p999_kld": p999,
        "max_kld": top,
        "same_top": sample.mean((rows["top"] == rows["top_ref"]).astype(np.float64)),
        "flips": sample.mean(flipped(rows)),
        "nll_diff": sample.mean(nll - nll_ref),
        "ppl_ratio": sample.mean(nll - nll_ref, _exp),
        "ppl": sample.mean(nll, _exp),
        "ppl_ref": sample.mean(nll_ref, _exp),
        "rms_dp": sample.mean(change**2, np.sqrt),
    }


def open_metrics(
    sample: Sample, low: dict[str, Estimate]
) -> tuple[dict[str, Estimate], dict[str, Estimate]]:
    """What a top-k comparison leaves open (scoring/topk.py).

    Args:
        sample: of TOPK_ROW records.
        low: its metrics, whose KLDs are lower bounds.

    Returns:
        `low` with the estimate from above and the mean mass that was compared as a lump; and the
        same metrics with the estimates from above as KLDs.
    """
    rows = sample.rows
    kld = rows["kld_high"].astype(np.float64)
    median, p99, p999, top = sample.quantiles(kld, [0.5, 0.99, 0.999, 1.0])
    high = {"mean_kld": sample.mean(kld), "median_kld": median, "p99_kld": p99, "p999_kld": p999,
            "max_kld": top}  # fmt: skip
    tail = sample.mean(rows["tail"].astype(np.float64))
    found = {**low, "mean_kld_high": high["mean_kld"], "tail_mass": tail}
    return found, {**low, **high}


def slice_metrics(sample: Sample) -> dict[str, Estimate]:
    """The three metrics that splits are shown with."""
    rows = sample.rows
    return {
        "mean_kld": sample.mean(rows["kld"].astype(np.float64)),
        "same_top": sample.mean((rows["top"] == rows["top_ref"]).astype(np.float64)),
        "flips": sample.mean(flipped(rows)),
    }


def paired_difference(a: Sample, b: Sample) -> Estimate | None:
    """Mean KLD of a minus that of b on the same documents; None if they share too few."""
    if a.documents != b.documents or a.n_documents < MIN_DOCUMENTS:
        return None
    weights = a.draws(DRAWS)

    def means(s: Sample) -> tuple[float, Array]:
        sums, counts = (
            s.sums(s.rows["kld"].astype(np.float64)),
            np.bincount(s.owner, minlength=s.n_documents),
        )
        return float(sums.sum() / counts.sum()), (weights @ sums) / (weights @ counts)

    (value_a, drawn_a), (value_b, drawn_b) = means(a), means(b)
    return Estimate(value_a - value_b, *a.interval(drawn_a - drawn_b))
