"""The header of a safetensors file, read without its weights and without trusting it.

Layout: 8 bytes, the length of the header; the header, a JSON object of one entry per tensor
(dtype, shape, data_offsets) and an optional __metadata__ of texts; the data, without gaps.

Source of the rules: https://github.com/huggingface/safetensors, README.md (Format) and
`Metadata::validate` in `safetensors/src/tensor.rs`. Stricter here: no name twice, and a shorter
header.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeGuard

from nybble.errors import ModelFileError
from nybble.models.file_kinds import show
from nybble.models.first_bytes import NeedMoreBytes
from nybble.models.gguf_types import TensorInfo
from nybble.models.open_file import opened

MAX_HEADER_BYTES = 16 << 20  # a tensor takes about 120 bytes; 140,000 in one file fit
MAX_DIMS = 32  # bounds the product of a shape
_AGAIN = "download the file again; its size now is {size:,} bytes"

BITS = MappingProxyType({
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "I16": 16, "U16": 16, "F16": 16,
    "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64,
})  # fmt: skip


@dataclass(frozen=True)
class SafetensorsHeader:
    """What a safetensors file says of itself; `tensors` are in the order of their data.

    Their shapes are in torch's order. A tensor's `offset` counts from `data_offset`, which counts
    from the start of the file.
    """

    tensors: tuple[TensorInfo, ...]
    metadata: Mapping[str, str]
    data_offset: int
    file_size: int


def read_header(path: Path) -> SafetensorsHeader:
    """Read the header of the safetensors file `path`; the weights are not touched.

    Raises:
        ModelFileError: the file is missing, unreadable, cut short, damaged or no safetensors.
    """
    with opened(path) as (file, size):
        start = file.read(9)
        length = _length(start, size, path.name, path)
        data = start[8:] + file.read(length - 1)
    return _Checker(path.name, size, 8 + length).header(data)


def read_header_bytes(data: bytes | bytearray, file_size: int, name: str) -> SafetensorsHeader:
    """Read the header of a safetensors file of `file_size` bytes from its first bytes, `data`.

    `name` is what errors call the file. The rules and the bounds are those of `read_header`.

    Raises:
        NeedMoreBytes: the header, of up to `MAX_HEADER_BYTES`, goes on after `data`.
        ModelFileError: the file is cut short, damaged or no safetensors.
    """
    if len(data) < min(file_size, 9):
        raise NeedMoreBytes(min(file_size, 9))
    end = 8 + _length(bytes(data[:9]), file_size, name, name)
    if len(data) < end:
        raise NeedMoreBytes(end)
    return _Checker(name, file_size, end).header(bytes(data[8:end]))


def _length(start: bytes, size: int, name: str, where: object) -> int:
    """Bytes of the header of a file, by its first nine bytes."""
    length = int.from_bytes(start[:8], "little")
    if start.startswith(b"version h"):
        raise ModelFileError(f"{name} is a git-lfs pointer, not the file it stands for",
                             seen=where, hint="git lfs pull")  # fmt: skip
    if len(start) < 9 or length < 2 or start[8:] != b"{":
        raise ModelFileError(f"{name} is not a safetensors file (at byte 0)",
                             seen=f"it starts with {start[:8]!r}, {size:,} bytes",
                             allowed="the length of the header, then {",
                             hint=_AGAIN.format(size=size))  # fmt: skip
    if length > size - 8:
        raise ModelFileError(f"{name} is cut short inside its header",
                             seen=f"{size:,} bytes", allowed=f"more than {length + 8:,} bytes",
                             hint=_AGAIN.format(size=size))  # fmt: skip
    if length > MAX_HEADER_BYTES:
        raise ModelFileError(f"{name}: the header is too large", seen=f"{length:,} bytes",
                             allowed=f"up to {MAX_HEADER_BYTES:,} bytes",
                             hint=_AGAIN.format(size=size))  # fmt: skip
    return length


class _Checker:
    def __init__(self, name: str, size: int, data_offset: int) -> None:
        self.name, self.size, self.data_offset = name, size, data_offset

    def error(self, what: str, seen: object = None, allowed: str | None = None) -> ModelFileError:
        hint = _AGAIN.format(size=self.size)
        return ModelFileError(f"{self.name}: {what}", seen=seen, allowed=allowed, hint=hint)

    def no_name_twice(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # Two readers may take different ones of two entries; refuse rather than guess.
        found = dict(pairs)
        if len(found) != len(pairs):
            twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
            raise self.error("a name stands twice in the header", show(twice), "once")
        return found

    def header(self, data: bytes) -> SafetensorsHeader:
        try:
            entries = json.loads(data.decode("utf-8"), object_pairs_hook=self.no_name_twice)
        except RecursionError as e:
            raise self.error("the header nests too deep") from e
        except ValueError as e:
            raise self.error("the header is not JSON", show(e)) from e
        if not isinstance(entries, dict):
            raise self.error("the header is not a JSON object", show(data[:60]))
        metadata = entries.pop("__metadata__", None)
        metadata = {} if metadata is None else metadata
        if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
            raise self.error("__metadata__ is wrong", show(metadata), "an object of texts")
        tensors = [self.tensor(name, entry) for name, entry in entries.items()]
        # Tensors of zero elements take no bytes: by their end they stand before the next one.
        tensors.sort(key=lambda t: (t.offset, t.n_bytes))
        end = 0
        for tensor in tensors:
            if tensor.offset != end:
                kind = "overlaps the one before it" if tensor.offset < end else "leaves a gap"
                raise self.error(f"tensor {show(tensor.name)} {kind}",
                                 f"it starts at {tensor.offset:,}", f"{end:,}")  # fmt: skip
            end += tensor.n_bytes
        if self.data_offset + end != self.size:
            kind = "is cut short" if self.data_offset + end > self.size else "is too long"
            raise self.error(f"the file {kind}", f"{self.size:,} bytes",
                             f"{self.data_offset + end:,} bytes")  # fmt: skip
        return SafetensorsHeader(
            tuple(tensors), MappingProxyType(metadata), self.data_offset, self.size
        )

    def tensor(self, name: str, entry: object) -> TensorInfo:
        what = f"tensor {show(name)}"
        if not isinstance(entry, dict):
            raise self.error(f"{what} has no description", show(entry), "an object")
        dtype, shape, offsets = (entry.get(k) for k in ("dtype", "shape", "data_offsets"))
        if not isinstance(dtype, str) or dtype not in BITS:
            raise self.error(f"{what} has an unknown dtype", show(dtype), ", ".join(BITS))
        if not self.sizes(shape):
            raise self.error(f"{what} has a wrong shape", show(shape),
                             f"up to {MAX_DIMS} whole numbers")  # fmt: skip
        if not self.sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
            raise self.error(f"{what} has wrong data_offsets", show(offsets), "[start, end]")
        begin, end = offsets
        if end > self.size - self.data_offset:
            raise self.error(f"{what} ends after the end of the file", f"{end:,}",
                             f"up to {self.size - self.data_offset:,}")  # fmt: skip
        n_bits = prod(shape) * BITS[dtype]
        if n_bits != 8 * (end - begin):
            raise self.error(f"{what} does not fill its place",
                             f"{dtype} {show(shape)} in {end - begin:,} bytes",
                             f"{-(-n_bits // 8):,} bytes")  # fmt: skip
        return TensorInfo(name, tuple(shape), dtype, end - begin, begin)

    @staticmethod
    def sizes(value: object) -> TypeGuard[list[int]]:
        # A bool is an int in Python. Numbers over 2^63 are no sizes, whatever their product is.
        return (
            isinstance(value, list)
            and len(value) <= MAX_DIMS
            and all(type(v) is int and 0 <= v < 1 << 63 for v in value)
        )
