"""How the Triton kernels are launched: parts of the context, and what to do with less memory."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from nybble.runtime.triton.tune import Case, Launch, candidates, launch, pages_of_part, smaller

HOW = Launch()


def _parts(pages: int, programs: int, chips: int = 132) -> int:
    return -(-pages // pages_of_part(pages, programs, chips, HOW))


def test_one_sequence_is_split_until_the_chip_is_full() -> None:
    # 8 KV heads of 32K tokens: 512 pages, and 66 parts give each of 132 multiprocessors 4 programs.
    assert 60 <= _parts(512, 8) <= 66


def test_a_large_batch_is_not_split() -> None:
    assert _parts(512, 132 * HOW.waves) == 1


def test_a_short_context_is_not_split() -> None:
    assert _parts(HOW.pages - 1, 1) == 1
    assert _parts(0, 1) == 0


@pytest.mark.parametrize("pages", [1, 5, 64, 1000])
@pytest.mark.parametrize("programs", [1, 7, 64, 5000])
def test_parts_cover_all_pages(pages: int, programs: int) -> None:
    each = pages_of_part(pages, programs, 132, HOW)
    assert each >= 1
    assert _parts(pages, programs) * each >= pages
    assert (_parts(pages, programs) - 1) * each < pages


def test_smaller_launches_come_to_an_end() -> None:
    how: Launch | None = launch(Case((9, 0), 512, 4))
    seen = []
    while how is not None:
        seen.append(how)
        how = smaller(how)
    assert seen[-1].tile == 16 and seen[-1].stages == 1
    assert len(seen) == len(set(seen)) <= 5


def test_candidates_are_launches_that_pages_allow() -> None:
    assert all(64 % how.tile == 0 for how in candidates())
    assert len(candidates()) == len(set(candidates()))
