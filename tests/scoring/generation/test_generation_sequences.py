"""Two answers compared token for token, against definitions spelled out slowly."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nybble.scoring.generation.sequences import agreement, first_difference, looped

IDS = st.lists(st.integers(0, 3), min_size=1, max_size=12)


def ids(values: list[int]) -> npt.NDArray[np.int32]:
    return np.array(values, dtype=np.int32)


@pytest.mark.parametrize(
    ("a", "b", "place"),
    [
        ([5, 6, 7], [5, 6, 7], math.inf),
        ([5, 6, 7], [4, 6, 7], 1),
        ([5, 6, 7], [5, 6, 8], 3),
        ([5, 6, 2], [5, 6, 8, 9], 3),  # 2 ends the first
        ([5, 6], [5, 6, 8], 3),
    ],
)
def test_first_difference(a: list[int], b: list[int], place: float) -> None:
    assert first_difference(ids(a), ids(b)) == first_difference(ids(b), ids(a)) == place


@given(IDS, IDS, st.integers(1, 15))
def test_agreement_is_the_share_of_equal_places(a: list[int], b: list[int], n: int) -> None:
    longer = max(len(a), len(b))
    padded = [x + [None] * (longer - len(x)) for x in (a, b)]
    places = list(zip(*padded, strict=True))[:n]
    expected = sum(x == y for x, y in places) / len(places)
    assert agreement(ids(a), ids(b), n) == pytest.approx(expected)


@given(IDS, IDS)
def test_agreement_is_whole_up_to_the_first_difference(a: list[int], b: list[int]) -> None:
    place = first_difference(ids(a), ids(b))
    if place > 1:
        assert agreement(ids(a), ids(b), int(min(place - 1, 99))) == 1.0
    if place < math.inf:
        assert agreement(ids(a), ids(b), int(place)) < 1.0


@pytest.mark.parametrize("period", [1, 2, 7, 16])
def test_loops_up_to_sixteen_tokens(period: int) -> None:
    start = list(range(100, 140))
    assert looped(ids(start + [i % period for i in range(64)]))


@pytest.mark.parametrize(
    "tokens",
    [
        [7] * 63,  # too short to tell
        [i % 17 for i in range(64)],
        list(range(64)),
        [7] * 63 + [8],
        [8] + [7] * 20 + list(range(43)),
    ],
)
def test_what_is_no_loop(tokens: list[int]) -> None:
    assert not looped(ids(tokens))
