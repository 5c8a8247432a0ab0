"""Decode one chunk with every lane in lockstep and compare at once.

A lane is one cache setting over one loaded model. Each block of positions is decoded by every
lane, the logits are compared while they lie in the engines' buffers, and are then overwritten:
nothing of logit size is kept or written. Quantized K and V are read by every position, since
llama.cpp stores a block before it attends to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from nybble.scoring.compare import Comparator, Rows

LOGIT_BYTES = 32 << 20  # buffer a lane may hold for logits; sets the rows of a block


class Lane(Protocol):
    """A context of an engine."""

    def clear(self) -> None:
        """Empty the cache."""

    def prefill(self, tokens: Sequence[int], first: int) -> Iterator[int]:
        """Decode without logits; yields tokens done."""

    def score(self, tokens: Sequence[int], first: int) -> npt.NDArray[np.float32]:
        """Decode and return logits [len(tokens), n_vocab]."""


@dataclass
class Timing:
    """Seconds spent: decoding, lane by lane, and comparing."""

    decode: list[float] = field(default_factory=list)
    compare: float = 0.0


@dataclass(frozen=True)
class Comparison:
    """Rows of `lane` against `reference`, both indices into the lanes."""

    lane: int
    reference: int


def block_rows(n_vocab: int, via: str) -> int:
    """Rows of a block: one for decode replay, else what fits LOGIT_BYTES (8 to 128)."""
    if via == "decode":
        return 1
    return max(8, min(128, LOGIT_BYTES // (4 * n_vocab)))


def score_chunk(
    lanes: Sequence[Lane],
    comparisons: Sequence[Comparison],
    tokens: npt.NDArray[np.int32],
    first: int,
    rows: int,
    comparator: Comparator,
    on_lane: Callable[[int, int], None],
) -> tuple[list[Rows], Timing]:
    """Score positions first..len(tokens)-2 of one chunk.

    Args:
        lanes: every lane decodes the same tokens.
        comparisons: which lane to compare with which; one result each.
        tokens: int32 [n], BOS included.
        first: first scored position; everything before is prefilled.
        rows: positions of a block.
        comparator: scratch for one block.
        on_lane: called with (lane, tokens done since its last call) around every step, so a
            crash can be told to the lane that caused it.

    Returns:
        ROW records for each comparison, and the time spent.
    """
    timing = Timing(decode=[0.0] * len(lanes))
    ids = tokens.tolist()
    for i, lane in enumerate(lanes):
        on_lane(i, 0)
        start = time.perf_counter()
        lane.clear()
        for done in lane.prefill(ids[:first], 0):
            on_lane(i, done)
        timing.decode[i] += time.perf_counter() - start
    parts: list[list[Rows]] = [[] for _ in comparisons]
    references = list(dict.fromkeys(c.reference for c in comparisons))
    for begin in range(first, len(ids) - 1, rows):
        block = ids[begin : min(begin + rows, len(ids) - 1)]
        logits = []
        for i, lane in enumerate(lanes):
            on_lane(i, 0)
            start = time.perf_counter()
            logits.append(lane.score(block, begin))
            timing.decode[i] += time.perf_counter() - start
            on_lane(i, len(block))
        start = time.perf_counter()
        following = tokens[begin + 1 : begin + 1 + len(block)]
        for reference in references:
            comparator.set_reference(logits[reference], following, begin)
            for j, comparison in enumerate(comparisons):
                if comparison.reference == reference:
                    parts[j].append(comparator.compare(logits[comparison.lane]))
        timing.compare += time.perf_counter() - start
    return [np.concatenate(p) for p in parts], timing
