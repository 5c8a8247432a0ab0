"""Percentiles against NumPy's, and intervals against what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nybble.results.records import Estimate
from nybble.serving.load import spread
from nybble.serving.load.spread import Values

numbers = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=200)


@given(numbers, st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_percentile_is_a_value_with_its_share_below(found: list[float], level: float) -> None:
    array = np.array(found)
    value = spread.percentile(array, level)
    assert value in found
    assert (array <= value).mean() >= level - 1e-12
    assert (array < value).mean() < level
    assert value == np.quantile(array, level, method="inverted_cdf")


@given(st.lists(st.lists(st.floats(0.001, 10), max_size=8), min_size=1, max_size=60),
       st.integers(1, 4))  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_percentiles_lie_in_their_intervals(requests: list[list[float]], blocks: int) -> None:
    found = Values.of([(i % blocks, r) for i, r in enumerate(requests)])
    made = spread.percentiles(found)
    kept = [r for r in requests if r]
    if not kept:
        assert made == {}
        return
    assert [e.value for e in made.values()] == sorted(e.value for e in made.values())
    for estimate in made.values():
        assert (estimate.low is None) == (estimate.high is None)
        if estimate.low is not None and estimate.high is not None:
            assert min(map(min, kept)) <= estimate.low <= estimate.high <= max(map(max, kept))


def test_a_weighted_draw_is_what_drawing_requests_gives() -> None:
    rng = np.random.default_rng(5)
    requests = [(0, list(rng.exponential(size=rng.integers(1, 9)))) for _ in range(30)]
    found = Values.of(requests)
    drawn = spread.drawn_percentiles(found, np.ones((300, 1), dtype=np.int64))
    assert drawn is not None
    direct = []
    for _ in range(300):
        picked = [v for i in rng.integers(0, 30, 30) for v in requests[i][1]]
        direct.append(spread.percentile(np.array(picked), 0.5))
    assert np.mean(drawn[:, 0]) == pytest.approx(np.mean(direct), rel=0.1)
    assert np.std(drawn[:, 0]) == pytest.approx(np.std(direct), rel=0.35)


def test_the_interval_of_a_median_holds_the_truth() -> None:
    held = 0
    for seed in range(40):
        values = np.random.default_rng(seed).exponential(size=80)
        p50 = spread.percentiles(Values.of([(0, [v]) for v in values]))["p50"]
        assert p50.low is not None and p50.high is not None
        held += p50.low <= np.log(2) <= p50.high
    assert held >= 33  # 38 of 40 expected


def test_few_requests_have_no_interval() -> None:
    made = spread.percentiles(Values.of([(0, [float(i)]) for i in range(9)]))
    assert made["p50"] == Estimate(4.0) and made["p99"] == Estimate(8.0)
    made = spread.percentiles(Values.of([(0, [float(i)]) for i in range(99)]))
    assert made["p50"].low is not None and made["p99"].low is None, "99 have no 99th percentile"


def test_blocks_that_differ_widen_the_interval() -> None:
    def width(by_block: float) -> float:
        rng = np.random.default_rng(0)
        found = Values.of([(b, [1 + by_block * b + 0.1 * rng.random()])
                           for b in range(5) for _ in range(20)])  # fmt: skip
        p50 = spread.percentiles(found)["p50"]
        assert p50.low is not None and p50.high is not None
        return p50.high - p50.low

    assert width(1.0) > 10 * width(0.0)


def test_an_empty_block_does_no_harm() -> None:
    found = Values.of([(4, [float(i)]) for i in range(30)])
    assert spread.percentiles(found)["p50"].low is not None


@given(st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.5, 2)), min_size=3, max_size=40))
def test_noise_that_hits_both_cancels(pairs: list[tuple[float, float]]) -> None:
    noise = [n for n, _ in pairs]
    made = spread.ratio_of_pairs([2 * n for n in noise], noise, 2.0)
    assert made.low == pytest.approx(2.0) and made.high == pytest.approx(2.0)


def test_ratio_of_pairs_is_students() -> None:
    """Logs 0, 0.1, 0.2: mean 0.1, s = 0.1, t(2) = 4.303, half = 0.2484."""
    made = spread.ratio_of_pairs(np.exp([0.0, 0.1, 0.2]).tolist(), [1, 1, 1], np.exp(0.1))
    assert made.low == pytest.approx(np.exp(0.1 - 4.303 * 0.1 / 3**0.5))
    assert made.high == pytest.approx(np.exp(0.1 + 4.303 * 0.1 / 3**0.5))
    assert spread.ratio_of_pairs([1, 2], [1, 1], 1.5) == Estimate(1.5)
    assert spread.ratio_of_pairs([0, 0, 0], [1, 1, 1], 0.0) == Estimate(0.0)


def test_mean_and_draws() -> None:
    assert spread.mean([]) == Estimate(0.0) and spread.mean([2.0] * 9) == Estimate(2.0)
    assert spread.mean([2.0] * 10) == Estimate(2.0, 2.0, 2.0)
    draws = spread.block_draws(5)
    assert draws.shape == (spread.DRAWS, 5) and (draws.sum(axis=1) == 5).all()
    assert spread.ratio_of_draws(None, np.ones(3), 2.0) == Estimate(2.0)
    nan = np.array([np.nan, 2.0, 4.0])
    assert spread.ratio_of_draws(nan, np.array([1.0, 1.0, 0.0]), 2.0) == Estimate(2.0, 2.0, 2.0)
