"""Decode one chunk with every lane in lockstep and compare at once.

A lane is one cache setting over one loaded model. Every lane decodes the same blocks of
positions; a block's logits are compared with the reference's while they lie in the engine's
buffer, and are then overwritten: nothing of logit size is kept or written. Quantized K and V are
read by every position, since llama.cpp stores a block before it attends to it.

Lanes run beside each other with few threads each, rather than one after the other with all:
equally fast on a quiet machine, and a busy core then slows one lane instead of all threads of
each. A lane may be a block or two ahead of another, never more, so memory stays flat.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from nybble.scoring.compare import Reference, Rows

LOGIT_BYTES = 32 << 20  # a lane's buffer for logits; the rows of a block follow from it
_AHEAD = 2  # blocks of a reference that are kept for lanes that are behind


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
    """Thread-seconds spent decoding and comparing."""

    decode: float = 0.0
    compare: float = 0.0


@dataclass(frozen=True)
class Comparison:
    """Rows of `lane` against `reference`, both indices into the lanes."""

    lane: int
    reference: int


@dataclass(frozen=True)
class Scored:
    """ROW records for each comparison, and the time spent."""

    rows: list[Rows]
    timing: Timing


def block_rows(n_vocab: int, via: str) -> int:
    """Rows of a block: one for decode replay, else what fits LOGIT_BYTES (8 to 128)."""
    if via == "decode":
        return 1
    return max(8, min(128, LOGIT_BYTES // (4 * n_vocab)))


@dataclass
class _Board:
    """Where references leave their blocks for the lanes that compare with them."""

    users: dict[int, int]
    blocks: dict[tuple[int, int], tuple[Reference, int]] = field(default_factory=dict)
    changed: threading.Condition = field(default_factory=threading.Condition)
    stopped: bool = False

    def put(self, lane: int, begin: int, block: Reference) -> None:
        with self.changed:
            self.blocks[lane, begin] = (block, self.users[lane])
            self.changed.notify_all()

    def wait_for_room(self, lane: int) -> None:
        with self.changed:
            self.changed.wait_for(
                lambda: self.stopped or sum(k[0] == lane for k in self.blocks) < _AHEAD
            )

    @contextmanager
    def block(self, lane: int, begin: int) -> Iterator[Reference]:
        """Wait for a reference's block; the last user of it drops it."""
        key = (lane, begin)
        with self.changed:
            self.changed.wait_for(lambda: self.stopped or key in self.blocks)
            if self.stopped:
                raise _Stopped
            found = self.blocks[key][0]
        yield found
        with self.changed:
            left = self.blocks[key][1] - 1
            if left:
                self.blocks[key] = (found, left)
            else:
                del self.blocks[key]
            self.changed.notify_all()

    def stop(self) -> None:
        with self.changed:
            self.stopped = True
            self.changed.notify_all()


class _Stopped(Exception):
    """Another lane has failed; its error is the one to report."""


def score_chunk(
    lanes: Sequence[Lane],
    comparisons: Sequence[Comparison],
    tokens: npt.NDArray[np.int32],
    first: int,
    rows: int,
    parallel: int,
    on_lane: Callable[[int, int], None],
) -> Scored:
    """Score positions first..len(tokens)-2 of one chunk.

    Args:
        lanes: every lane decodes the same tokens.
        comparisons: which lane to compare with which; one result each.
        tokens: int32 [n], BOS included.
        first: first scored position; everything before is prefilled.
        rows: positions of a block.
        parallel: lanes that decode at one time.
        on_lane: called with (lane, tokens done since its last call) around every step, from
            several threads; with parallel 1 a crash can so be told to the lane that caused it.
    """
    users = {c.reference: 0 for c in comparisons}
    for c in comparisons:
        users[c.reference] += 1
    board, turn, lock = _Board(users), threading.Semaphore(parallel), threading.Lock()
    timing = Timing()
    parts: list[list[Rows]] = [[] for _ in comparisons]
    ids = tokens.tolist()

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        with turn:
            if board.stopped:
                raise _Stopped
            start = time.perf_counter()
            try:
                yield
            except BaseException:
                board.stop()  # before the next lane's turn, so `on_lane` last named this one
                raise
            spent = time.perf_counter() - start
        with lock:
            setattr(timing, name, getattr(timing, name) + spent)

    def run(i: int) -> None:
        lane = lanes[i]
        mine = [(j, c.reference) for j, c in enumerate(comparisons) if c.lane == i]
        with timed("decode"):
            on_lane(i, 0)
            lane.clear()
            for done in lane.prefill(ids[:first], 0):
                on_lane(i, done)
        for begin in range(first, len(ids) - 1, rows):
            block = ids[begin : min(begin + rows, len(ids) - 1)]
            if i in users:
                board.wait_for_room(i)
            with timed("decode"):
                on_lane(i, 0)
                logits = lane.score(block, begin)
                on_lane(i, len(block))
            if i in users:
                with timed("compare"):
                    following = tokens[begin + 1 : begin + 1 + len(block)]
                    reference = Reference(logits, following, begin)
                board.put(i, begin, reference)
            for j, other in mine:
                with board.block(other, begin) as reference, timed("compare"):
                    parts[j].append(reference.compare(logits))

    with ThreadPoolExecutor(len(lanes)) as pool:
        tasks = [pool.submit(run, i) for i in range(len(lanes))]
        if wait(tasks, return_when=FIRST_EXCEPTION).not_done:
            board.stop()
    errors = [e for e in (t.exception() for t in tasks) if e is not None]
    for error in sorted(errors, key=lambda e: isinstance(e, _Stopped)):
        raise error
    return Scored([np.concatenate(p) for p in parts], timing)
