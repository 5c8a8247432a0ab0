"""The scale against RoPE itself, and against every other scale."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nybble.formats.energies import LayerEnergies
from nybble.hardening.fold import LayerFold, fold, halves, interleaved

F64 = np.ndarray[Any, np.dtype[np.float64]]
Ties = np.ndarray[Any, np.dtype[np.intp]]
SEEDS = st.integers(0, 2**32 - 1)
DIM = 16


def rope(x: F64, position: int, rotated: int, turning: int, side_by_side: bool) -> F64:
    """Turn the pairs of x [..., D]: those beyond `turning` have frequency zero."""
    n = rotated // 2
    angle = position * 10.0 ** -(np.arange(n) / 4)
    angle[turning:] = 0
    if side_by_side:
        first, second = slice(0, rotated, 2), slice(1, rotated, 2)
    else:
        first, second = slice(0, n), slice(n, rotated)
    out = x.copy()
    out[..., first] = x[..., first] * np.cos(angle) - x[..., second] * np.sin(angle)
    out[..., second] = x[..., first] * np.sin(angle) + x[..., second] * np.cos(angle)
    return out


@st.composite
def ropes(draw: st.DrawFn) -> tuple[tuple[int, int, bool], Ties]:
    """Arguments of `rope` and what nybble ties for them."""
    rotated = 2 * draw(st.integers(0, DIM // 2))
    if draw(st.booleans()):
        return (rotated, rotated // 2, True), interleaved(DIM, rotated)
    turning = draw(st.integers(0, rotated // 2))
    return (rotated, turning, False), halves(DIM, rotated, turning)


class TestTies:
    @given(ropes())
    def test_exactly_what_rope_turns_into_each_other(
        self, case: tuple[tuple[int, int, bool], Ties]
    ) -> None:
        how, ties = case
        turned = rope(np.eye(DIM), 1, *how) != 0
        np.testing.assert_array_equal(turned, ties[:, None] == ties)

    @given(ropes(), SEEDS)
    def test_scores_stay(self, case: tuple[tuple[int, int, bool], Ties], seed: int) -> None:
        how, ties = case
        rng = np.random.default_rng(seed)
        q, k = rng.standard_normal((2, DIM))
        e = np.exp(rng.standard_normal(DIM))[ties]
        scores = rope(q, 7, *how) * rope(k, 3, *how)
        scaled = rope(q * e, 7, *how) * rope(k / e, 3, *how)
        np.testing.assert_allclose(scaled.sum(), scores.sum(), rtol=0, atol=1e-12 * 16)

    @pytest.mark.parametrize("side_by_side", [False, True])
    def test_the_other_order_changes_scores(self, side_by_side: bool) -> None:
        rng = np.random.default_rng(0)
        q, k = rng.standard_normal((2, DIM))
        how = (DIM, DIM // 2, side_by_side)
        wrong = halves(DIM, DIM) if side_by_side else interleaved(DIM, DIM)
        for ties in (wrong, np.arange(DIM)):
            e = np.exp(rng.standard_normal(DIM))[ties]
            scores = (rope(q, 7, *how) * rope(k, 3, *how)).sum()
            scaled = (rope(q * e, 7, *how) * rope(k / e, 3, *how)).sum()
            assert abs(scaled - scores) > 0.1

    def test_by_hand(self) -> None:
        assert halves(8, 8).tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
        assert halves(8, 4).tolist() == [0, 1, 0, 1, 2, 3, 4, 5]
        assert halves(8, 8, 1).tolist() == [0, 1, 2, 3, 0, 4, 5, 6]
        assert halves(4, 4, 0).tolist() == [0, 1, 2, 3]
        assert interleaved(6, 4).tolist() == [0, 0, 1, 1, 2, 3]


def random_energies(seed: int, kv_heads: int = 2, spread: float = 2.0) -> LayerEnergies:
    """Far from even, and heads of different size."""
    rng = np.random.default_rng(seed)
    keys, queries = np.exp(spread * rng.standard_normal((2, kv_heads, DIM)))
    size = np.exp(rng.standard_normal((kv_heads, 1)))
    return LayerEnergies(keys * size, queries)


def products(energies: LayerEnergies, e: F64) -> F64:
    """Variance of a score's error, by head, as the formula of the reference has it."""
    out: F64 = (energies.queries * e**2).sum(-1) * (energies.keys / e**2).sum(-1)
    return out


def pair_sums(x: F64) -> F64:
    return x[:, : DIM // 2] + x[:, DIM // 2 :]


def rows(energies: LayerEnergies, ties: Ties, exact: bool = False) -> LayerFold:
    return fold(energies, ties, pooled=False, exact=exact)


class TestBest:
    @given(SEEDS)
    def test_the_least_is_what_cauchy_schwarz_says(self, seed: int) -> None:
        energies = random_energies(seed)
        found = rows(energies, halves(DIM, DIM))
        least = np.sqrt(pair_sums(energies.keys) * pair_sums(energies.queries)).sum(-1) ** 2
        np.testing.assert_allclose(products(energies, found.scale), least, rtol=1e-9)
        before = products(energies, np.ones((2, DIM)))
        np.testing.assert_allclose(found.gain, (before / least).mean(), rtol=1e-9)

    @given(SEEDS, st.floats(1e-4, 2.0))
    def test_nothing_near_or_far_is_better(self, seed: int, step: float) -> None:
        energies, ties = random_energies(seed), halves(DIM, DIM)
        e = rows(energies, ties).scale
        noise = np.random.default_rng(seed).standard_normal((2, DIM))
        other = e * np.exp(step * noise)[:, ties]
        assert (products(energies, other) > products(energies, e) * (1 - 1e-12)).all()

    @given(SEEDS)
    def test_bound_is_the_best_without_ties(self, seed: int) -> None:
        energies = random_energies(seed)
        free = rows(energies, np.arange(DIM))
        tied = rows(energies, halves(DIM, DIM))
        assert tied.bound == pytest.approx(free.bound) == pytest.approx(free.gain)
        assert tied.bound > tied.gain >= 1

    @given(SEEDS)
    def test_pooled_is_the_best_for_heads_of_one_size(self, seed: int) -> None:
        energies, ties = random_energies(seed, kv_heads=3), halves(DIM, DIM)
        found = fold(energies, ties, pooled=True, exact=False)
        assert found.scale.shape == (1, DIM)
        assert found.bound >= found.gain >= 1
        keys, queries = (
            (x / x.mean(-1, keepdims=True)).mean(0, keepdims=True)
            for x in (energies.keys, energies.queries)
        )
        alone = rows(LayerEnergies(keys, queries), ties)
        np.testing.assert_allclose(found.scale, alone.scale, rtol=1e-12)

    def test_one_head_pooled_is_that_head(self) -> None:
        energies, ties = random_energies(3, kv_heads=1), halves(DIM, DIM)
        alone, pooled = (fold(energies, ties, pooled=p, exact=False) for p in (False, True))
        np.testing.assert_allclose(alone.scale, pooled.scale, rtol=1e-12)
        assert alone.gain == pytest.approx(pooled.gain)

    @given(SEEDS)
    def test_an_even_layer_is_left_alone(self, seed: int) -> None:
        keys = random_energies(seed).keys
        found = rows(LayerEnergies(keys, 3 * keys), halves(DIM, DIM))
        np.testing.assert_allclose(found.scale, 1.0, rtol=1e-12)
        assert found.gain == pytest.approx(1.0)


class TestExact:
    @settings(max_examples=300)
    @given(SEEDS, st.sampled_from([0.1, 0.5, 1.0, 2.0]), st.booleans())
    def test_powers_of_two_that_never_make_it_worse(
        self, seed: int, spread: float, pooled: bool
    ) -> None:
        energies, ties = random_energies(seed, spread=spread), halves(DIM, DIM)
        found, best = (fold(energies, ties, pooled=pooled, exact=x) for x in (True, False))
        mantissa, _ = np.frexp(found.scale)
        assert (mantissa == 0.5).all()
        assert found.gain >= 1 - 1e-12
        if not pooled:
            ratio = products(energies, found.scale) / products(energies, best.scale)
            assert (ratio <= 1.5625 + 1e-9).all()

    def test_a_head_that_rounding_harms_is_left_alone(self) -> None:
        """Best e are 1.41, 0.71, 0.76; rounded to 1, 1/2, 1 they give (1 + 0.5 + 6) (8 + 4 + 4)
        = 120, and left alone 9 * 13 = 117. The other head gains by its roundings.
        """
        energies = LayerEnergies(
            np.array([[8.0, 1, 4], [256, 1, 1]]), np.array([[1.0, 2, 6], [1, 256, 1]])
        )
        best, found = (rows(energies, np.arange(3), exact=x) for x in (False, True))
        np.testing.assert_allclose(best.scale[0], [1.410, 0.705, 0.758], atol=1e-3)
        assert (found.scale[0] == 1).all()
        np.testing.assert_array_equal(found.scale[1], np.exp2(np.log2(best.scale[1]).round()))


class TestEdges:
    @pytest.fixture(autouse=True)
    def _no_warnings(self) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield

    @pytest.mark.parametrize("pooled", [False, True])
    @pytest.mark.parametrize("exact", [False, True])
    def test_dead_channels_keep_one(self, pooled: bool, exact: bool) -> None:
        energies = random_energies(0)
        for x in (energies.keys, energies.queries):
            x[:, [1, 1 + DIM // 2]] = 0
        found = fold(energies, halves(DIM, DIM), pooled=pooled, exact=exact)
        assert (found.scale[:, [1, 1 + DIM // 2]] == 1).all()
        assert np.isfinite(found.scale).all() and found.bound >= found.gain > 1

    @pytest.mark.parametrize("side", ["keys", "queries", "both"])
    @pytest.mark.parametrize("pooled", [False, True])
    def test_dead_heads_keep_one(self, side: str, pooled: bool) -> None:
        energies = random_energies(0)
        for name in ("keys", "queries") if side == "both" else (side,):
            getattr(energies, name)[:] = 0
        found = fold(energies, halves(DIM, DIM), pooled=pooled, exact=False)
        assert (found.scale == 1).all()
        assert found.gain == found.bound == 1

    @pytest.mark.parametrize("side", ["keys", "queries"])
    def test_a_channel_that_one_side_does_not_use_is_bounded(self, side: str) -> None:
        """By the floor of 1e-6 of the mean: e moves by at most 1e-6 ** (1/4) for it."""
        energies = LayerEnergies(np.ones((1, DIM)), np.ones((1, DIM)))
        getattr(energies, side)[0, 3] = 0
        e = rows(energies, np.arange(DIM)).scale[0]
        assert np.isfinite(e).all()
        assert 25 < max(e[3] / e[0], e[0] / e[3]) < 40

    @given(SEEDS, st.sampled_from([1e-20, 16.0**-3, 16.0, 1e20]), st.booleans())
    def test_size_does_not_matter(self, seed: int, factor: float, pooled: bool) -> None:
        """Engines scale queries by constants of their own, such as 1 / sqrt(D)."""
        energies, ties = random_energies(seed), halves(DIM, DIM)
        base = fold(energies, ties, pooled=pooled, exact=False)
        for k, q in ((factor, 1.0), (1.0, factor)):
            other = fold(
                LayerEnergies(energies.keys * k, energies.queries * q), ties,
                pooled=pooled, exact=False,
            )  # fmt: skip
            np.testing.assert_allclose(other.scale, base.scale, rtol=1e-9)
            assert other.gain == pytest.approx(base.gain)
            assert other.bound == pytest.approx(base.bound)

    @given(SEEDS)
    def test_keys_keep_their_size(self, seed: int) -> None:
        energies, ties = random_energies(seed), halves(DIM, DIM)
        e = rows(energies, ties).scale
        np.testing.assert_allclose((energies.keys / e**2).sum(-1), energies.keys.sum(-1))
