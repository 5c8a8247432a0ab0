"""Two answers to one prompt, token for token."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int32]

LOOP_TOKENS = 64  # the end of an answer that is looked at
LOOP_PERIOD = 16  # most tokens that repeat


def first_difference(a: Ids, b: Ids) -> float:
    """Place, from 1, of the first token that differs; infinite where none does.

    An end token is a token: an answer that ends where the other goes on differs there.
    """
    n = min(len(a), len(b))
    differs = np.flatnonzero(a[:n] != b[:n])
    if len(differs):
        return float(differs[0] + 1)
    return math.inf if len(a) == len(b) else float(n + 1)


def agreement(a: Ids, b: Ids, n: int) -> float:
    """Fraction of the first n places where both have the same token.

    Places behind the end of both are left out; one behind the end of one of them differs.
    """
    places = min(n, max(len(a), len(b)))
    both = min(n, len(a), len(b))
    return float(np.count_nonzero(a[:both] == b[:both]) / places) if places else 1.0


def looped(tokens: Ids) -> bool:
    """Whether the last LOOP_TOKENS tokens repeat the same 1 to LOOP_PERIOD tokens."""
    tail = tokens[-LOOP_TOKENS:]
    if len(tail) < LOOP_TOKENS:
        return False
    return any(np.array_equal(tail[p:], tail[:-p]) for p in range(1, LOOP_PERIOD + 1))
