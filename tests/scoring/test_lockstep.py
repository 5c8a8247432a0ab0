"""Lockstep scoring with a deterministic toy language model in place of an engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nybble.scoring.compare import Comparator, Rows
from nybble.scoring.lockstep import LOGIT_BYTES, Comparison, Timing, block_rows, score_chunk

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
    calls: list[tuple[int, int]] | None = None,
) -> tuple[list[Rows], Timing]:
    comparator = Comparator(VOCAB, rows, 1)
    seen = [] if calls is None else calls
    try:
        return score_chunk(
            lanes, comparisons, tokens, first, rows, comparator, lambda i, n: seen.append((i, n))
        )
    finally:
        comparator.close()


@given(st.data())
def test_every_position_once_whatever_the_block(data: st.DataObject) -> None:
    n = data.draw(st.integers(3, 60))
    first = data.draw(st.integers(1, n - 2))
    rows = data.draw(st.integers(1, 70))
    tokens = tokens_of(n, n)
    lanes = [Toy(), Toy(0.3)]
    (got,), _ = run(lanes, [Comparison(1, 0)], tokens, first, rows)
    assert got["position"].tolist() == list(range(first, n - 1))
    assert got["token"].tolist() == tokens[first + 1 :].tolist()
    for lane in lanes:
        # The last token has no successor to be scored on, so it is never decoded.
        assert lane.cache == tokens[:-1].tolist()
        assert lane.cleared == 1
        assert sum(n for _, _, n in lane.calls) == n - 1 - first


def test_numbers_are_those_of_the_positions() -> None:
    tokens = tokens_of(30)
    (got,), _ = run([Toy(), Toy(0.3)], [Comparison(1, 0)], tokens, 7, 4)
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
    single, _ = run([Toy(), Toy(0.2)], pairs, tokens, 11, 1)
    blocks, _ = run([Toy(), Toy(0.2)], pairs, tokens, 11, rows)
    for a, b in zip(single, blocks, strict=True):
        assert a.tobytes() == b.tobytes()
    assert not single[1]["kld"].any()


def test_several_references_and_comparisons() -> None:
    tokens = tokens_of(25)
    noises = [0.0, 0.2, 0.4, 0.6]
    pairs = [Comparison(1, 0), Comparison(2, 3), Comparison(3, 0), Comparison(0, 3)]
    together, _ = run([Toy(x) for x in noises], pairs, tokens, 5, 6)
    for pair, got in zip(pairs, together, strict=True):
        lanes = [Toy(noises[pair.lane]), Toy(noises[pair.reference])]
        (alone,), _ = run(lanes, [Comparison(0, 1)], tokens, 5, 6)
        assert got.tobytes() == alone.tobytes()


def test_on_lane_names_the_lane_before_and_after_each_step() -> None:
    calls: list[tuple[int, int]] = []
    lanes = [Toy(ubatch=4), Toy(ubatch=4)]
    run(lanes, [Comparison(1, 0)], tokens_of(13), 6, 4, calls)
    prefill = [(0, 0), (0, 4), (0, 2), (1, 0), (1, 4), (1, 2)]
    blocks = [(0, 0), (0, 4), (1, 0), (1, 4), (0, 0), (0, 2), (1, 0), (1, 2)]
    assert calls == prefill + blocks
    for lane in (0, 1):
        assert sum(n for i, n in calls if i == lane) == 12


def test_on_lane_points_at_the_lane_that_fails() -> None:
    class Broken(Toy):
        def score(self, tokens: Sequence[int], first: int) -> npt.NDArray[np.float32]:
            raise RuntimeError("boom")

    calls: list[tuple[int, int]] = []
    with pytest.raises(RuntimeError, match="boom"):
        run([Toy(), Broken(), Toy()], [Comparison(2, 0)], tokens_of(13), 6, 4, calls)
    assert calls[-1] == (1, 0)


def test_timing_has_one_entry_a_lane() -> None:
    _, timing = run([Toy(), Toy(0.1), Toy(0.2)], [Comparison(1, 0)], tokens_of(20), 3, 4)
    assert len(timing.decode) == 3
    assert all(t > 0 for t in timing.decode) and timing.compare > 0


def test_logits_are_compared_before_they_are_overwritten() -> None:
    """Engines hand out views of one buffer that the next block writes over."""

    class Reused(Toy):
        buffer = np.empty((8, VOCAB), dtype=np.float32)

        def score(self, tokens: Sequence[int], first: int) -> npt.NDArray[np.float32]:
            out = self.buffer[: len(tokens)]
            out[:] = super().score(tokens, first)
            return out

    class Other(Reused):
        buffer = np.empty((8, VOCAB), dtype=np.float32)

    tokens = tokens_of(30)
    (views,), _ = run([Reused(), Other(0.2)], [Comparison(1, 0)], tokens, 4, 8)
    (copies,), _ = run([Toy(), Toy(0.2)], [Comparison(1, 0)], tokens, 4, 8)
    assert views.tobytes() == copies.tobytes()


@pytest.mark.parametrize(
    ("vocab", "rows"), [(256, 128), (65_536, 128), (131_072, 64), (262_144, 32), (4_000_000, 8)]
)
def test_block_rows(vocab: int, rows: int) -> None:
    assert block_rows(vocab, "prefill") == rows
    assert rows == 8 or rows * vocab * 4 <= LOGIT_BYTES
    assert block_rows(vocab, "decode") == 1
