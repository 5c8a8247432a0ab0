"""One row a setting, from made-up answers with known numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nybble.formats import parse
from nybble.scoring.compare import ROW
from nybble.scoring.generation.cells import Kept, LaneSpec
from nybble.scoring.generation.collect import (
    change,
    divergence,
    fine,
    mean,
    median,
    places,
    stretches,
)

END, LIMIT = 2, 64
LANE = LaneSpec(parse("q4_0/q4_0"))


def kept(tokens: list[int], klds: list[float] | None = None) -> Kept:
    rows = np.zeros(len(klds or ()), dtype=ROW)
    rows["position"] = np.arange(len(rows))
    rows["kld"] = klds or ()
    return Kept(np.array(tokens, dtype=np.int32), tokens[-1] == END, rows)


def text(n: int, end: bool = False) -> list[int]:
    """`n` tokens that do not loop, the last one an end token if asked for."""
    found = [10 + (i * i) % 97 for i in range(n)]
    return [*found[:-1], END] if end else found


def test_where_answers_are_compared() -> None:
    assert places(64) == [64]
    assert places(100) == [64, 100]
    assert places(1024) == [64, 256, 1024]
    assert stretches(300, (64, 256)) == [(1, 64), (65, 256), (257, 300)]
    assert fine(20) == [(1, 4), (5, 8), (9, 16), (17, 20)]


def test_every_number_of_a_row() -> None:
    full = text(LIMIT)
    late, early = list(full), list(full)
    late[40] = early[9] = 7
    reference = [kept(full), kept(full), kept(text(30, end=True)), kept(text(20, end=True))]
    own = [
        kept(full, [0.1] * LIMIT),  # the same
        kept(late, [0.3] * LIMIT),  # parts at token 41
        kept(text(30, end=True), [0.1] * 30),  # the same, to the end
        kept(text(LIMIT)[:19] + [5] * 45, [0.5] * 20),  # runs on where the reference ended
    ]
    own[0] = kept(early, [0.1] * LIMIT)  # parts at token 10
    row = divergence(LANE, list(zip(reference, own, strict=True)), LIMIT, 0)
    assert (row.setting, row.role, row.n_prompts) == ("q4_0/q4_0", "candidate", 4)
    assert row.first_at == [10, 20, 41, 0]
    assert row.first_median is not None and row.first_median.value == 20
    assert row.same_at["64"].value == 0.25
    expected = np.mean([63 / 64, 63 / 64, 1, 19 / 64])
    assert row.agreement_at["64"].value == pytest.approx(expected)
    tokens = [0.1] * 64 + [0.3] * 64 + [0.1] * 30 + [0.5] * 20
    assert row.kld_at["1-64"].value == pytest.approx(np.mean(tokens), rel=1e-6)
    assert row.kld_along["33-64"].value == pytest.approx(0.2, rel=1e-6)
    assert row.ended is not None and row.ended.value == 0.25
    assert row.failed_to_stop is not None and row.failed_to_stop.value == 0.5
    assert row.looped is not None and row.looped.value == 0.0
    assert row.mean_length is not None and row.mean_length.value == (64 + 64 + 30 + 64) / 4
    assert row.length_ratio is None  # only one ends in both


def test_length_ratio_is_a_geometric_mean_of_those_that_end_in_both() -> None:
    lengths = [(10, 20), (20, 10), (16, 32), (30, 30)]
    pairs = [(kept(text(a, end=True)), kept(text(b, end=True), [0.1] * a)) for a, b in lengths]
    pairs.append((kept(text(64)), kept(text(8, end=True), [0.1] * 64)))
    row = divergence(LANE, pairs, LIMIT, 0)
    assert row.length_ratio is not None
    assert row.length_ratio.value == pytest.approx(2 ** (1 / 4))
    assert row.length_ratio.low is None  # four prompts only


def test_the_reference_says_how_it_ends_and_no_more() -> None:
    pairs = [(kept(text(30, end=True)),) * 2] * 5
    row = divergence(LaneSpec(parse("f16/f16")), pairs, LIMIT, 0)
    assert row.role == "reference" and row.ended is not None and row.ended.value == 1.0
    assert not row.kld_at and row.first_median is None and row.failed_to_stop is None


def test_median_with_answers_that_never_part() -> None:
    inf = math.inf
    assert median(np.array([inf, inf, inf, 4.0, 9.0]), 0) is None
    half = median(np.array([inf, inf, inf, 4.0, 9.0, 6.0]), 0)
    assert half is not None and half.value == 9 and half.high is None
    assert half.low is not None and half.low < 9
    known = median(np.array([3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]), 0)
    assert known is not None and known.value == 6
    assert known.low is not None and known.high is not None and known.low < 6 < known.high
    few = median(np.array([3.0, 4.0]), 0)
    assert few is not None and (few.value, few.low) == (3, None)


@pytest.mark.slow
def test_the_median_s_interval_covers_the_truth() -> None:
    rng = np.random.default_rng(0)
    truth, hits = math.ceil(math.log(0.5) / math.log(1 - 1 / 60)), 0
    for seed in range(200):
        firsts = rng.geometric(1 / 60, 9).astype(float)
        found = median(firsts, seed)
        assert found is not None and found.low is not None
        hits += found.low <= truth <= (math.inf if found.high is None else found.high)
    assert hits >= 174


def test_a_change_is_paired() -> None:
    reference = [kept(text(LIMIT)) for _ in range(6)]
    floor, own = [], []
    for i in range(6):  # prompts differ much, the two lanes by two tokens each
        tokens = text(LIMIT)
        tokens[: 8 * i] = [3] * (8 * i)
        floor.append(kept(list(tokens), [0.1] * LIMIT))
        tokens[-2:] = [4, 4]
        own.append(kept(tokens, [0.1] * LIMIT))
    found = change(
        list(zip(reference, own, strict=True)), list(zip(reference, floor, strict=True)), LIMIT, 0
    )
    assert found.value == pytest.approx(-2 / 64)
    assert found.low is None  # all prompts change alike


def test_mean_needs_spread_and_prompts() -> None:
    assert mean(np.array([1.0, 2.0]), 0).low is None
    assert mean(np.full(9, 0.5), 0).low is None
    found = mean(np.arange(9.0), 0)
    assert found.low is not None and found.high is not None and found.low < 4 < found.high
