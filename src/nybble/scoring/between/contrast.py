"""Numbers of a pair from the sums of its documents, and the verdict they allow.

Documents are drawn as in scoring/statistics.py, the same ones for both sides, so that what is hard
for both cancels. The p that several pairs are corrected by (Holm) is Student's, of the difference
over the spread of its draws, widened as the intervals are: intervals alone cannot be corrected for
many pairs with few documents, since their ends would lie beyond the last draw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from nybble.results.compared import A_BETTER, B_BETTER, UNRESOLVED, Changed, Contrast, Pair
from nybble.results.records import Estimate
from nybble.scoring.between.shared import METRICS, Array, Shared
from nybble.scoring.statistics import DRAWS, MIN_DOCUMENTS, expanded_tail, resamples
from nybble.scoring.tasks.paired import LEVEL, holm, mcnemar


class Documents:
    """Draws of the shared documents.

    Args:
        n: tokens of each document; at least one.
        seed: of the resampling.
    """

    def __init__(self, n: Array, seed: int = 0) -> None:
        self._n, self.n_documents = n, len(n)
        self.enough = len(n) >= MIN_DOCUMENTS
        self._weights = resamples(seed, len(n), DRAWS) if self.enough else np.empty((0, len(n)))
        self._tokens = self._weights @ n

    def mean(self, sums: Array) -> tuple[float, Array]:
        """Mean over tokens: the value and its draws, none below MIN_DOCUMENTS."""
        return float(sums.sum() / self._n.sum()), (self._weights @ sums) / self._tokens

    def estimate(self, value: float, drawn: Array) -> Estimate:
        """A value with its expanded percentile interval."""
        if not len(drawn):
            return Estimate(value)
        tail = expanded_tail(self.n_documents)
        low, high = np.quantile(drawn, [tail, 1 - tail])
        return Estimate(value, float(low), float(high))

    def p(self, value: float, drawn: Array) -> float | None:
        """Two-sided Student test that the value is 0."""
        if not len(drawn):
            return None
        n = self.n_documents
        spread = float(drawn.std()) * math.sqrt(n / (n - 1))
        if spread == 0:
            return 1.0 if value == 0 else 0.0
        return student_p(value / spread, n - 1)


def fill(pair: Pair, found: Shared, seed: int = 0) -> Pair:
    """A pair with its numbers; p is not corrected yet and there is no verdict.

    Args:
        pair: with sides, context and margin.
        found: with at least one shared token.
        seed: of the resampling.
    """
    documents = Documents(found.n, seed)
    metrics, ratio, p = {}, None, None
    for name in METRICS:
        (a, drawn_a), (b, drawn_b) = documents.mean(found.a[name]), documents.mean(found.b[name])
        metrics[name] = Contrast(
            documents.estimate(a, drawn_a), documents.estimate(b, drawn_b),
            documents.estimate(b - a, drawn_b - drawn_a),
        )  # fmt: skip
        if name == "mean_kld":
            p = documents.p(b - a, drawn_b - drawn_a)
            if a > 0:
                whole = bool((drawn_a > 0).all())
                ratio = documents.estimate(b / a, drawn_b / drawn_a if whole else drawn_a[:0])
    lost, gained = int(found.lost.sum()), int(found.gained.sum())
    chance = mcnemar(gained, lost)
    changed = Changed(
        documents.estimate(*documents.mean(found.differs)), int(found.differs.sum()),
        lost, gained, chance, chance,
    )  # fmt: skip
    return replace(
        pair, paired=True, n_documents=documents.n_documents, n_tokens=found.n_tokens,
        n_nonfinite=found.n_nonfinite, only_a=found.only_a, only_b=found.only_b,
        metrics=metrics, ratio=ratio, changed=changed, p=p, p_corrected=p,
    )  # fmt: skip


def judged(pairs: Sequence[Pair]) -> list[Pair]:
    """Correct p over all paired ones (Holm) and say what each difference of mean KLD means.

    The verdict of a pair is, in this order:

    - "same within X": the whole 95 % interval lies within +-X, the margin; or it is 0 to 0. Not
      corrected, as it finds nothing. It comes first: a difference that is resolved and still
      below the margin is of no use.
    - "A is better" or "B is better": the whole interval lies on one side of 0, and the corrected
      p is below 0.05.
    - "no difference resolved" otherwise, and below MIN_DOCUMENTS shared documents.

    Args:
        pairs: filled; those that are unpaired, or compare a lower bound with a number, stay as
            they are.
    """
    out = list(pairs)
    tested = [i for i, pair in enumerate(pairs) if pair.paired and pair.p is not None]
    corrected = dict(zip(tested, holm([pairs[i].p or 0.0 for i in tested]), strict=True))
    paired = [i for i, pair in enumerate(pairs) if pair.changed is not None]
    chances = holm([c.p for pair in pairs if (c := pair.changed) is not None])
    for i, chance in zip(paired, chances, strict=True):
        changed = out[i].changed
        assert changed is not None
        out[i] = replace(
            out[i], p_corrected=corrected.get(i), changed=replace(changed, p_corrected=chance)
        )
        if out[i].a.top_k != out[i].b.top_k:
            out[i] = replace(out[i], reason="mean KLDs of a top-k comparison are lower bounds; "
                             "the two saw unequal numbers of tokens")  # fmt: skip
            continue
        verdict, reason = _verdict(out[i], len(tested))
        out[i] = replace(out[i], verdict=verdict, reason=reason)
    return out


def _verdict(pair: Pair, n_tests: int) -> tuple[str, str]:
    difference = pair.metrics["mean_kld"].difference
    if difference is None or difference.low is None or difference.high is None:
        return UNRESOLVED, (f"{pair.n_documents} shared documents are too few for an interval, "
                            f"which takes {MIN_DOCUMENTS}")  # fmt: skip
    low, high, margin = difference.low, difference.high, pair.margin or 0.0
    if -margin <= low and high <= margin:
        return f"same within {margin:.2g}", "the whole interval of the difference lies within it"
    if low <= 0 <= high:
        return UNRESOLVED, "the interval of the difference spans 0"
    p = 1.0 if pair.p_corrected is None else pair.p_corrected
    if p >= LEVEL:
        return UNRESOLVED, (f"p {p:.2g} after Holm's correction over {n_tests} pairs"
                            if n_tests > 1 else f"p {p:.2g}")  # fmt: skip
    return B_BETTER if high < 0 else A_BETTER, "the whole interval lies on one side of 0"


def student_p(t: float, df: int) -> float:
    """P(|T| >= |t|) of Student's t with whole degrees of freedom.

    The finite series of Abramowitz and Stegun 26.7.3 and 26.7.4; where it rounds to 0 the truth
    is below 1e-12.

    Args:
        t: statistic.
        df: degrees of freedom, at least 1.
    """
    theta = math.atan2(abs(t), math.sqrt(df))
    sine, cosine2 = math.sin(theta), math.cos(theta) ** 2
    odd = df % 2
    term, total = 1.0, 0.0
    for k in range(1, df // 2 + 1):
        total += term
        term *= cosine2 * ((2 * k) / (2 * k + 1) if odd else (2 * k - 1) / (2 * k))
    if odd:
        inside = 2 / math.pi * (theta + sine * math.cos(theta) * total)
    else:
        inside = sine * total
    return min(1.0, max(0.0, 1.0 - inside))
