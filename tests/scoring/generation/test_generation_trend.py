"""The slope of KLD along the answer, on data whose slope is known."""

from __future__ import annotations

import numpy as np
import pytest

from nybble.scoring.generation.trend import trend


def sample(slope: float, prompts: int, places: int, seed: int) -> list[np.ndarray]:
    """Gamma-distributed KLD (many near 0, few large) around a power law; a factor per prompt."""
    rng = np.random.default_rng(seed)
    mean = 0.01 * np.arange(1, places + 1) ** slope
    return [rng.gamma(0.3, mean * rng.uniform(0.5, 2) / 0.3) for _ in range(prompts)]


@pytest.mark.parametrize("slope", [-0.5, 0.0, 0.3, 1.0])
def test_an_exact_power_law(slope: float) -> None:
    kld = 0.02 * np.arange(1, 257, dtype=float) ** slope
    found = trend([kld] * 6)
    assert found is not None and found.value == pytest.approx(slope, abs=1e-6)
    assert found.low == pytest.approx(slope, abs=1e-6) == found.high


@pytest.mark.parametrize("slope", [0.0, 0.4])
def test_noise_around_it(slope: float) -> None:
    found = trend(sample(slope, 12, 512, 3))
    assert found is not None and found.low is not None and found.high is not None
    assert found.low < slope < found.high
    assert found.high - found.low < 0.4


def test_answers_of_unequal_length_do_not_bend_it() -> None:
    mean = 0.02 * np.arange(1, 257, dtype=float) ** 0.3
    found = trend([mean[:n] for n in (20, 40, 80, 160, 256, 256)])
    assert found is not None and found.value == pytest.approx(0.3, abs=1e-6)


def test_a_level_of_its_own_does_not_matter() -> None:
    one = sample(0.2, 8, 128, 1)
    a, b = trend(one), trend([10 * k for k in one])
    assert a is not None and b is not None and a.value == pytest.approx(b.value, abs=1e-9)


def test_few_prompts_have_no_interval() -> None:
    found = trend(sample(0.0, 4, 64, 0))
    assert found is not None and found.low is None and found.high is None


def test_what_is_not_finite_counts_nothing() -> None:
    kld = 0.02 * np.arange(1, 65, dtype=float) ** 0.3
    kld[5] = np.nan
    found = trend([kld] * 5)
    assert found is not None and found.value == pytest.approx(0.3, abs=1e-6)


@pytest.mark.parametrize(
    "klds", [[], [np.zeros(64)] * 6, [np.ones(8)] * 6, [np.full(64, np.nan)] * 6]
)
def test_nothing_to_tell(klds: list[np.ndarray]) -> None:
    assert trend(klds) is None


@pytest.mark.slow
def test_intervals_cover_the_truth() -> None:
    hits = 0
    for seed in range(200):
        found = trend(sample(0.2, 8, 256, seed), seed)
        assert found is not None and found.low is not None and found.high is not None
        hits += found.low <= 0.2 <= found.high
    assert hits >= 174  # 95 % of 200 less four standard errors
