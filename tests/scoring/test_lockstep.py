"""Lockstep scoring with a deterministic toy language model in place of an engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nybble.scoring.compare import Rows
from nybble.scoring.lockstep import LOGIT_BYTES, Comparison, block_rows, score_chunk

VOCAB, WINDOW = 37, 4


class Toy:
    """Logits are a fixed random function of the last tokens in the cache and the position.

    It refuses what an engine would silently get wrong: positions with gaps or repeats.
    """

    def __init__(self, noise: float = 0.0, ubatch: int = 5) -> None:
        rng = np.random.default_rng(0)
        self._table = rng.standard_normal((WINDOW, VOCAB, VOCAB)).astype(np.float32)
        self._noise = noise * rng.standard_normal((997, VOCAB)).astype(np.float32)
        self._ubatch = ubatch
        self.cache: list[int] = [99] * 10  # dirty until cleared
        self.cleared = 0
        self.calls: list[tuple[str, int, int]] = []

    def clear(self) -> None:
        self.cache = []
        self.cleared += 1

    def prefill(self, tokens: Sequence[int], first: int) -> Iterator[int]:
        for start in range(0, len(tokens), self._ubatch):
            part = tokens[start : start + self._ubatch]
            self._take("prefill", part, first + start)
            yield len(part)

    def score(self, tokens: Sequence[int], first: int) -> npt.NDArray[np.float32]:
        out = []
        for i, token in enumerate(tokens):
            self._take("score", [token], first + i)
            past = self.cache[-WINDOW:]
            logits = sum(self._table[d, t] for d, t in enumerate(reversed(past)))
            out.append(logits + self._noise[(first + i) % 997])
        self.calls.append(("block", first, len(tokens)))
        return np.array(out, dtype=np.float32)

    def _take(self, kind: str, tokens: Sequence[int], first: int) -> None:
        assert first == len(self.cache), f"{kind} at {first} with {len(self.cache)} tokens cached"
        self.cache += tokens


def tokens_of(n: int, seed: int = 0) -> npt.NDArray[np.int32]:
    return np.random.default_rng(seed).integers(0, VOCAB, n).astype(np.int32)


def run(
    lanes: Sequence[Toy],
    comparisons: Sequence[Comparison],
    tokens: npt.NDArray[np.int32],
    first: int,
    rows: int,
    parallel: int = 2,
    on_lane: Callable[[int, int], None] = lambda lane, done: None,
) -> list[Rows]:
    return score_chunk(lanes, comparisons, tokens, first, rows, parallel, on_lane).rows


PAIR = [Comparison(1, 0)]


@given(st.data())
def test_every_position_once_whatever_the_block(data: st.DataObject) -> None:
    n = data.draw(st.integers(3, 60))
    first = data.draw(st.integers(1, n - 2))
    rows = data.draw(st.integers(1, 70))
    parallel = data.draw(st.integers(1, 3))
    tokens = tokens_of(n, n)
    lanes = [Toy(), Toy(0.3)]
    (got,) = run(lanes, PAIR, tokens, first, rows, parallel)
    assert got["position"].tolist() == list(range(first, n - 1))
    assert got["token"].tolist() == tokens[first + 1 :].tolist()
    for lane in lanes:
        # The last token has no successor to be scored on, so it is never decoded.
        assert lane.cache == tokens[:-1].tolist()
        assert lane.cleared == 1
        assert sum(n for _, _, n in lane.calls) == n - 1 - first


def test_numbers_are_those_of_the_positions() -> None:
    tokens = tokens_of(30)
    (got,) = run([Toy(), Toy(0.3)], PAIR, tokens, 7, 4)
    toy = Toy()
    toy.clear()
    logits = toy.score(tokens[:-1].tolist(), 0).astype(np.float64)[7:]
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    want = -log_p[np.arange(len(log_p)), tokens[8:]]
    np.testing.assert_allclose(got["nll_ref"], want, atol=1e-5)
    assert (got["kld"] > 0).all()


@pytest.mark.parametrize("rows", [2, 3, 8, 128])
def test_decode_replay_equals_blocks_bit_for_bit(rows: int) -> None:
    tokens = tokens_of(41)
    pairs = [Comparison(1, 0), Comparison(0, 0)]
    single = run([Toy(), Toy(0.2)], pairs, tokens, 11, 1)
    blocks = run([Toy(), Toy(0.2)], pairs, tokens, 11, rows)
    for a, b in zip(single, blocks, strict=True):
        assert a.tobytes() == b.tobytes()
    assert not single[1]["kld"].any()


@pytest.mark.parametrize("parallel", [1, 2, 4])
def test_several_references_and_comparisons(parallel: int) -> None:
    tokens = tokens_of(25)
    noises = [0.0, 0.2, 0.4, 0.6]
    pairs = [Comparison(*p) for p in [(1, 0), (2, 3), (3, 0), (0, 3), (2, 0), (0, 0)]]
    together = run([Toy(x) for x in noises], pairs, tokens, 5, 6, parallel)
    for pair, got in zip(pairs, together, strict=True):
        lanes = [Toy(noises[pair.lane]), Toy(noises[pair.reference])]
        (alone,) = run(lanes, [Comparison(0, 1)], tokens, 5, 6, 1)
        assert got.tobytes() == alone.tobytes()


class Slow(Toy):
    """Takes its time, so that other lanes run ahead where they can."""

    def score(self, tokens: Sequence[int], first: int) -> npt.NDArray[np.float32]:
        time.sleep(0.01)
        return super().score(tokens, first)


@pytest.mark.parametrize("slow", [0, 1, 2])
@pytest.mark.parametrize("parallel", [1, 3])
def test_no_lane_gets_far_ahead_of_one_that_compares_with_it(slow: int, parallel: int) -> None:
    """Else every lane's blocks would pile up in memory."""
    tokens = tokens_of(40)
    at = [0, 0, 0]
    worst = [0]
    lock = threading.Lock()

    def watch(lane: int, done: int) -> None:
        with lock:
            at[lane] += done
            # Block of 3 rows: two kept, one being made, one in the hands of the slowest.
            worst[0] = max(worst[0], at[0] - min(at[1:]))

    lanes = [Slow() if i == slow else Toy() for i in range(3)]
    lanes[1]._noise += 0.1
    run(lanes, [Comparison(1, 0), Comparison(2, 0)], tokens, 3, 3, parallel, watch)
    assert at == [39, 39, 39]
    assert worst[0] <= 4 * 3


@pytest.mark.parametrize("parallel", [1, 2])
def test_at_most_so_many_lanes_decode_at_once(parallel: int) -> None:
    busy, most, lock = [0], [0], threading.Lock()

    class Counting(Toy):
        def score(self, tokens: Sequence[int], first: int) -> npt.NDArray[np.float32]:
            with lock:
                busy[0] += 1
                most[0] = max(most[0], busy[0])
            time.sleep(0.003)
            try:
                return super().score(tokens, first)
            finally:
                with lock:
                    busy[0] -= 1

    run([Counting() for _ in range(4)], [Comparison(i, 0) for i in (1, 2, 3)],
        tokens_of(30), 4, 3, parallel)  # fmt: skip
    assert most[0] == parallel


def test_one_by_one_on_lane_brackets_each_step() -> None:
    """With one lane at a time, whatever happens between (lane, 0) and (lane, n) is that lane's."""
    calls: list[tuple[int, int]] = []

    def slow_to_tell(lane: int, done: int) -> None:
        if done:
            time.sleep(0.005)
        calls.append((lane, done))

    lanes = [Toy(ubatch=4), Toy(0.1, ubatch=4), Toy(0.2, ubatch=4)]
    run(lanes, [Comparison(1, 0), Comparison(2, 0)], tokens_of(13), 6, 4, 1, slow_to_tell)
    for lane in range(3):
        assert [n for i, n in calls if i == lane] == [0, 4, 2, 0, 4, 0, 2]
    current = -1
    for lane, done in calls:
        current = lane if done == 0 else current
        assert lane == current


@pytest.mark.parametrize("step", ["prefill", "score"])
@pytest.mark.parametrize("broken", [0, 1, 2])
def test_one_by_one_on_lane_ends_at_the_lane_that_fails(broken: int, step: str) -> None:
    class Broken(Toy):
        def _take(self, kind: str, tokens: Sequence[int], first: int) -> None:
            if kind == step and first + len(tokens) > (3 if step == "prefill" else 12):
                raise RuntimeError("boom")
            super()._take(kind, tokens, first)

    calls: list[int] = []
    lanes = [Broken() if i == broken else Toy(0.1 * i) for i in range(3)]
    pairs = [Comparison(1, 0), Comparison(2, 0)]
    with pytest.raises(RuntimeError, match="boom"):
        run(lanes, pairs, tokens_of(40), 6, 4, 1, lambda lane, done: calls.append(lane))
    assert calls[-1] == broken


@pytest.mark.timeout(20)
@pytest.mark.parametrize("broken", [0, 1, 3])
@pytest.mark.parametrize("parallel", [1, 2, 4])
def test_a_failing_lane_stops_the_others(broken: int, parallel: int) -> None:
    """Nobody may wait for a block that will never come; the lane's own error is the one told."""

    class Broken(Toy):
        def score(self, tokens: Sequence[int], first: int) -> npt.NDArray[np.float32]:
            if first > 20:
                raise RuntimeError("boom")
            return super().score(tokens, first)

    before = threading.active_count()
    lanes = [Broken() if i == broken else Toy(0.1 * i) for i in range(4)]
    pairs = [Comparison(1, 0), Comparison(2, 0), Comparison(3, 2), Comparison(0, 2)]
    with pytest.raises(RuntimeError, match="boom"):
        run(lanes, pairs, tokens_of(200), 6, 4, parallel)
    assert threading.active_count() == before
    assert all(len(lane.cache) < 60 for lane in lanes)


def test_timing_adds_up_over_lanes() -> None:
    lanes = [Slow(), Slow(0.1), Slow(0.2)]
    timing = score_chunk(lanes, PAIR, tokens_of(23), 2, 4, 2, lambda lane, done: None).timing
    assert 3 * 5 * 0.01 <= timing.decode < 2
    assert 0 < timing.compare < timing.decode


def test_logits_are_compared_before_they_are_overwritten() -> None:
    """Engines hand out views of one buffer that the next block writes over."""

    class Reused(Toy):
        def score(self, tokens: Sequence[int], first: int) -> npt.NDArray[np.float32]:
            self.buffer = getattr(self, "buffer", np.empty((8, VOCAB), dtype=np.float32))
            out = self.buffer[: len(tokens)]
            out[:] = super().score(tokens, first)
            return out

    tokens = tokens_of(60)
    pairs = [Comparison(1, 0), Comparison(2, 1), Comparison(0, 1)]
    views = run([Reused(0.1 * i) for i in range(3)], pairs, tokens, 4, 8, 3)
    copies = run([Toy(0.1 * i) for i in range(3)], pairs, tokens, 4, 8, 1)
    assert [v.tobytes() for v in views] == [c.tobytes() for c in copies]


@pytest.mark.parametrize("vocab", [256, 32_768, 131_072, 150_000, 262_144, 4_000_000])
def test_block_rows(vocab: int) -> None:
    rows = block_rows(vocab, "prefill")
    assert 8 <= rows <= 128
    # As many as fit the buffer, where that is between the two ends.
    assert rows == 8 or rows * vocab * 4 <= LOGIT_BYTES
    assert rows == 128 or (rows + 1) * vocab * 4 > LOGIT_BYTES
    assert block_rows(vocab, "decode") == 1
