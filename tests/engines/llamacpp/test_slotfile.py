"""Saved slots: read to the byte, and hostile ones refused."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nybble.engines.llamacpp.slotfile import read_slot
from nybble.errors import EngineError

TYPES = {"f16": (1, 2.0), "q8_0": (8, 34 / 32), "q4_0": (2, 18 / 32), "q5_1": (7, 24 / 32)}


def cache(cells: int, layers: int, k: str, v: str, width: int = 64) -> bytes:
    """One cache as state_write of llama.cpp b11549 writes it."""
    found = struct.pack("<II", 1, cells)
    if not cells:
        return found
    found += b"".join(struct.pack("<iIi", i, 1, 0) for i in range(cells))
    found += struct.pack("<IIII", 0, layers, 64, 64)
    for name in (k, v):
        kind, per = TYPES[name]
        row = int(width * per)
        found += layers * (struct.pack("<iQ", kind, row) + bytes(cells * row))
    return found


def slot(*caches: bytes, tokens: int = 3, magic: int = 0x67677371, version: int = 4) -> bytes:
    return struct.pack("<III", magic, version, tokens) + bytes(4 * tokens) + b"".join(caches)


def written(folder: Path, data: bytes) -> Path:
    path = folder / "slot.bin"
    path.write_bytes(data)
    return path


def test_two_caches(tmp_path: Path) -> None:
    path = written(tmp_path, slot(cache(5, 3, "q8_0", "q4_0"), cache(2, 4, "q8_0", "q4_0")))
    wide, sliding = read_slot(path, caches=2)
    assert (wide.cells, sliding.cells) == (5, 2)
    assert wide.types == sliding.types == {("q8_0", "q4_0")}
    assert wide.bytes_per_token == 3 * (68 + 36) and wide.rotation == (64, 64)


def test_an_empty_cache(tmp_path: Path) -> None:
    (found,) = read_slot(written(tmp_path, slot(cache(0, 1, "f16", "f16"))), caches=1)
    assert found.cells == 0 and not found.types


@pytest.mark.parametrize("change", [{"magic": 1}, {"version": 3}])
def test_another_kind_of_file(tmp_path: Path, change: dict[str, int]) -> None:
    path = written(tmp_path, slot(cache(1, 1, "f16", "f16"), **change))
    with pytest.raises(EngineError, match="b11549"):
        read_slot(path, caches=1)


@pytest.mark.parametrize(
    "data",
    [struct.pack("<I", 1 << 31), struct.pack("<II", 1, 1 << 31),
     cache(1, 1, "f16", "f16")[:20] + struct.pack("<IIII", 0, 1 << 31, 0, 0)],
    ids=["streams", "cells", "layers"],
)  # fmt: skip
def test_absurd_counts_are_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(EngineError):
        read_slot(written(tmp_path, slot(data)), caches=1)


FLIPS = st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=4)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 10_000), flips=FLIPS)
def test_damaged_files_raise_or_read(
    tmp_path: Path, cut: int, flips: list[tuple[int, int]]
) -> None:
    data = bytearray(slot(cache(4, 2, "q5_1", "q4_0"), cache(3, 1, "q5_1", "q4_0")))
    for at, value in flips:
        data[at % len(data)] = value
    path = written(tmp_path, bytes(data[: cut % (len(data) + 1)]))
    try:
        for found in read_slot(path, caches=2):
            assert found.bytes_per_token >= 0
    except EngineError:
        pass
