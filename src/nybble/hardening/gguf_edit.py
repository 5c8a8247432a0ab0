"""A copy of a GGUF with a few tensors multiplied in place and a record of it in the header.

Tensor infos give offsets from the start of the data, which keep; only the key/value section grows,
so everything but it and the named tensors is copied byte by byte.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import BinaryIO

from nybble.errors import ModelFileError, NybbleError
from nybble.hardening.place import disk_errors
from nybble.hardening.scale import Scale
from nybble.hardening.stream import Edit, Writer, by_tensor, differs, edit_of, sha256, sha256_scaled
from nybble.models.file_kinds import show
from nybble.models.gguf_header import read_header
from nybble.models.gguf_types import STRING, GGUFHeader, TensorInfo
from nybble.models.open_file import opened

_COUNTS = struct.Struct("<IQQ")  # after the magic: version, tensors, keys
_KEYS = 4 + _COUNTS.size  # where the keys start


def scale_gguf(
    source: Path,
    target: Path,
    scales: Sequence[Scale],
    record: Mapping[str, str],
    on_progress: Callable[[float], None],
) -> float:
    """Copy a GGUF, multiplying rows of the named tensors.

    Args:
        source: the GGUF, in one file.
        target: file to create; the caller gives a temporary name and renames it.
        scales: what to multiply; each tensor at most once.
        record: keys and texts to append to the header.
        on_progress: called with the fraction done.

    Returns:
        The largest relative rounding error, 0.0 when every product is exact.

    Raises:
        ModelFileError: the source is damaged, split, or cannot be read.
        NybbleError: a tensor is missing or cannot be scaled so, a key is taken, or the disk is
            full.
    """
    header = read_header(source)
    edits = _edits(source, header, scales)
    head, padding = (
        _head(header, record),
        b"\0" * (-_size_before(header, record) % header.alignment),
    )
    with opened(source) as (inp, size), disk_errors(target), target.open("xb") as out:
        writer = Writer(size + len(head), on_progress)
        writer.write(out, head[:_KEYS])
        writer.copy(inp, out, _KEYS, header.infos_offset - _KEYS)
        writer.write(out, head[_KEYS:])
        writer.copy(inp, out, header.infos_offset, _infos_size(header))
        writer.write(out, padding)
        at = header.data_offset
        for edit in sorted(edits.values(), key=lambda e: e.start):
            writer.copy(inp, out, at, edit.start - at)
            writer.scale(inp, out, edit)
            at = edit.start + edit.n_bytes
        writer.copy(inp, out, at, max(header.file_size - at, 0))
    on_progress(1.0)
    return writer.error


def check_gguf(
    source: Path, target: Path, scales: Sequence[Scale], record: Mapping[str, str]
) -> None:
    """Prove that `target` is `source` but for the named tensors and the record.

    By SHA-256: the key/value section, the tensor infos, every other tensor and the padding between
    tensors are the same bytes; the named tensors are the source's times their factors.

    Raises:
        ModelFileError: a file is damaged or cannot be read.
        NybbleError: naming the first difference.
    """
    before, after = read_header(source), read_header(target)
    edits = _edits(source, before, scales)
    with opened(source) as (old, _), opened(target) as (new, _):
        _check_keys(old, new, before, after, record)
        _check_infos(old, new, before, after)
        for tensor in _in_order(before):
            edit = edits.get(tensor.name)
            start = before.data_offset + tensor.offset
            expected = sha256_scaled(old, edit) if edit else sha256(old, start, tensor.n_bytes)
            if sha256(new, after.data_offset + tensor.offset, tensor.n_bytes) != expected:
                raise differs(new.name, f"tensor {show(tensor.name)}")
        for (start, size), gap in zip(_gaps(before), _gaps(after), strict=True):
            same = gap == (start, size) and sha256(new, after.data_offset + start, size) == sha256(
                old, before.data_offset + start, size
            )
            if not same:
                raise differs(new.name, f"what stands between tensors, at byte {start:,} of them,")


def _edits(source: Path, header: GGUFHeader, scales: Sequence[Scale]) -> dict[str, Edit]:
    if header.split_count > 1:
        raise ModelFileError(
            "a GGUF split over several files cannot be hardened", seen=source.name,
            hint="join it with llama-gguf-split --merge",
        )  # fmt: skip
    wanted = by_tensor(scales)
    found = {
        t.name: edit_of(
            t, wanted[t.name], t.shape[::-1], header.data_offset + t.offset, t.type_name
        )
        for t in header.tensors
        if t.name in wanted
    }
    if missing := [name for name in wanted if name not in found]:
        raise NybbleError("the model has no such tensor", seen=f"{source.name}: {missing[0]}",
                          hint="calibrate on this model")  # fmt: skip
    return found


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _appended(record: Mapping[str, str]) -> bytes:
    return b"".join(_text(k) + struct.pack("<I", STRING) + _text(v) for k, v in record.items())


def _head(header: GGUFHeader, record: Mapping[str, str]) -> bytes:
    """The magic and the counts, then the keys to append."""
    taken = [key for key in record if key in header.metadata]
    if taken:
        raise NybbleError("the header has this key already", seen=taken[0],
                          hint="harden the model it was made from")  # fmt: skip
    n_keys = len(header.metadata) + len(record)
    return b"GGUF" + _COUNTS.pack(header.version, len(header.tensors), n_keys) + _appended(record)


def _infos_size(header: GGUFHeader) -> int:
    """Bytes of the tensor infos, without the padding after them.

    Of each: the name and its length, the number of dimensions, these, the type, the offset.
    """
    return sum(len(_text(t.name)) + 4 + 8 * len(t.shape) + 4 + 8 for t in header.tensors)


def _size_before(header: GGUFHeader, record: Mapping[str, str]) -> int:
    """Bytes of the copy up to the padding before its data."""
    return header.infos_offset + len(_appended(record)) + _infos_size(header)


def _check_keys(
    old: BinaryIO, new: BinaryIO, before: GGUFHeader, after: GGUFHeader, record: Mapping[str, str]
) -> None:
    head, size = _head(before, record), before.infos_offset - _KEYS
    if (
        after.infos_offset == before.infos_offset + len(head) - _KEYS
        and sha256(new, 0, _KEYS) == hashlib.sha256(head[:_KEYS]).digest()
        and sha256(new, _KEYS, size) == sha256(old, _KEYS, size)
        and sha256(new, _KEYS + size, len(head) - _KEYS) == hashlib.sha256(head[_KEYS:]).digest()
    ):
        return
    expected = {**before.metadata, **record}
    for wanted, found in zip_longest(expected.items(), after.metadata.items()):
        if repr(wanted) != repr(found):  # a NaN does not equal itself
            raise differs(new.name, f"key {show((wanted or found or ('',))[0])}")
    raise differs(new.name, "the bytes of the keys")


def _check_infos(old: BinaryIO, new: BinaryIO, before: GGUFHeader, after: GGUFHeader) -> None:
    for wanted, found in zip_longest(before.tensors, after.tensors):
        if wanted != found:
            raise differs(new.name, f"the description of tensor {show((wanted or found).name)}")
    size = _infos_size(before)
    if sha256(new, after.infos_offset, size) != sha256(old, before.infos_offset, size):
        raise differs(new.name, "the bytes of the tensor infos")
    end = after.infos_offset + size
    padding = hashlib.sha256(bytes(after.data_offset - end)).digest()
    if sha256(new, end, after.data_offset - end) != padding:
        raise differs(new.name, "the padding before the data")


def _gaps(header: GGUFHeader) -> Iterator[tuple[int, int]]:
    """Start (from the data's) and size of the paddings: before each tensor and after the last."""
    at = 0
    for tensor in _in_order(header):
        yield at, tensor.offset - at
        at = tensor.offset + tensor.n_bytes
    yield at, max(header.file_size - header.data_offset - at, 0)


def _in_order(header: GGUFHeader) -> list[TensorInfo]:
    return sorted(header.tensors, key=lambda t: t.offset)
