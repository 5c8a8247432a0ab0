"""A saved slot without what its server does not need to go on from its end.

The server cannot go on from the sliding layers' own cells: it wants one position more than they
keep, and goes back to the last copy of these layers (`slot.prompt.checkpoints`), a few tokens
before the end. So of the cells one is kept, which the server wants to see, and of the copies the
last: the file is then as large as the cache. Tried with b11549: without a copy it computes the
whole prompt again; with this file it computes the last tokens.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from nybble.engines.llamacpp.slotfile import PLACES, SavedSlot, parse_slot
from nybble.errors import EngineError

_CELL = struct.Struct("<iIi")


def thin(path: Path, part: Path) -> SavedSlot:
    """Write the slot at `path` to `part` without copies that are not needed.

    Returns:
        What is in `part` then.

    Raises:
        EngineError: not a slot that is read here.
        OSError: it cannot be read or written.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        saved = parse_slot(data)
        with part.open("wb") as made:
            made.write(data[: saved.starts[-1]])
            if saved.places:
                made.writelines(_one_cell(data, saved))
                last = max(saved.places, key=lambda place: place.tokens)
                made.write(struct.pack("<4sII", PLACES, 1, 1))
                made.write(data[last.start : last.end])
            else:
                made.write(data[saved.starts[-1] :])
            made.flush()
            os.fsync(made.fileno())
    with part.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return parse_slot(data)


def _one_cell(data: mmap.mmap, saved: SavedSlot) -> Iterator[bytes]:
    """The last cache with the cell of the highest position only."""
    at, cache = saved.starts[-1], saved.caches[-1]
    (streams,) = struct.unpack_from("<I", data, at)
    yield data[at : at + 4]
    at += 4
    for _ in range(streams):  # one for each slot of the server; those of others are empty
        (cells,) = struct.unpack_from("<I", data, at)
        at += 4
        if not cells:
            yield struct.pack("<I", 0)
            continue
        if cells != cache.cells:
            raise EngineError("the saved slot is of a model that is not read here",
                              seen="cells of several sequences", allowed="of one")  # fmt: skip
        places = [_CELL.unpack_from(data, at + i * _CELL.size)[0] for i in range(cells)]
        kept = max(range(cells), key=lambda i: places[i])
        yield struct.pack("<I", 1)
        yield data[at + kept * _CELL.size : at + (kept + 1) * _CELL.size]
        at += cells * _CELL.size
        yield data[at : at + 16]  # whether V is transposed, layers, rotation
        at += 16
        for _, size in (*cache.k, *cache.v):
            yield data[at : at + 12]
            at += 12
            yield data[at + kept * size : at + (kept + 1) * size]
            at += cells * size
