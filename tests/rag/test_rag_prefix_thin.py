"""A saved slot of a model with sliding layers, made as small as its cache."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rag_prefix_slots import cells, slot

from nybble.engines.llamacpp.slotfile import parse_slot
from nybble.engines.llamacpp.slotthin import thin
from nybble.errors import EngineError

IDS = tuple(range(40))
WIDE, NARROW = cells(range(40)), cells(range(30, 40), layers=3)


def place(tokens: int, positions: range) -> bytes:
    held = struct.pack("<II", 0xAF143CD8, 0) + cells(positions, layers=3)
    head = struct.pack("<qiiQ", tokens, positions[0], positions[-1], len(held))
    return head + held + struct.pack("<QQ", 0, 0)


def places(*made: bytes) -> bytes:
    return b"SCKP" + struct.pack("<II", 1, len(made)) + b"".join(made)


@pytest.mark.parametrize("others", [0, 2])
def test_one_cell_and_the_last_copy_are_kept(tmp_path: Path, others: int) -> None:
    early, late = place(20, range(10, 20)), place(36, range(26, 36))
    narrow = cells(range(30, 40), layers=3, others=others)
    whole = slot(WIDE, narrow, ids=IDS, places=places(early, late))
    (tmp_path / "a").write_bytes(whole)
    made = thin(tmp_path / "a", tmp_path / "b")
    data = (tmp_path / "b").read_bytes()
    assert made == parse_slot(data) and made.tokens == IDS
    assert [c.cells for c in made.caches] == [40, 1]
    assert [p.tokens for p in made.places] == [36]
    assert data == slot(WIDE, cells(range(39, 40), layers=3, others=others), ids=IDS,
                        places=places(late))  # fmt: skip
    assert made.n_bytes == 40 * 4 * 34 + 11 * 6 * 34


@pytest.mark.parametrize("caches", [(WIDE,), (WIDE, NARROW)])
def test_without_copies_all_is_kept(tmp_path: Path, caches: tuple[bytes, ...]) -> None:
    whole = slot(*caches, ids=IDS)
    (tmp_path / "a").write_bytes(whole)
    thin(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == whole


WHOLE = slot(WIDE, NARROW, ids=IDS, places=places(place(36, range(26, 36))))


@settings(deadline=None, max_examples=100)
@given(st.integers(0, len(WHOLE) - 1), st.integers(0, 255), st.integers(0, len(WHOLE)))
def test_damage_is_an_error_or_read(at: int, value: int, cut: int) -> None:
    for data in (WHOLE[:at] + bytes([value]) + WHOLE[at + 1 :], WHOLE[:cut]):
        try:
            parse_slot(data)
        except EngineError:
            continue
        assert len(data) >= 12
