"""Greedy generation of one prompt in several lanes, each on its own.

A lane decodes one sequence at a time and nothing beside it. Side by side in one batch would be
faster, but then a token's logits would depend, in their last bits, on what else is in the batch,
and a near tie between two tokens is decided by those bits: two equal caches would diverge.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from nybble.errors import EngineError

_TELL = 16  # tokens between two signs of life


class Lane(Protocol):
    """A context of an engine."""

    def clear(self) -> None:
        """Empty the cache."""

    def prefill(self, tokens: Sequence[int], first: int) -> Iterator[int]:
        """Decode without logits; yields tokens done."""

    def last(self, tokens: Sequence[int], first: int) -> npt.NDArray[np.float32]:
        """Decode and return the last token's logits [n_vocab]."""


@dataclass(frozen=True)
class Answer:
    """What one lane generated.

    Attributes:
        tokens: ids; the last one is the end token where it ended.
        ended: whether it ended by itself within the limit.
    """

    tokens: list[int]
    ended: bool


def answers(
    lanes: Sequence[Lane],
    prompt: Sequence[int],
    limit: int,
    ends: Collection[int],
    parallel: int,
    on_lane: Callable[[int, int], None],
) -> list[Answer]:
    """Let every lane answer the same prompt.

    Args:
        lanes: one cache each.
        prompt: token ids, at least one.
        limit: most tokens of an answer, end token included.
        ends: ids that end an answer.
        parallel: lanes that work at one time.
        on_lane: called with (lane, tokens generated since its last call), from several threads;
            with 0 when the lane begins.

    Raises:
        EngineError: a lane failed, or its logits are not finite; told to `on_lane` last.
    """
    turn, stopped = threading.Semaphore(parallel), threading.Event()

    def run(i: int) -> Answer | None:
        with turn:
            if stopped.is_set():
                return None
            on_lane(i, 0)
            try:
                return _answer(lanes[i], prompt, limit, ends, stopped,
                               lambda n: on_lane(i, n))  # fmt: skip
            except BaseException:
                stopped.set()  # before the next lane's turn, so `on_lane` last named this one
                raise

    with ThreadPoolExecutor(max(1, len(lanes))) as pool:
        tasks = [pool.submit(run, i) for i in range(len(lanes))]
        if wait(tasks, return_when=FIRST_EXCEPTION).not_done:
            stopped.set()
    found = [t.result() for t in tasks]
    return [a for a in found if a is not None]


def _answer(
    lane: Lane,
    prompt: Sequence[int],
    limit: int,
    ends: Collection[int],
    stopped: threading.Event,
    tell: Callable[[int], None],
) -> Answer:
    lane.clear()
    for _ in lane.prefill(prompt[:-1], 0):
        tell(0)
    found: list[int] = []
    token, told = int(prompt[-1]), 0
    while len(found) < limit and not stopped.is_set():
        logits = lane.last([token], len(prompt) - 1 + len(found))
        token = int(logits.argmax())  # the lowest id of equal ones
        if not np.isfinite(logits[token]):
            raise EngineError("logits are not finite", seen=f"token {len(found) + 1} of an answer")
        found.append(token)
        if token in ends:
            break
        if len(found) - told == _TELL:
            tell(_TELL)
            told = len(found)
    tell(limit - told)  # what an early end saves is done, too
    return Answer(found, bool(found) and found[-1] in ends)
