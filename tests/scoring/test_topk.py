from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nybble.engines.server.base import MISSING, Scores
from nybble.scoring.topk import TOP, Tops, _least_rest, _term, bounds, compare, from_records


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.logaddexp.reduce(logits)


def _told(row: np.ndarray, k: int, true: int) -> dict[int, float]:
    top = np.argsort(-row)[:k]
    return {int(t): float(np.float32(row[t])) for t in [*top, true]}


@st.composite
def pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int, int, int]:
    """Two distributions over one vocabulary, k of each, and a true token."""
    n = draw(st.integers(2, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread, noise = draw(st.floats(0, 12)), draw(st.floats(0, 12))
    p = rng.normal(0, spread, n)
    q = p + rng.normal(0, noise, n)
    ks = draw(st.integers(1, n)), draw(st.integers(1, n))
    return _log_softmax(p), _log_softmax(q), *ks, draw(st.integers(0, n - 1))


@settings(max_examples=200, deadline=None)
@given(pairs())
def test_the_lower_bound_holds_always(case: tuple[np.ndarray, np.ndarray, int, int, int]) -> None:
    p, q, kp, kq, true = case
    full = float(np.exp(p) @ (p - q))
    least = np.exp(np.sort(p)[-kp]) * (1 + 1e-6), np.exp(np.sort(q)[-kq]) * (1 + 1e-6)
    low, high, tail = bounds(_told(p, kp, true), _told(q, kq, true), *least)
    assert 0 <= low <= full + 3e-6 * max(1.0, full)
    assert low <= high and 0 <= tail <= 1


@settings(max_examples=200, deadline=None)
@given(pairs())
def test_the_estimate_holds_where_its_assumption_does(
    case: tuple[np.ndarray, np.ndarray, int, int, int],
) -> None:
    p, q, kp, kq, true = case
    a, b = _told(p, kp, true), _told(q, kq, true)
    known = [t for t in a if t in b]
    others = np.delete(p - q, known)
    most = max([0.0, *(a[t] - b[t] for t in known)])
    full = float(np.exp(p) @ (p - q))
    if not len(others) or others.max() <= most:
        assert bounds(a, b)[1] >= full - 3e-6 * max(1.0, full)


@settings(max_examples=200, deadline=None)
@given(pairs())
def test_the_whole_vocabulary_is_exact(case: tuple[np.ndarray, np.ndarray, int, int, int]) -> None:
    p, q, _, _, true = case
    full = float(np.exp(p) @ (p - q))
    low, high, tail = bounds(_told(p, len(p), true), _told(q, len(q), true))
    assert low == pytest.approx(full, rel=1e-5, abs=3e-6)
    assert high == pytest.approx(full, rel=1e-5, abs=1e-4) and tail < 1e-5


def test_more_tokens_never_loosen_the_bound() -> None:
    rng = np.random.default_rng(1)
    p = _log_softmax(rng.normal(0, 2, 300))
    q = _log_softmax(p + rng.normal(0, 0.5, 300))
    # One set of tokens inside the next: merging fewer of them never lowers the divergence.
    order = np.argsort(-p)
    lows = [bounds({int(t): p[t] for t in order[:k]}, {int(t): q[t] for t in order[:k]})[0]
            for k in (2, 5, 20, 100, 300)]  # fmt: skip
    assert all(b >= a - 1e-6 for a, b in zip(lows, lows[1:], strict=False))
    assert lows[-1] == pytest.approx(float(np.exp(p) @ (p - q)), abs=1e-6)


def test_the_same_twice_is_exactly_zero() -> None:
    rng = np.random.default_rng(2)
    for k in (2, 20, 50):
        row = _log_softmax(rng.normal(0, 4, 50)).astype(np.float32)
        told = _told(row, k, 7)
        assert bounds(told, dict(told))[:2] == (0.0, 0.0)


def test_nothing_in_common_still_bounds() -> None:
    # q leaves a tenth for the token that has nine under p: at best 0.9 log 9 - 0.1 log 9.
    low, high, tail = bounds({1: math.log(0.9)}, {2: math.log(0.9)})
    assert low == pytest.approx(0.8 * math.log(9), abs=1e-4) and tail == 1.0 and high >= low
    # And no more than the k-th told.
    tighter, _, _ = bounds({1: math.log(0.9)}, {2: math.log(0.9)}, 1.0, 1e-3)
    assert tighter > 5


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_no_choice_of_the_unknown_is_below_the_bound(seed: int) -> None:
    """The closed form against its definition on a grid over both boxes."""
    rng = np.random.default_rng(seed)
    tail, rest = rng.uniform(0.01, 1, 2)
    p_s, q_t = tail * rng.uniform(), rest * rng.uniform()
    q_s, p_t = (rest - q_t) * rng.uniform(), (tail - p_s) * rng.uniform()
    least = _least_rest(tail, rest, p_s, q_t, q_s, p_t)
    grid = np.linspace(1e-6, 1, 60)
    found = min(_term(p_s, a * q_s) + _term(b * p_t, q_t)
                + _term(tail - p_s - b * p_t, rest - q_t - a * q_s)
                for a in grid for b in grid)  # fmt: skip
    assert least <= found + 1e-9 and least >= found - 0.02


def test_a_lost_probability_is_lumped_and_nan_is_left_out() -> None:
    p = {1: math.log(0.5), 2: math.log(0.4)}
    low, _, tail = bounds(p, {1: math.log(0.5), 2: -math.inf})
    assert tail == pytest.approx(0.5) and math.isfinite(low)
    assert all(map(math.isnan, bounds(p, {1: math.nan})))


def _tops(ids: list[list[int]], logps: list[list[float]], true: list[float], token: int) -> Tops:
    scores = Scores(np.array(ids, np.int32), np.array(logps, np.float32),
                    np.array(true, np.float32), "decode")  # fmt: skip
    return Tops(5, np.full(len(ids), token, np.int32), scores)


def test_rows_carry_what_other_metrics_need() -> None:
    ref = _tops([[3, 4], [3, 4]], [[-0.5, -1.0], [-0.2, -2.0]], [-1.0, -2.0], 4)
    got = _tops([[4, 3], [3, MISSING]], [[-0.6, -0.9], [-0.1, -np.inf]], [-0.6, -3.0], 4)
    rows = compare(ref, got)
    assert rows["position"].tolist() == [5, 6] and rows["token"].tolist() == [4, 4]
    assert rows["top_ref"].tolist() == [3, 3] and rows["top"].tolist() == [4, 3]
    assert rows["margin_ref"] == pytest.approx([0.5, 1.8])
    assert rows["nll"] == pytest.approx([0.6, 3.0]) and rows["rank"].tolist() == [0, 1]
    assert (rows["kld"] > 0).all() and (rows["kld_high"] >= rows["kld"]).all()


def test_kept_rows_come_back_whole_or_not_at_all() -> None:
    tops = _tops([[3, 4], [5, MISSING]], [[-0.5, -1.0], [-0.2, -np.inf]], [-1.0, -2.0], 4)
    records = tops.records()
    assert records.dtype == TOP
    back = from_records(records, "decode")
    assert back is not None and back.first == 5 and back.k == 2
    assert (back.scores.ids == tops.scores.ids).all()
    assert (back.scores.true == tops.scores.true).all()
    assert from_records(records[:-1], "") is None and from_records(records[:0], "") is None
