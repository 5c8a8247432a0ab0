"""Saved slots as llama.cpp's server writes them, byte by byte."""

from __future__ import annotations

import struct

IDS = (1, 5, 9, 9, 2)


def cells(
    positions: range, layers: int = 2, row: int = 34, kind: int = 8, others: int = 0
) -> bytes:
    """One cache of a saved slot, each row filled with its position, behind other slots' streams."""
    found = struct.pack("<I", 1 + others) + bytes(4 * others) + struct.pack("<I", len(positions))
    found += b"".join(struct.pack("<iIi", p, 1, 0) for p in positions)
    found += struct.pack("<IIII", 0, layers, 64, 64)
    rows = b"".join(bytes([p % 256]) * row for p in positions)
    return found + 2 * layers * (struct.pack("<iQ", kind, row) + rows)


def slot(*caches: bytes, ids: tuple[int, ...] = IDS, places: bytes = b"") -> bytes:
    """A whole file as llama.cpp's server of b11549 writes it."""
    packed = (-1, 1, len(ids), *ids, 0)
    head = struct.pack(f"<III{len(packed)}i", 0x67677371, 4, len(packed), *packed)
    return head + b"".join(caches) + places
