"""Paired statistics against values computed by hand, and their coverage."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nybble.scoring.statistics import MIN_DOCUMENTS
from nybble.scoring.tasks.paired import (
    LEVEL,
    accuracy,
    holm,
    mcnemar,
    mean_change,
    paired_change,
    smallest_loss,
)


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [
        (0, 0, 1.0),
        (0, 1, 1.0),  # 2 * 1/2
        (0, 5, 0.0625),  # 2 / 2^5
        (0, 6, 0.03125),
        (1, 7, 2 * 9 / 256),
        (3, 3, 1.0),
        (2, 10, 2 * (1 + 12 + 66) / 4096),
    ],
)
def test_mcnemar_by_hand(gained: int, lost: int, p: float) -> None:
    assert mcnemar(gained, lost) == pytest.approx(p, rel=1e-12)
    assert mcnemar(lost, gained) == mcnemar(gained, lost)


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_the_exact_sum(gained: int, lost: int) -> None:
    n, k = gained + lost, min(gained, lost)
    exact = min(Fraction(1), 2 * Fraction(sum(math.comb(n, i) for i in range(k + 1)), 2**n))
    assert mcnemar(gained, lost) == pytest.approx(float(exact), rel=1e-9)


def test_mcnemar_with_large_counts() -> None:
    # Normal approximation with continuity correction: z = (|b - c| - 1) / sqrt(b + c).
    gained, lost = 49_500, 50_500
    z = (lost - gained - 1) / math.sqrt(gained + lost)
    assert mcnemar(gained, lost) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=1e-3)
    assert mcnemar(0, 2000) == 0.0  # 2^-1999, below the smallest double
    assert 0 < mcnemar(10, 900) < 1e-200


def test_holm_by_hand() -> None:
    # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1: 0.04, 0.06, 0.06, 0.06.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    assert holm([0.03]) == [0.03]


@given(st.lists(st.floats(0, 1), max_size=20))
def test_holm_corrects_upwards_and_keeps_order(ps: list[float]) -> None:
    found = holm(ps)
    assert all(p <= q <= 1 for p, q in zip(ps, found, strict=True))
    by_p = [q for _, q in sorted(zip(ps, found, strict=True))]
    assert by_p == sorted(by_p)


def test_smallest_loss_is_what_mcnemar_and_holm_find() -> None:
    for tests in (1, 2, 3, 24, 100):
        k = smallest_loss(tests)
        assert holm([mcnemar(0, k)] + [1.0] * (tests - 1))[0] < LEVEL
        assert not holm([mcnemar(0, k - 1)] + [1.0] * (tests - 1))[0] < LEVEL


def test_values_are_plain_shares() -> None:
    before = [True, True, True, False, False, True]
    after = [True, False, False, True, False, True]
    cluster = ["a", "a", "b", "b", "c", "c"]
    assert accuracy(before, cluster).value == pytest.approx(4 / 6)
    assert paired_change(before, after, cluster).value == pytest.approx(-1 / 6)
    assert accuracy(before, cluster).low is None  # 3 contexts are too few to resample
    assert math.isnan(accuracy([], []).value)
    with pytest.raises(ValueError, match="6 questions, 1 clusters"):
        accuracy(before, ["a"])


def test_no_difference_still_has_an_interval() -> None:
    cluster = list(np.repeat(np.arange(10), 8))
    same = paired_change([True] * 80, [True] * 80, cluster)
    assert same.value == 0
    assert same.low is not None and same.high is not None
    # Bonett and Price for 80 independent pairs without a change: 1.96 * sqrt(2) / 82 = 0.034.
    assert -0.06 < same.low < -0.02 and 0.02 < same.high < 0.06
    perfect = accuracy([True] * 80, cluster)
    assert perfect.value == perfect.high == 1
    assert perfect.low is not None and 0.88 < perfect.low < 0.96


def test_seed_and_order_of_contexts() -> None:
    rng = np.random.default_rng(1)
    before, after = rng.random(64) < 0.7, rng.random(64) < 0.6
    cluster = list(np.repeat(np.arange(8), 8))
    found = paired_change(before, after, cluster, 3)
    assert found == paired_change(before, after, cluster, 3)
    assert found != paired_change(before, after, cluster, 4)
    assert found.low is not None and found.high is not None
    assert found.low <= found.value <= found.high


def test_errors_that_come_together_widen_the_interval() -> None:
    alike = np.repeat([True, False] * 8, 8)  # a whole context right, the next wrong
    spread = np.tile([True, False], 64)
    cluster = list(np.repeat(np.arange(16), 8))
    wide, narrow = accuracy(alike, cluster), accuracy(spread, cluster)
    assert wide.value == narrow.value == 0.5
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)  # type: ignore[operator]


def test_mean_change_of_numbers() -> None:
    change = np.linspace(-1, 3, 40)
    found = mean_change(change, list(range(40)))
    assert found.value == pytest.approx(1.0)
    half = 2.02 * np.std(change, ddof=1) / math.sqrt(40)  # Student's interval, 39 degrees
    assert found.low == pytest.approx(1 - half, abs=0.03)
    assert found.high == pytest.approx(1 + half, abs=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("contexts", [MIN_DOCUMENTS, 12, 32])
@pytest.mark.parametrize("base", [0.5, 0.9])
def test_coverage(contexts: int, base: float) -> None:
    """Of 95 % intervals at least 91 % hold the truth, where questions of a context err together."""
    rng = np.random.default_rng(7)
    cluster = list(np.repeat(np.arange(contexts), 8))
    runs, hit, share_hit = 400, 0, 0
    lost, gained = 0.15, 0.05
    for run in range(runs):
        # Beta draws of each context's share: intra-context correlation 1 / (1 + 12) = 0.077.
        p = np.repeat(rng.beta(12 * base, 12 * (1 - base), contexts), 8)
        before = rng.random(8 * contexts) < p
        flip = np.repeat(rng.beta(12 * lost, 12 * (1 - lost), contexts), 8)
        back = np.repeat(rng.beta(12 * gained, 12 * (1 - gained), contexts), 8)
        u = rng.random(8 * contexts)
        after = np.where(before, u >= flip, u < back)
        change = paired_change(before, after, cluster, run)
        share = accuracy(before, cluster, run)
        truth = (1 - base) * gained - base * lost
        assert change.low is not None and change.high is not None
        assert share.low is not None and share.high is not None
        hit += change.low <= truth <= change.high
        share_hit += share.low <= base <= share.high
    assert hit / runs > 0.91
    assert share_hit / runs > 0.91
