"""A saved slot of llama.cpp's server, read for what its cache really holds.

POST /slots/ID?action=save writes the cells of one sequence as they lie in memory, and before each
layer's rows their type and size: proof of the cache in effect, from the cache itself.

    u32 magic "ggsq", u32 version, u32 n, i32 tokens[n]; of the server's: -1, 1, m, the m tokens of
    the prompt, and what belongs to images
    for each cache (global layers, then sliding ones):
      u32 streams, and for each stream
        u32 cells; nothing more if 0
        cells x (i32 position, u32 n_seq = 1, i32 sequence)
        u32 v_trans, u32 layers, u32 n_rot_k, u32 n_rot_v
        layers x (i32 type, u64 row bytes, cells x row)         K
        layers x the same                                       V, where v_trans is 0
    "SCKP" and copies of sliding layers at earlier places, where the server made any

Source: b11549, src/llama-context.cpp (state_seq_save_file), src/llama-kv-cache.cpp (state_write*).
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nybble.errors import EngineError
from nybble.formats.registry import KV_TYPES

_MAGIC = 0x67677371
_VERSION = 4
PLACES = b"SCKP"
_MOST_PLACES = 1024
_MOST_LAYERS = 4096
_MOST_STREAMS = 1024
_MOST_ROW = 1 << 24  # bytes of one token in one layer
_NAMES = {kind.ggml_id: name for name, kind in KV_TYPES.items() if kind.ggml_id is not None}


@dataclass(frozen=True)
class SlotCache:
    """One cache in the file.

    Attributes:
        cells: tokens saved.
        k: (type, bytes of one token's row) of each layer.
        v: the same of V; empty where V is stored transposed, which no quantized V is.
        rotation: widths by which K and V are rotated.
    """

    cells: int
    k: tuple[tuple[str, int], ...]
    v: tuple[tuple[str, int], ...]
    rotation: tuple[int, int]

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one token takes in all layers of this cache."""
        return sum(size for _, size in (*self.k, *self.v))

    @property
    def types(self) -> set[tuple[str, str]]:
        """Pairs of K and V types that occur."""
        return set(zip((t for t, _ in self.k), (t for t, _ in self.v), strict=False))


@dataclass(frozen=True)
class Place:
    """A copy of the sliding layers, from which the server can go on.

    Attributes:
        tokens: of the prompt up to there.
        cache: what it holds.
        start: first byte in the file.
        end: one past the last.
    """

    tokens: int
    cache: SlotCache
    start: int
    end: int


@dataclass(frozen=True)
class SavedSlot:
    """The whole of a saved slot.

    Attributes:
        tokens: of the prompt whose cells these are.
        caches: one, or two of a model with sliding layers: global ones first.
        starts: byte of the file where each begins.
        places: copies of the sliding layers.
        end: byte of the file where the caches end.
    """

    tokens: tuple[int, ...]
    caches: tuple[SlotCache, ...]
    starts: tuple[int, ...]
    places: tuple[Place, ...]
    end: int

    @property
    def n_bytes(self) -> int:
        """Bytes of K and V, those of the copies included."""
        held = (*self.caches, *(place.cache for place in self.places))
        return sum(cache.cells * cache.bytes_per_token for cache in held)

    @property
    def types(self) -> set[tuple[str, str]]:
        """Pairs of K and V types that occur."""
        held = (*self.caches, *(place.cache for place in self.places))
        return {pair for cache in held for pair in cache.types}


def parse_slot(data: bytes | mmap.mmap) -> SavedSlot:
    """Read a saved slot to its end.

    Raises:
        EngineError: not such a file, one of another version, or damaged.
    """
    reader = _Bytes(data)
    packed = reader.head()
    if len(packed) < 3 or packed[:2] != (-1, 1) or not 0 <= packed[2] <= len(packed) - 3:
        raise EngineError("the saved slot is damaged", seen="no list of tokens",
                          allowed="a slot as llama.cpp b11549 saves it")  # fmt: skip
    starts: list[int] = []
    caches: list[SlotCache] = []
    while not (caches and reader.ended) and len(caches) < 2:
        starts.append(reader.at)
        caches.append(_cache(reader))
    end = reader.at
    places = () if reader.at == len(data) else _places(reader)
    if reader.at != len(data):
        raise EngineError("the saved slot is of a model that is not read here",
                          seen=f"{len(data) - reader.at:,} bytes after its caches")  # fmt: skip
    return SavedSlot(_tokens(packed), tuple(caches), tuple(starts), places, end)


def _tokens(packed: Sequence[int]) -> tuple[int, ...]:
    """The prompt's tokens out of what the server packs them into."""
    return tuple(packed[3 : 3 + packed[2]])


def _places(reader: _Bytes) -> tuple[Place, ...]:
    magic, version, n = reader.take("4sII")
    if magic != PLACES or version != 1:
        raise EngineError("the saved slot is of a model that is not read here",
                          seen=f"{magic!r} after its caches", allowed=f"{PLACES!r}")  # fmt: skip
    _within("places", n, _MOST_PLACES)
    found = []
    for _ in range(n):
        start = reader.at
        tokens, _, _, size = reader.take("qiiQ")
        begins = reader.at
        reader.take("II")
        cache = _cache(reader)
        if reader.at - begins != size:
            raise EngineError("the saved slot is damaged", seen=f"{reader.at - begins:,} bytes",
                              allowed=f"{size:,} of a place")  # fmt: skip
        for _ in range(2):
            reader.skip(reader.take("Q")[0])
        found.append(Place(tokens, cache, start, reader.at))
    return tuple(found)


def read_slot(path: Path, caches: int) -> tuple[SlotCache, ...]:
    """Read the caches of a saved slot.

    Args:
        path: the file.
        caches: how many: 1, or 2 for a model with sliding layers.

    Raises:
        EngineError: not such a file, or one of another version.
    """
    try:
        with path.open("rb") as file:
            reader = _Bytes(file.read())
    except OSError as error:
        raise EngineError("cannot read the saved slot", seen=str(error)) from error
    reader.head()
    return tuple(_cache(reader) for _ in range(caches))


def _cache(reader: _Bytes) -> SlotCache:
    (streams,) = reader.take("I")
    _within("streams", streams, _MOST_STREAMS)
    found = SlotCache(0, (), (), (0, 0))
    for _ in range(streams):
        (cells,) = reader.take("I")
        if not cells:
            continue
        for _ in range(cells):
            _, owners, _ = reader.take("iIi")
            if owners != 1:
                raise EngineError("the saved slot is of a model that is not read here",
                                  seen=f"{owners} sequences in a cell",
                                  allowed="1, and no extended positions")  # fmt: skip
        trans, layers, rot_k, rot_v = reader.take("IIII")
        _within("layers", layers, _MOST_LAYERS)
        k = tuple(_rows(reader, cells) for _ in range(layers))
        v = () if trans else tuple(_rows(reader, cells) for _ in range(layers))
        found = SlotCache(cells, k, v, (rot_k, rot_v))
    return found


def _rows(reader: _Bytes, cells: int) -> tuple[str, int]:
    kind, size = reader.take("iQ")
    _within("bytes of a row", size, _MOST_ROW)
    reader.skip(cells * size)
    return _NAMES.get(kind, f"ggml type {kind}"), size


def _within(what: str, value: int, most: int) -> None:
    if value > most:
        raise EngineError("the saved slot is damaged", seen=f"{value:,} {what}",
                          allowed=f"up to {most:,}")  # fmt: skip


class _Bytes:
    def __init__(self, data: bytes | mmap.mmap) -> None:
        self._data, self._at = data, 0

    @property
    def at(self) -> int:
        """Bytes read so far."""
        return self._at

    @property
    def ended(self) -> bool:
        """Whether nothing of a cache is left."""
        left = self._data[self._at : self._at + 4]
        return not left or left == PLACES

    def head(self) -> Sequence[int]:
        """What stands before the cells: the tokens, as the server packs them.

        Raises:
            EngineError: not such a file, or one of another version.
        """
        magic, version, n = self.take("III")
        if magic != _MAGIC or version != _VERSION:
            raise EngineError("this is not a slot as llama.cpp b11549 saves it",
                              seen=f"magic {magic:#x}, version {version}",
                              allowed=f"magic {_MAGIC:#x}, version {_VERSION}")  # fmt: skip
        self._need(4 * n)
        return self.take(f"{n}i")

    def take(self, form: str) -> tuple[Any, ...]:
        """Numbers of a struct format, little-endian, without padding."""
        size = struct.calcsize("<" + form)
        self._need(size)
        found = struct.unpack_from("<" + form, self._data, self._at)
        self._at += size
        return found

    def skip(self, size: int) -> None:
        self._need(size)
        self._at += size

    def _need(self, size: int) -> None:
        if self._at + size > len(self._data):
            raise EngineError("the saved slot ends too early",
                              seen=f"{len(self._data):,} bytes", allowed=f"{self._at + size:,} at "
                              "least")  # fmt: skip
