"""A copy of a model folder with a few tensors of its safetensors multiplied.

Only the files that hold such a tensor are rewritten. In these tensors keep their order; the record
stands in the `__metadata__` of each.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nybble.errors import NybbleError
from nybble.hardening.place import copied_files, disk_errors
from nybble.hardening.scale import Scale
from nybble.hardening.stream import (
    Edit,
    Writer,
    by_tensor,
    differs,
    edit_of,
    read,
    sha256,
    sha256_scaled,
)
from nybble.models.file_kinds import show
from nybble.models.folder import INDEX, weight_files
from nybble.models.gguf_types import TensorInfo
from nybble.models.open_file import opened, read_object
from nybble.models.safetensors_header import SafetensorsHeader, read_header


@dataclass(frozen=True)
class _Shard:
    """A safetensors file and what is to be done to it, by tensor name."""

    header: SafetensorsHeader
    edits: Mapping[str, Edit]

    def written(self) -> list[TensorInfo]:
        """The tensors as they are to be written, in the order of their data."""
        at, found = 0, []
        for tensor in self.header.tensors:
            edit = self.edits.get(tensor.name)
            kind, size = (
                (edit.written, edit.n_bytes) if edit else (tensor.type_name, tensor.n_bytes)
            )
            found.append(TensorInfo(tensor.name, tensor.shape, kind, size, at))
            at += size
        return found

    def metadata(self, record: Mapping[str, str]) -> dict[str, str]:
        """What `__metadata__` is to hold.

        transformers before 5 takes a file without it, and refuses one with it but no "format".
        """
        return {**(self.header.metadata or {"format": "pt"}), **record}


def scale_folder(
    source: Path,
    target: Path,
    scales: Sequence[Scale],
    record: Mapping[str, str],
    on_progress: Callable[[float], None],
) -> float:
    """Copy a model folder, multiplying rows of the named tensors.

    Args:
        source: folder with safetensors.
        target: folder to create; the caller gives a temporary name and renames it.
        scales: what to multiply; each tensor at most once.
        record: texts for the metadata of each rewritten file.
        on_progress: called with the fraction done.

    Returns:
        The largest relative rounding error, 0.0 when every product is exact.

    Raises:
        ModelFileError: the source is damaged or cannot be read.
        NybbleError: a tensor is missing or cannot be scaled so, a key is taken, or the disk is
            full.
    """
    shards = _shards(source, scales, record)
    files = copied_files(source)
    with disk_errors(target):
        target.mkdir()
    writer = Writer(sum(f.stat().st_size for f in files) or 1, on_progress)
    for file in files:
        out = target / file.name
        shard = shards.get(file.name)
        if shard and shard.edits:
            _write_shard(file, out, shard, record, writer)
        elif file.name == INDEX and (text := _index(file, shards)):
            with disk_errors(target):
                out.write_text(text, encoding="utf-8")
        else:
            with opened(file) as (inp, size), disk_errors(target), out.open("xb") as copy:
                writer.copy(inp, copy, 0, size)
    on_progress(1.0)
    return writer.error


def check_folder(
    source: Path, target: Path, scales: Sequence[Scale], record: Mapping[str, str]
) -> None:
    """Prove that `target` is `source` but for the named tensors and the record.

    By SHA-256: every other file and every other tensor are the same bytes (of the index all but
    `total_size`), the named tensors are the source's times their factors.

    Raises:
        ModelFileError: a file is damaged or cannot be read.
        NybbleError: naming the first difference.
    """
    shards = _shards(source, scales, record)
    files = {f.name: f for f in copied_files(source)}
    try:
        there = {f.name for f in target.iterdir()}
    except OSError as e:
        raise NybbleError("cannot read the copy", seen=f"{target}: {e.strerror or e}") from e
    for name in sorted(there ^ set(files)):
        raise differs(target, f"file {show(name)}")
    for name, file in files.items():
        shard = shards.get(name)
        if shard and shard.edits:
            _check_shard(file, target / name, shard, record)
            continue
        text = _index(file, shards) if name == INDEX else None
        with opened(file) as (old, n), opened(target / name) as (new, size):
            if text is not None:
                same = read(new, size) == text.encode()
            else:
                same = n == size and sha256(new, 0, size) == sha256(old, 0, n)
        if not same:
            raise differs(target, f"file {show(name)}")


def _shards(source: Path, scales: Sequence[Scale], record: Mapping[str, str]) -> dict[str, _Shard]:
    """All weight files, by name."""
    wanted = by_tensor(scales)
    shards = {}
    for path in weight_files(source):
        header = read_header(path)
        edits = {
            t.name: edit_of(
                t, wanted.pop(t.name), t.shape, header.data_offset + t.offset, _written(t)
            )
            for t in header.tensors
            if t.name in wanted
        }
        if edits and (taken := [k for k in record if k in header.metadata]):
            raise NybbleError("the metadata has this key already", seen=f"{path}: {taken[0]}",
                              hint="harden the model it was made from")  # fmt: skip
        shards[path.name] = _Shard(header, edits)
    if wanted:
        raise NybbleError("the model has no such tensor", seen=f"{source}: {next(iter(wanted))}",
                          hint="calibrate on this model")  # fmt: skip
    return shards


def _written(tensor: TensorInfo) -> str:
    # Gains in 16 bits become float32: rounded to 16 again, a gain times e would be off by up to
    # 2^-9 (bfloat16), which the output with a 16-bit cache shows. Matrices coarser than F16 are
    # multiplied by powers of two, which is exact.
    widened = len(tensor.shape) == 1 and tensor.type_name in ("F16", "BF16")
    return "F32" if widened else tensor.type_name


def _write_shard(
    source: Path, target: Path, shard: _Shard, record: Mapping[str, str], writer: Writer
) -> None:
    header = shard.header
    with opened(source) as (inp, _), disk_errors(target.parent), target.open("xb") as out:
        writer.write(out, _head(read(inp, header.data_offset)[8:], shard, record))
        at = header.data_offset
        for edit in sorted(shard.edits.values(), key=lambda e: e.start):
            writer.copy(inp, out, at, edit.start - at)
            writer.scale(inp, out, edit)
            at = edit.start + edit.info.n_bytes
        writer.copy(inp, out, at, header.file_size - at)


def _head(old: bytes, shard: _Shard, record: Mapping[str, str]) -> bytes:
    """The length and the JSON, entries in the order they had, padded with spaces to 8 bytes."""
    entries: dict[str, Any] = json.loads(old)
    entries.pop("__metadata__", None)
    for tensor in shard.written():
        offsets = [tensor.offset, tensor.offset + tensor.n_bytes]
        entries[tensor.name].update(dtype=tensor.type_name, data_offsets=offsets)
    about = {"__metadata__": shard.metadata(record)}
    text = json.dumps({**about, **entries}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _index(path: Path, shards: Mapping[str, _Shard]) -> str | None:
    """The index with `total_size` (bytes of all tensors) put right; None if it is, or has none."""
    index = read_object(path)
    about = index.get("metadata")
    right = sum(t.n_bytes for shard in shards.values() for t in shard.written())
    if not isinstance(about, dict) or about.get("total_size", right) == right:
        return None
    about["total_size"] = right
    return json.dumps(index, indent=2) + "\n"


def _check_shard(source: Path, target: Path, shard: _Shard, record: Mapping[str, str]) -> None:
    after = read_header(target)
    where = target.name
    if dict(after.metadata) != shard.metadata(record):
        raise differs(target.parent, f"__metadata__ of {where}")
    written = shard.written()
    if list(after.tensors) != written:
        pairs = zip(written, after.tensors, strict=False)
        names = [show(a.name) for a, b in pairs if a != b] or ["the number of tensors"]
        raise differs(target.parent, f"the header of {where} ({names[0]})")
    with opened(source) as (old, _), opened(target) as (new, _):
        head = _head(read(old, shard.header.data_offset)[8:], shard, record)
        if read(new, after.data_offset) != head:
            raise differs(target.parent, f"the header of {where}")
        for before, tensor in zip(shard.header.tensors, written, strict=True):
            edit = shard.edits.get(tensor.name)
            start = shard.header.data_offset + before.offset
            expected = sha256_scaled(old, edit) if edit else sha256(old, start, before.n_bytes)
            if sha256(new, after.data_offset + tensor.offset, tensor.n_bytes) != expected:
                raise differs(target.parent, f"tensor {show(tensor.name)} of {where}")
