"""The header of a GGUF file, read without its weights and without trusting it.

A model file comes from a stranger, so every count and length is checked against the bytes that are
left before anything is allocated, and the text and numbers kept stay under `MAX_KEPT_BYTES`.

Source of the layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and llama.cpp's
`ggml/src/gguf.cpp`. Where those two differ the rule of llama.cpp is used: it loads the file later.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
import struct
import sys
from itertools import repeat
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

from nybble.errors import ModelFileError
from nybble.models.file_kinds import folder, missing, not_gguf, not_regular, show
from nybble.models.first_bytes import NeedMoreBytes
from nybble.models.gguf_types import (
    ARRAY,
    SCALARS,
    STRING,
    TENSOR_TYPES,
    ArraySummary,
    GGUFHeader,
    TensorInfo,
    Value,
)

__all__ = ["ArraySummary", "GGUFHeader", "TensorInfo", "Value", "read_header",
           "read_header_bytes"]  # fmt: skip

MAX_HEADER_BYTES = 128 << 20  # the largest real ones, 262,144 tokens and 514,906 merges, are 16 MiB
MAX_KEPT_BYTES = 32 << 20  # Python objects made from one header
MAX_LISTED = 1024  # array entries kept as values; a longer array becomes an ArraySummary
MAX_TEXT_BYTES = 1 << 20  # longer than any chat template; some files embed a 30 MB tokenizer.json
MAX_TENSORS = 32_768
MAX_DEPTH = 4
MAX_NAME_BYTES = 65_535
MAX_TENSOR_NAME_BYTES = 64
MAX_ALIGNMENT = 1 << 20
_TENSOR_COST = 512  # bytes of Python objects per tensor, measured


def read_header(path: Path) -> GGUFHeader:
    """Read the header of the GGUF file `path` (versions 2 and 3, little endian).

    The weights are not touched. The file is mapped, not read: memory stays below about
    `MAX_KEPT_BYTES` whatever the file holds. Invalid UTF-8 in a value becomes U+FFFD.

    Raises:
        ModelFileError: the file is missing, unreadable, cut short, damaged or not such a GGUF.
    """
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            raise folder(path)
        # A pipe or a device would block or never end.
        if not stat.S_ISREG(found.st_mode):
            raise not_regular(path)
        with path.open("rb") as file:
            start = file.read(512)
            size = os.fstat(file.fileno()).st_size
            if start[:4] != b"GGUF" or size < 24:
                raise not_gguf(path, start, size)
            length = min(size, MAX_HEADER_BYTES)
            with mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ) as data:
                return _Reader(data, length, size, path.name).header()
    except FileNotFoundError as e:
        raise missing(path) from e
    except (OSError, ValueError) as e:
        reason = getattr(e, "strerror", None) or e
        hint = "check the permissions of the file and its folders"
        raise ModelFileError(f"Cannot read the model file: {reason}", seen=path, hint=hint) from e


def read_header_bytes(data: bytes | bytearray, file_size: int, name: str) -> GGUFHeader:
    """Read the header of a GGUF file of `file_size` bytes from its first bytes, `data`.

    `name` is what errors call the file. The rules and the bounds are those of `read_header`.

    Raises:
        NeedMoreBytes: the header, of up to `MAX_HEADER_BYTES`, goes on after `data`.
        ModelFileError: the file is cut short, damaged or not such a GGUF.
    """
    if len(data) < min(file_size, 512):
        raise NeedMoreBytes(min(file_size, 512))
    if data[:4] != b"GGUF" or file_size < 24:
        raise not_gguf(Path(name), bytes(data[:512]), file_size)
    end = min(len(data), file_size, MAX_HEADER_BYTES)
    return _Reader(data, end, file_size, name).header()


class _Reader:
    """A cursor over the start of one file; every step is checked against what is left."""

    def __init__(
        self, data: mmap.mmap | bytes | bytearray, end: int, file_size: int, name: str
    ) -> None:
        self.data, self.end, self.file_size, self.name = data, end, file_size, name
        self.pos = 0
        self.kept = 0

    def error(self, what: str, at: int, seen: object = None, allowed: str | None = None,
              hint: str | None = None) -> ModelFileError:  # fmt: skip
        hint = hint or f"download the file again; its size now is {self.file_size:,} bytes"
        what = f"{self.name}: {what} (at byte {at:,})"
        return ModelFileError(what, seen=seen, allowed=allowed, hint=hint)

    def need(self, n_bytes: int, what: str, at: int) -> None:
        if n_bytes <= self.end - self.pos:
            return
        if self.pos + n_bytes <= self.file_size:
            if self.pos + n_bytes <= MAX_HEADER_BYTES:  # never of a mapped file: it ends later
                raise NeedMoreBytes(self.pos + n_bytes)
            allowed = f"headers up to {MAX_HEADER_BYTES:,} bytes"
            raise self.error(f"the header is too large, in {what}", at, f"{n_bytes:,}", allowed)
        left = f"at most the {self.file_size - self.pos:,} bytes that are left"
        raise self.error(f"the file ends inside {what}", at, f"{n_bytes:,} bytes needed", left)

    def keep(self, n_bytes: int, at: int) -> None:
        self.kept += n_bytes
        if self.kept > MAX_KEPT_BYTES:
            allowed = f"{MAX_KEPT_BYTES:,} bytes of short values and tensor names"
            raise self.error("the header holds too much", at, "more", allowed)

    def number(self, code: str, what: str) -> Any:
        size = struct.calcsize("<" + code)
        self.need(size, what, self.pos)
        value = struct.unpack_from("<" + code, self.data, self.pos)[0]
        self.pos += size
        return value

    def text(self, what: str) -> str | ArraySummary:
        at = self.pos
        n_bytes = self.number("Q", f"the length of {what}")
        self.need(n_bytes, what, at)
        if n_bytes > MAX_TEXT_BYTES:
            return self.summary("text", n_bytes, self.pos + n_bytes)
        text = self.data[self.pos : self.pos + n_bytes].decode("utf-8", "replace")
        self.pos += n_bytes
        self.keep(sys.getsizeof(text), at)
        return text

    def name_of(self, what: str, max_bytes: int) -> str:
        at = self.pos
        n_bytes = self.number("Q", f"the length of {what}")
        if not 1 <= n_bytes <= max_bytes:
            raise self.error(f"{what} has a wrong length", at, n_bytes, f"1 to {max_bytes:,} bytes")
        self.pos = at
        text = self.text(what)
        if not isinstance(text, str) or "\ufffd" in text:
            raise self.error(f"{what} is not UTF-8 text", at, show(text))
        return text

    def summary(self, kind: str, count: int, end: int) -> ArraySummary:
        digest = hashlib.sha256()
        for at in range(self.pos, end, 1 << 20):
            digest.update(self.data[at : min(at + (1 << 20), end)])
        self.pos = end
        return ArraySummary(kind, count, digest.hexdigest())

    def value(self, type_id: int, what: str, depth: int = 0) -> Value:
        at = self.pos - 4
        if type_id in SCALARS:
            self.keep(40, at)
            value: Value = self.number(SCALARS[type_id][1], what)
            return value
        if type_id == STRING:
            return self.text(what)
        if type_id != ARRAY:
            raise self.error(f"{what} has an unknown value type", at, type_id, "0 to 12")
        if depth == MAX_DEPTH:
            raise self.error(f"{what} nests arrays too deep", at, None, f"{MAX_DEPTH} levels")
        return self.array(what, depth)

    def array(self, what: str, depth: int) -> Value:
        at = self.pos
        item: int = self.number("I", what)
        count: int = self.number("Q", what)
        if item in SCALARS:
            kind, code = SCALARS[item]
            n_bytes = count * struct.calcsize("<" + code)
            self.need(n_bytes, f"{what} ({count:,} entries)", at)
            if count > MAX_LISTED:
                return self.summary(kind, count, self.pos + n_bytes)
            self.keep(64 + 40 * count, at)
            self.pos += n_bytes
            return struct.unpack_from(f"<{count}{code}", self.data, self.pos - n_bytes)
        if item == STRING:
            self.need(8 * count, f"{what} ({count:,} strings)", at)
            if count > MAX_LISTED:
                return self.summary("string", count, self.end_of_strings(count, what))
        elif item != ARRAY:
            raise self.error(f"{what} has an unknown entry type", at, item, "0 to 12")
        elif count > MAX_LISTED:
            raise self.error(f"{what} holds too many arrays", at, count, f"{MAX_LISTED:,}")
        self.keep(64 + 8 * count, at)
        return tuple(self.value(item, what, depth + 1) for _ in range(count))

    def end_of_strings(self, count: int, what: str) -> int:
        # 780,000 entries in one real file: the only check inside the loop is unpack_from's own.
        unpack, data, pos = struct.Struct("<Q").unpack_from, self.data, self.pos
        before = pos
        try:
            for _ in repeat(None, count):
                before = pos
                pos += 8 + unpack(data, pos)[0]
        except (struct.error, OverflowError, IndexError):
            pos = max(pos, self.end + 1)
        if pos > self.end:
            self.need(pos - self.pos, f"{what} ({count:,} strings)", before)
        return pos

    def header(self) -> GGUFHeader:
        self.pos = 4
        version = self.number("I", "the version")
        if version not in (2, 3):
            kind = "an unknown version"
            if version == 1:
                kind = "version 1, which llama.cpp no longer loads"
            elif version and version & 0xFFFF == 0:
                kind = "big endian"
            hint = "get the model as a little-endian GGUF of version 3, or convert it again"
            raise self.error(f"this GGUF is {kind}", 4, version, "versions 2 and 3", hint)
        n_tensors = self.number("Q", "the tensor count")
        n_keys = self.number("Q", "the key count")
        # The smallest tensor entry takes 25 bytes, the smallest key and value 14.
        most = min((self.file_size - 24) // 25, MAX_TENSORS)
        if n_tensors > most:
            raise self.error("too many tensors for this file", 8, n_tensors, f"{most:,}")
        most = (self.file_size - 24) // 14
        if n_keys > most:
            raise self.error("too many keys for this file", 16, n_keys, f"{most:,}")
        metadata = self.metadata(n_keys)
        alignment = self.alignment(metadata)
        infos_offset = self.pos
        tensors = self.tensors(n_tensors, alignment)
        data_offset = -(-self.pos // alignment) * alignment
        self.check_layout(tensors, data_offset)
        infos = tuple(tensors.values())
        return GGUFHeader(
            version, MappingProxyType(metadata), infos, alignment, infos_offset, data_offset,
            self.file_size,
        )  # fmt: skip

    def metadata(self, n_keys: int) -> dict[str, Value]:
        values: dict[str, Value] = {}
        for i in range(n_keys):
            at = self.pos
            key = self.name_of(f"key {i + 1} of {n_keys:,}", MAX_NAME_BYTES)
            if key in values:
                raise self.error("a key stands twice in the header", at, show(key), "once")
            self.keep(128, at)
            values[key] = self.value(self.number("I", show(key)), f"the value of {show(key)}")
        count = values.get("split.count", 1)
        if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= 65_535:
            raise self.error("split.count is wrong", self.pos, show(count), "0 to 65,535")
        return values

    def alignment(self, metadata: dict[str, Value]) -> int:
        value = metadata.get("general.alignment", 32)
        if isinstance(value, bool) or not isinstance(value, int) or value.bit_count() != 1 \
                or not 0 < value <= MAX_ALIGNMENT:  # fmt: skip
            allowed = f"a power of two up to {MAX_ALIGNMENT:,}"
            raise self.error("general.alignment is wrong", self.pos, show(value), allowed)
        return value

    def tensors(self, n_tensors: int, alignment: int) -> dict[int, TensorInfo]:
        """Return the tensors by the position of their entry, in file order."""
        tensors: dict[int, TensorInfo] = {}
        names: set[str] = set()
        for i in range(n_tensors):
            at = self.pos
            name = self.name_of(f"the name of tensor {i + 1}", MAX_TENSOR_NAME_BYTES)
            what = f"tensor {show(name)}"
            self.keep(_TENSOR_COST, at)
            if name in names:
                raise self.error(f"{what} stands twice in the header", at, show(name), "once")
            names.add(name)
            n_dims = self.number("I", what)
            if n_dims > 4:
                raise self.error(f"{what} has too many dimensions", at, n_dims, "0 to 4")
            shape: tuple[int, ...] = tuple(self.number("Q", what) for _ in range(n_dims))
            if 0 in shape or prod(shape) >= 1 << 63:
                raise self.error(f"{what} has an impossible shape", at, shape,
                                 "positive sizes with a product under 2^63")  # fmt: skip
            type_id = self.number("I", what)
            offset = self.number("Q", what)
            if type_id not in TENSOR_TYPES:
                raise self.error(f"{what} has an unknown or removed type", at, type_id,
                                 "the types of ggml.h, 0 to 42",
                                 "get the model in a current quantization")  # fmt: skip
            type_name, block, block_bytes = TENSOR_TYPES[type_id]
            if (shape[0] if shape else 1) % block:
                raise self.error(f"{what} has rows that are no whole {type_name} blocks", at,
                                 shape, f"rows of a multiple of {block} elements")  # fmt: skip
            if offset % alignment:
                raise self.error(f"{what} is not aligned", at, f"offset {offset:,}",
                                 f"multiples of {alignment:,}")  # fmt: skip
            n_bytes = prod(shape) // block * block_bytes
            tensors[at] = TensorInfo(name, shape, type_name, n_bytes, offset)
        return tensors

    def check_layout(self, tensors: dict[int, TensorInfo], data_offset: int) -> None:
        last = data_offset
        for at, info in sorted(tensors.items(), key=lambda item: item[1].offset):
            start = data_offset + info.offset
            if start < last:
                raise self.error(f"tensor {show(info.name)} overlaps the one before it", at,
                                 f"it starts at byte {start:,}", f"from {last:,} on")  # fmt: skip
            last = start + info.n_bytes
        if tensors and last > self.file_size:
            raise self.error("the file is cut short: its tensors end after its end", self.pos,
                             f"{self.file_size:,} bytes", f"{last:,} bytes or a little more",
                             "download the file again; it is "
                             f"{last - self.file_size:,} bytes short")  # fmt: skip
