"""Comparison of two sets of top-k log-probabilities, with what it leaves open.

A server tells log p of the k most likely tokens and of the true next one. Let A be the tokens
known under the reference p and under the candidate q, S those known under p alone, T those known
under q alone, U all others, and P = 1 - p(A), Q = 1 - q(A) what is left beside A. Then, whatever
the unknown probabilities are,

    KL(p || q) >= sum_A p log(p / q) + least of d(S) + d(T) + d(U),   d(X) = p(X) log(p(X) / q(X))

because merging tokens into one event never increases the divergence (data processing; for a
partition the log-sum inequality: Cover and Thomas, Elements of Information Theory, theorems 2.7.1
and 2.8.1). p(S) and q(T) are known. q(S) is not, but no token of S has more than q's k-th, nor all
of them more than q leaves beside its known ones; so for p(T). The least over these two boxed
unknowns has a closed form, as d is jointly convex (theorem 2.7.2): where neither box binds all
three ratios are equal and the three terms become P log(P / Q), else the least lies on an edge of a
box, along which the other unknown is again in proportion. This is `low`. With k of the
vocabulary's size only A is left, and it is the divergence itself.

There is no finite upper bound: a token outside A may have any small probability under q. What can
be said is an estimate from above,

    high = sum_A p log(p / q) + P max(0, max_A log(p / q)),

which holds if no token outside A lost more, in nats, than the one in A that lost the most. P, the
reference's mass that was compared as a lump, is kept beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nybble.engines.server.base import MISSING, Scores
from nybble.scoring.compare import ROW, Rows

# Log-probabilities come in float32 and their exponentials sum to 1 up to about this; a smaller
# remainder is rounding, not mass.
ROUNDING = 1e-6

# One known log-probability of one position; `logp_true` repeats in all rows of a position.
TOP = np.dtype(
    [
        ("position", np.int32),  # position in the context of the token that predicts
        ("token", np.int32),  # the true next token
        ("logp_true", np.float32),  # its log-probability; `true` is a word of SQL
        ("id", np.int32),  # one of the k most likely tokens, most likely first; -1 for none
        ("logp", np.float32),  # its log-probability
    ]
)
# As ROW; `kld` is the lower bound, `rank` counts among the top k only.
TOPK_ROW = np.dtype(
    [
        *ROW.descr,
        ("kld_high", np.float32),  # the estimate from above
        ("tail", np.float32),  # mass of the reference that was compared as a lump
    ]
)


@dataclass(frozen=True)
class Tops:
    """What a server told of the scored positions of one chunk.

    Attributes:
        first: position of the first one.
        tokens: int32 [n], the true next tokens.
        scores: [n, k] and [n].
    """

    first: int
    tokens: npt.NDArray[np.int32]
    scores: Scores

    @property
    def k(self) -> int:
        """Tokens told of each position."""
        return int(self.scores.ids.shape[1])

    def records(self) -> npt.NDArray[np.void]:
        """As TOP records [n * k], to be kept."""
        n, k = self.scores.ids.shape
        out = np.empty(n * k, dtype=TOP)
        out["position"] = np.repeat(np.arange(self.first, self.first + n), k)
        out["token"], out["logp_true"] = np.repeat(self.tokens, k), np.repeat(self.scores.true, k)
        out["id"], out["logp"] = self.scores.ids.ravel(), self.scores.logps.ravel()
        return out


def from_records(rows: npt.NDArray[np.void], read: str) -> Tops | None:
    """Tops that were kept; None where they are damaged."""
    n = len(np.unique(rows["position"]))
    if not n or len(rows) % n:
        return None
    shape = (n, len(rows) // n)
    start = rows[:: shape[1]]
    if (rows["position"] != np.repeat(start["position"], shape[1])).any():
        return None
    scores = Scores(
        rows["id"].reshape(shape), rows["logp"].reshape(shape), start["logp_true"].copy(), read
    )
    return Tops(int(start["position"][0]), start["token"].copy(), scores)


def compare(reference: Tops, candidate: Tops) -> Rows:
    """Compare the same positions of the same tokens.

    Returns:
        TOPK_ROW records [n]; a position without finite log-probabilities has NaN in `kld`.

    Raises:
        ValueError: other tokens or positions.
    """
    if reference.first != candidate.first or (reference.tokens != candidate.tokens).any():
        raise ValueError("two sets of scores of different tokens")
    n = len(reference.tokens)
    out = np.zeros(n, dtype=TOPK_ROW)
    out["position"] = np.arange(reference.first, reference.first + n)
    out["token"] = reference.tokens
    out["nll_ref"], out["nll"] = -reference.scores.true, -candidate.scores.true
    ids, logps = reference.scores.ids, reference.scores.logps
    out["top_ref"], out["top"] = ids[:, 0], candidate.scores.ids[:, 0]
    out["margin_ref"] = logps[:, 0] - logps[:, 1] if reference.k > 1 else math.inf
    out["rank"] = (candidate.scores.logps > candidate.scores.true[:, None]).sum(1)
    for i in range(n):
        told = _known(reference, i), _known(candidate, i)
        least = _least(reference, i), _least(candidate, i)
        out["kld"][i], out["kld_high"][i], out["tail"][i] = bounds(*told, *least)
    return out


def bounds(
    p: dict[int, float], q: dict[int, float], p_least: float = 1.0, q_least: float = 1.0
) -> tuple[float, float, float]:
    """Lower bound, estimate from above and lumped mass, from the known log-probabilities.

    Args:
        p: token -> log-probability under the reference.
        q: the same under the candidate.
        p_least: most that a token outside p's may have: probability of the k-th.
        q_least: the same of q.
    """
    if any(map(math.isnan, p.values())) or any(map(math.isnan, q.values())):
        return math.nan, math.nan, math.nan
    # A probability of 0 is one that float32 lost; such a token is not known.
    p, q = ({t: x for t, x in known.items() if x > -math.inf} for known in (p, q))
    both = [t for t in p if t in q]
    a = np.array([p[t] for t in both], dtype=np.float64)
    b = np.array([q[t] for t in both], dtype=np.float64)
    mass = np.exp(a)
    exact = float(np.dot(mass, a - b))
    tail = max(0.0, 1.0 - float(mass.sum()))
    rest = max(ROUNDING, 1.0 - float(np.exp(b).sum()))
    alone_p = [math.exp(x) for t, x in p.items() if t not in q]
    alone_q = [math.exp(x) for t, x in q.items() if t not in p]
    p_s, q_t = min(tail, sum(alone_p)), min(rest, sum(alone_q))
    q_s = min(rest - q_t, len(alone_p) * q_least)
    p_t = min(tail - p_s, len(alone_q) * p_least)
    low = max(0.0, exact + _least_rest(tail, rest, p_s, q_t, q_s, p_t))  # KL is never negative
    most = max(0.0, float((a - b).max(initial=0.0)))
    return low, max(low, exact + tail * most), tail


def _least_rest(
    tail: float, rest: float, p_s: float, q_t: float, q_s_most: float, p_t_most: float
) -> float:
    """Least of d(S) + d(T) + d(U) with q(S) and p(T) up to their bounds."""

    def at(q_s: float, p_t: float) -> float:
        return (_term(p_s, q_s) + _term(p_t, q_t)
                + _term(tail - p_s - p_t, rest - q_t - q_s))  # fmt: skip

    if tail <= 0:
        return 0.0
    if p_s * rest <= q_s_most * tail and q_t * tail <= p_t_most * rest:
        return _term(tail, rest)
    # On each edge the other unknown is in proportion to what it shares the rest with.
    beside_t, beside_s = rest - q_s_most, tail - p_t_most
    p_t = min(p_t_most, (tail - p_s) * q_t / beside_t) if beside_t > 0 else p_t_most
    q_s = min(q_s_most, (rest - q_t) * p_s / beside_s) if beside_s > 0 else q_s_most
    return min(at(q_s_most, p_t), at(q_s, p_t_most))


def _term(p: float, q: float) -> float:
    """One event's p log(p / q); a q below rounding counts as that, which never raises it."""
    return p * math.log(p / max(q, ROUNDING)) if p > 0 else 0.0


def _least(tops: Tops, i: int) -> float:
    """Probability of the k-th token told; no other has more."""
    logps = tops.scores.logps[i][tops.scores.ids[i] != MISSING]
    return min(1.0, float(np.exp(logps.min()))) if len(logps) else 1.0


def _known(tops: Tops, i: int) -> dict[int, float]:
    scores = tops.scores
    found = {
        int(t): float(x) for t, x in zip(scores.ids[i], scores.logps[i], strict=True)
        if t != MISSING
    }  # fmt: skip
    found[int(tops.tokens[i])] = float(scores.true[i])
    return found
