"""The text of a training: what is read when, and what is never trained on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nybble.errors import NybbleError
from nybble.hardening.train.data import TokenPool
from nybble.hardening.train.draws import Purpose, choice, permutation, words


def chunks(n: int, context: int = 8) -> np.ndarray:  # type: ignore[type-arg]
    """Row i holds i everywhere."""
    return np.repeat(np.arange(n, dtype=np.int32)[:, None], context, 1)


def numbers(rows: np.ndarray) -> list[int]:  # type: ignore[type-arg]
    return [int(x) for x in rows[:, 0]]


class TestDraws:
    def test_fixed_for_good(self) -> None:
        """PCG64 seeded by SeedSequence([3, ROWS, 2]): a change would break every resume."""
        assert words(3, Purpose.ROWS, 2, 2).tolist() == [
            8060644021393869657, 13272883566883993466,
        ]  # fmt: skip

    def test_streams_differ(self) -> None:
        found = {
            words(seed, purpose, index, 1)[0]
            for seed in (0, 1, 2**70) for purpose in Purpose for index in range(5)
        }  # fmt: skip
        assert len(found) == 3 * len(Purpose) * 5

    @pytest.mark.parametrize("n", [0, 1, 7, 1000])
    def test_permutation(self, n: int) -> None:
        assert sorted(permutation(0, Purpose.ROWS, 0, n).tolist()) == list(range(n))

    def test_choice_follows_the_shares(self) -> None:
        """4,000 draws: the standard error of a share of 0.6 is 0.008."""
        drawn = [choice(0, Purpose.SETTING, i, (0.2, 0.6, 0.2)) for i in range(4000)]
        shares = np.bincount(drawn, minlength=3) / 4000
        assert shares == pytest.approx([0.2, 0.6, 0.2], abs=0.03)

    def test_choice_of_shares_that_round_down(self) -> None:
        assert {choice(0, Purpose.SETTING, i, (0.0, 0.1)) for i in range(50)} == {1}


class TestSplit:
    @given(
        sizes=st.lists(st.integers(1, 9), min_size=2, max_size=30),
        held_out=st.integers(1, 12),
        seed=st.integers(0, 5),
    )
    @settings(deadline=None)
    def test_by_document(self, sizes: list[int], held_out: int, seed: int) -> None:
        documents = [f"d{i}" for i, size in enumerate(sizes) for _ in range(size)]
        ids = chunks(len(documents))
        try:
            pool = TokenPool.split(ids, documents, held_out, seed)
        except NybbleError:
            assert len(documents) < 4 * held_out + 4 * max(sizes)
            return
        assert pool.held_out.shape == (held_out, 8)
        ours = {documents[i] for i in numbers(pool.held_out)}
        assert ours.isdisjoint(documents[i] for i in numbers(pool.train))
        assert len(set(numbers(pool.train))) == len(pool.train)
        # Documents of which nothing is held out are all trained on, but for rests of those taken.
        assert len(pool.train) >= min(len(documents) * 3 // 4, len(documents) - max(sizes))

    def test_from_several_documents(self) -> None:
        documents = [f"d{i // 5}" for i in range(200)]
        pool = TokenPool.split(chunks(200), documents, 8, 0)
        assert len({documents[i] for i in numbers(pool.held_out)}) >= 4
        assert len(pool.train) >= 150

    def test_one_large_document_is_not_spent(self) -> None:
        documents = ["large"] * 90 + [f"small{i}" for i in range(10)]
        for seed in range(10):
            pool = TokenPool.split(chunks(100), documents, 4, seed)
            assert len(pool.train) >= 90

    def test_seed_decides(self) -> None:
        documents = [f"d{i}" for i in range(100)]
        found = {
            tuple(numbers(TokenPool.split(chunks(100), documents, 4, seed).held_out))
            for seed in (0, 0, 1, 2)
        }
        assert len(found) == 3

    def test_copies_of_held_out_text(self) -> None:
        """The same file under two names must not leak."""
        ids = np.concatenate([chunks(20), chunks(20)])
        documents = [f"a{i}" for i in range(20)] + [f"b{i}" for i in range(20)]
        pool = TokenPool.split(ids, documents, 4, 0)
        assert set(numbers(pool.held_out)).isdisjoint(numbers(pool.train))
        assert len(pool.train) == 40 - 2 * len(set(numbers(pool.held_out)))

    @pytest.mark.parametrize(
        ("n", "documents", "held_out"),
        [(0, 0, 1), (1, 1, 1), (50, 1, 4), (8, 8, 4), (40, 40, 0)],
    )
    def test_too_little(self, n: int, documents: int, held_out: int) -> None:
        names = [f"d{i % max(1, documents)}" for i in range(n)]
        with pytest.raises(NybbleError, match="too little text") as caught:
            TokenPool.split(chunks(n), names, held_out, 0)
        assert f"{n} chunks of 8 tokens, {documents} documents" in str(caught.value)

    def test_only_copies(self) -> None:
        with pytest.raises(NybbleError, match="too little text"):
            TokenPool.split(np.zeros((20, 8), np.int32), [str(i) for i in range(20)], 2, 0)

    def test_hash(self) -> None:
        documents = [f"d{i}" for i in range(20)]
        ids = chunks(20)
        same = TokenPool.split(ids.astype(np.int64), documents, 2, 0)
        assert same.train.dtype == np.int32
        assert same.sha256 == TokenPool.split(ids, documents, 2, 0).sha256
        changed = ids.copy()
        changed[7, 3] += 1
        others = [
            TokenPool.split(changed, documents, 2, 0), TokenPool.split(ids, documents, 2, 1),
            TokenPool.split(ids[:, :4], documents, 2, 0),
        ]  # fmt: skip
        assert len({same.sha256, *(p.sha256 for p in others)}) == 4


class TestRows:
    pool = TokenPool(chunks(10), chunks(1), "")

    def test_without_replacement(self) -> None:
        """Three epochs of 10 in steps of 4, which do not divide it."""
        line = [x for step in range(8) for x in numbers(self.pool.rows(5, step, 4))]
        epochs = [line[i : i + 10] for i in (0, 10, 20)]
        assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
        assert epochs[0] != epochs[1] != epochs[2] != epochs[0]

    @given(st.integers(0, 1000), st.integers(1, 25))
    def test_function_of_seed_and_step(self, step: int, count: int) -> None:
        again = TokenPool(chunks(10), chunks(1), "").rows(5, step, count)
        assert numbers(self.pool.rows(5, step, count)) == numbers(again)

    def test_steps_join(self) -> None:
        """A step of 6 reads what steps of 3 and 3 read, so accumulation is a larger batch."""
        halves = numbers(self.pool.rows(1, 4, 3)) + numbers(self.pool.rows(1, 5, 3))
        assert numbers(self.pool.rows(1, 2, 6)) == halves

    def test_seeds_differ(self) -> None:
        assert numbers(self.pool.rows(1, 0, 10)) != numbers(self.pool.rows(2, 0, 10))
