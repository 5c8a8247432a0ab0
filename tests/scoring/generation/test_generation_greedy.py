"""Greedy generation with toy lanes in place of an engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pytest

from nybble.errors import EngineError
from nybble.scoring.generation.greedy import answers

VOCAB, END = 13, 2


class Toy:
    """The next token is a fixed function of the whole cache; gaps and repeats are refused."""

    def __init__(self, step: int = 3, fail_at: int | None = None, busy: list[int] | None = None):
        self.step, self.fail_at, self.busy = step, fail_at, busy
        self.cache: list[int] = [99]  # dirty until cleared
        self.most = 0

    def clear(self) -> None:
        self.cache = []

    def prefill(self, tokens: Sequence[int], first: int) -> Iterator[int]:
        assert first == len(self.cache)
        self.cache += tokens
        yield len(tokens)

    def last(self, tokens: Sequence[int], first: int) -> npt.NDArray[np.float32]:
        assert first == len(self.cache)
        self.cache += tokens
        if self.busy is not None:
            self.busy.append(1)
            self.most = max(self.most, len(self.busy))
            time.sleep(0.001)
            self.busy.pop()
        logits = np.zeros(VOCAB, dtype=np.float32)
        logits[(sum(self.cache) * self.step + len(self.cache)) % VOCAB] = 1
        if self.fail_at == len(self.cache):
            logits[:] = np.nan
        return logits


def slow_answer(toy: Toy, prompt: list[int], limit: int) -> list[int]:
    cache, found = list(prompt), []
    while len(found) < limit:
        token = (sum(cache) * toy.step + len(cache)) % VOCAB
        found.append(token)
        cache.append(token)
        if token == END:
            break
    return found


def silent(lane: int, done: int) -> None:
    """Tell nobody."""


@pytest.mark.parametrize("prompt", [[5], [1, 4, 9], list(range(12))])
@pytest.mark.parametrize("limit", [1, 7, 40])
def test_each_lane_goes_on_from_what_it_said(prompt: list[int], limit: int) -> None:
    lanes = [Toy(step) for step in (1, 3, 5, 6)]
    found = answers(lanes, prompt, limit, {END}, 2, silent)
    assert [a.tokens for a in found] == [slow_answer(x, prompt, limit) for x in lanes]
    assert [a.ended for a in found] == [a.tokens[-1] == END for a in found]


def test_all_work_is_told_also_of_what_ends_early() -> None:
    told: dict[int, int] = {}
    lock = threading.Lock()

    def tell(lane: int, done: int) -> None:
        with lock:
            told[lane] = told.get(lane, 0) + done

    found = answers([Toy(1), Toy(3), Toy(5)], [1, 4], 100, {END}, 2, tell)
    assert any(a.ended for a in found)
    assert told == {0: 100, 1: 100, 2: 100}


def test_no_more_lanes_at_one_time_than_asked_for() -> None:
    busy: list[int] = []
    lanes = [Toy(step, busy=busy) for step in range(1, 7)]
    answers(lanes, [1, 4], 20, set(), 2, silent)
    assert max(x.most for x in lanes) == 2


def test_the_lane_that_fails_is_the_last_one_named() -> None:
    named: list[int] = []
    lanes = [Toy(1), Toy(3, fail_at=6), Toy(5)]
    with pytest.raises(EngineError, match="not finite") as error:
        answers(lanes, [1, 4], 30, set(), 1, lambda lane, done: named.append(lane))
    assert named[-1] == 1  # lanes take turns in any order; none begins after a failure
    assert error.value.seen == "token 5 of an answer"


def test_equal_logits_take_the_lowest_id() -> None:
    class Flat(Toy):
        def last(self, tokens: Sequence[int], first: int) -> npt.NDArray[np.float32]:
            return super().last(tokens, first) * 0

    assert answers([Flat()], [1], 5, {END}, 1, silent)[0].tokens == [0] * 5
