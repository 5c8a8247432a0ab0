"""Random draws that are functions of (seed, purpose, index), so a resumed run repeats them.

Made from a bit generator's raw words: NumPy keeps those streams fixed for good, which it does not
promise of `Generator.permutation` and its like (NEP 19).
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


class Purpose(enum.IntEnum):
    """Keeps the streams of one seed apart."""

    SPLIT = 0
    ROWS = 1
    POSITIONS = 2
    SETTING = 3


def words(seed: int, purpose: Purpose, index: int, n: int) -> npt.NDArray[np.uint64]:
    """Draw uint64 [n]."""
    stream = np.random.PCG64(np.random.SeedSequence([seed, int(purpose), index]))
    return stream.random_raw(n)


def permutation(seed: int, purpose: Purpose, index: int, n: int) -> npt.NDArray[np.intp]:
    """A random order of 0..n-1."""
    return np.argsort(words(seed, purpose, index, n), kind="stable")


def choice(seed: int, purpose: Purpose, index: int, shares: Sequence[float]) -> int:
    """One of len(shares), each with its probability."""
    uniform = int(words(seed, purpose, index, 1)[0] >> np.uint64(11)) * 2.0**-53
    found = int(np.searchsorted(np.cumsum(shares), uniform, side="right"))
    return min(found, len(shares) - 1)  # shares may add up to 1 - 1e-16
