"""Which keys a query still sees raw."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from nybble.formats.reads import ALL, CHUNK, Reads  # noqa: E402
from nybble.formats.registry import KV_TYPES  # noqa: E402

RULES = st.builds(
    Reads, st.sampled_from(["chunk", "recent", "residual"]), st.integers(1, 200)
) | st.just(ALL)
POSITIONS = st.integers(0, 400)


def first_raw(rule: Reads, position: int) -> int:
    found = rule.first_raw(torch.tensor([position]))
    assert found.dtype == torch.int64 and found.shape == (1,)
    return int(found)


@given(RULES, POSITIONS)
def test_a_key_that_exists(rule: Reads, i: int) -> None:
    """Between the context's start and one past the query: the future is never named raw."""
    assert 0 <= first_raw(rule, i) <= i + 1


@given(RULES, POSITIONS)
def test_a_key_once_stored_stays_stored(rule: Reads, i: int) -> None:
    assert first_raw(rule, i) <= first_raw(rule, i + 1)


@given(POSITIONS)
def test_all_reads_its_own_key_as_stored(i: int) -> None:
    assert first_raw(ALL, i) == i + 1


@given(st.integers(1, 200), POSITIONS)
def test_recent_is_a_number_of_keys(n: int, i: int) -> None:
    raw = range(first_raw(Reads("recent", n), i), i + 1)
    assert len(raw) == min(n, i + 1)


@given(st.integers(1, 200), POSITIONS)
def test_chunks_see_themselves(n: int, i: int) -> None:
    """Raw are exactly the keys of the query's own chunk up to itself."""
    first = first_raw(Reads("chunk", n), i)
    assert [j for j in range(i + 1) if j // n == i // n] == list(range(first, i + 1))


@given(st.integers(1, 60), st.integers(0, 200))
def test_residual_is_a_buffer_that_empties_when_full(n: int, i: int) -> None:
    """Tokens are added one by one; attention runs before a full buffer is stored."""
    stored = buffered = 0
    for _ in range(i + 1):
        if buffered == n:
            stored, buffered = stored + n, 0
        buffered += 1
    assert first_raw(Reads("residual", n), i) == stored


@given(RULES, st.lists(POSITIONS, max_size=20))
def test_many_positions_at_once(rule: Reads, positions: list[int]) -> None:
    found = rule.first_raw(torch.tensor(positions, dtype=torch.int64))
    assert found.tolist() == [first_raw(rule, i) for i in positions]
    grid = rule.first_raw(torch.arange(6).view(2, 3))
    assert grid.shape == (2, 3)


@given(RULES)
def test_decode(rule: Reads) -> None:
    """Token by token a chunk is one token, which is stored first; windows stay windows."""
    assert rule.at_decode() == (ALL if rule.rule == "chunk" else rule)


def test_prefill_chunk_of_the_engines() -> None:
    assert CHUNK == Reads("chunk", 512)


@pytest.mark.parametrize("kind", KV_TYPES.values(), ids=KV_TYPES)
def test_no_type_reads_ahead(kind: object) -> None:
    """Tokens stored together are all there before the first of them is read as stored.

    A query sees keys below first_raw as stored, in groups of `tokens`: the last whole group must
    not reach beyond the query itself.
    """
    reads, group = kind.reads, kind.tokens  # type: ignore[attr-defined]
    for i in range(600):
        last = first_raw(reads, i) - 1
        assert (last // group + 1) * group - 1 <= i or last < 0 or group == 1
