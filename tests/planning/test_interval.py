"""Numbers between two ends, and the checks of numbers that users give."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nybble.errors import NybbleError
from nybble.planning.interval import Interval, around, as_interval, exact, positive, share

FINITE = st.floats(-1e9, 1e9)
PAIRS = st.tuples(FINITE, FINITE).map(lambda p: Interval(min(p), max(p)))


@pytest.mark.parametrize("ends", [(2.0, 1.0), (math.nan, 1.0), (0.0, math.nan), (math.inf, 0.0)])
def test_wrong_ends_are_refused(ends: tuple[float, float]) -> None:
    with pytest.raises(NybbleError, match="from low to high") as caught:
        Interval(*ends)
    assert str(ends[0]) in str(caught.value.seen)


def test_ends_belong_to_it() -> None:
    found = Interval(1.0, 3.0)
    assert [x in found for x in (0.999, 1.0, 2.0, 3.0, 3.001)] == [False, True, True, True, False]
    assert 1e300 in Interval(0.0, math.inf)
    assert found.middle == 2.0
    assert as_interval(found) is found
    assert as_interval(4) == exact(4) == Interval(4, 4)


@given(PAIRS, PAIRS, st.floats(0, 1), st.floats(0, 1))
def test_a_sum_holds_the_sums(a: Interval, b: Interval, s: float, t: float) -> None:
    x, y = (i.low + (i.high - i.low) * at for i, at in ((a, s), (b, t)))
    total = a + b
    slack = 1e-6 * (1 + abs(total.low) + abs(total.high))
    assert total.low - slack <= x + y <= total.high + slack
    assert (total.low, total.high) == (a.low + b.low, a.high + b.high)


def test_times() -> None:
    assert Interval(1.0, 2.0).times(3) == Interval(3.0, 6.0)
    assert Interval(1.0, 2.0).times(0) == exact(0.0)
    with pytest.raises(NybbleError):
        Interval(1.0, 2.0).times(-1)


def test_around() -> None:
    assert around([3.0, 1.0, 2.0]) == Interval(1.0, 3.0)
    assert around([100.0, 200.0], 0.05) == Interval(95.0, 210.0)


def test_positive() -> None:
    assert positive("x", 0.1) == 0.1
    assert positive("x", 0, zero=True) == 0
    for bad in (0, -1, math.nan, math.inf, "3"):
        with pytest.raises(NybbleError, match="x must be a number above 0") as caught:
            positive("x", bad, "GB")  # type: ignore[arg-type]
        assert caught.value.seen == str(bad)
        assert caught.value.allowed == "a finite number above 0, in GB"
    with pytest.raises(NybbleError, match="of at least 0"):
        positive("x", -1e-9, zero=True)


def test_share() -> None:
    assert share("x", 1) == 1
    assert share("x", 0, zero=True) == 0
    for bad, zero in ((0, False), (1.01, False), (-0.1, True), (60, True)):
        with pytest.raises(NybbleError, match="x"):
            share("x", bad, zero=zero)
