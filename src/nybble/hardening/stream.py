"""A tensor of a model file read, multiplied and written piece by piece, in constant memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from nybble.errors import ModelFileError, NybbleError
from nybble.hardening.ggml_rows import check_type, scale_blocks
from nybble.hardening.scale import Scale
from nybble.models.file_kinds import show
from nybble.models.gguf_types import TENSOR_TYPES, TensorInfo

_COPIED = 4 << 20  # bytes at a time
_SCALED = 1 << 20  # bytes at a time; float64 copies of a 16-bit tensor take 30 times that
_BLOCKS = {name: (block, size) for name, block, size in TENSOR_TYPES.values()}


@dataclass(frozen=True)
class Edit:
    """A tensor to be rewritten.

    Attributes:
        info: as it stands in the source.
        scale: what its rows are multiplied by.
        row: elements that share a factor.
        start: its first byte in the source file.
        written: type it is written as.
    """

    info: TensorInfo
    scale: Scale
    row: int
    start: int
    written: str

    @property
    def n_bytes(self) -> int:
        """Its size as written."""
        block, size = _BLOCKS[self.written]
        return self.info.n_elements // block * size

    def pieces(self, source: BinaryIO) -> Iterator[tuple[bytes, float]]:
        """The tensor as it is to be written, and each piece's largest relative rounding error.

        Raises:
            ModelFileError: the source cannot be read, or ends early.
            NybbleError: a number leaves the range of its type.
        """
        block, size = _BLOCKS[self.info.type_name]
        n = self.info.n_bytes // size
        source.seek(self.start)
        for first in range(0, n, _SCALED // size):
            count = min(_SCALED // size, n - first)
            raw = np.frombuffer(read(source, count * size), np.uint8).reshape(count, size)
            rows = np.arange(first, first + count) // (self.row // block)
            data, error = scale_blocks(
                raw, self.info.type_name, self.scale.factors[rows], self.scale.offset,
                tensor=self.info.name, written=self.written,
            )  # fmt: skip
            yield data.tobytes(), error


def edit_of(info: TensorInfo, scale: Scale, shape: Sequence[int], start: int, written: str) -> Edit:
    """Check that a tensor can be scaled so.

    Args:
        info: the tensor.
        scale: what to do.
        shape: its shape in torch's order.
        start: its first byte in the file.
        written: type to write it as.

    Raises:
        NybbleError: it is no vector or matrix, has another number of rows, or a type that these
            factors do not fit.
    """
    where = show(info.name)
    if len(shape) not in (1, 2):
        raise NybbleError("only vectors and matrices are scaled", seen=f"{where} is {shape}")
    if scale.factors.shape != shape[:1]:
        raise NybbleError(
            "the scale does not fit the tensor", seen=f"{where} has {shape[0]:,} rows",
            allowed=f"{scale.factors.size:,}", hint="calibrate on this model",
        )  # fmt: skip
    check_type(where, info.type_name, scale.factors, scale.offset)
    if len(shape) == 1 and _BLOCKS[info.type_name][0] > 1:
        raise NybbleError("a quantized vector cannot be scaled", seen=f"{where}: {info.type_name}")
    return Edit(info, scale, shape[1] if len(shape) == 2 else 1, start, written)


def by_tensor(scales: Sequence[Scale]) -> dict[str, Scale]:
    """The scales by the name of their tensor.

    Raises:
        NybbleError: two for one tensor.
    """
    found = {s.tensor: s for s in scales}
    if len(found) != len(scales):
        names = [s.tensor for s in scales]
        twice = next(n for n in names if names.count(n) > 1)
        raise NybbleError("a tensor is to be scaled twice", seen=twice)
    return found


class Writer:
    """Writes a copy and tells how far it is.

    Args:
        total: bytes that will be written.
        on_progress: called with the fraction done.
    """

    def __init__(self, total: int, on_progress: Callable[[float], None]) -> None:
        self.error = 0.0  # largest relative rounding error so far
        self._total, self._done, self._tell = total, 0, on_progress

    def write(self, target: BinaryIO, data: bytes) -> None:
        """Write bytes."""
        target.write(data)
        self._done += len(data)
        self._tell(min(self._done / self._total, 1.0))

    def copy(self, source: BinaryIO, target: BinaryIO, start: int, size: int) -> None:
        """Write `size` bytes of the source as they are."""
        for data in _pieces(source, start, size):
            self.write(target, data)

    def scale(self, source: BinaryIO, target: BinaryIO, edit: Edit) -> None:
        """Write a tensor multiplied."""
        for data, error in edit.pieces(source):
            self.write(target, data)
            self.error = max(self.error, error)


def read(source: BinaryIO, size: int) -> bytes:
    """Exactly `size` bytes.

    Raises:
        ModelFileError: they cannot be read, or the file ends before.
    """
    try:
        data = source.read(size)
    except OSError as e:
        raise ModelFileError("Cannot read the model", seen=f"{source.name}: {e.strerror or e}",
                             hint="check the disk it is on") from e  # fmt: skip
    if len(data) < size:
        raise ModelFileError("The model file became shorter while it was read", seen=source.name,
                             hint="run again when nothing writes to it")  # fmt: skip
    return data


def sha256(source: BinaryIO, start: int, size: int) -> bytes:
    """SHA-256 of a part of a file."""
    digest = hashlib.sha256()
    for data in _pieces(source, start, size):
        digest.update(data)
    return digest.digest()


def sha256_scaled(source: BinaryIO, edit: Edit) -> bytes:
    """SHA-256 of a tensor as it is to be written."""
    digest = hashlib.sha256()
    for data, _ in edit.pieces(source):
        digest.update(data)
    return digest.digest()


def differs(target: str | Path, what: str) -> NybbleError:
    """The error for a copy that is not what it should be."""
    return NybbleError(
        "the copy is not the model it was made from", seen=f"{target}: {what} differs",
        hint="run again with --fresh; if it happens twice, check the disk",
    )  # fmt: skip


def _pieces(source: BinaryIO, start: int, size: int) -> Iterator[bytes]:
    source.seek(start)
    for done in range(0, size, _COPIED):
        yield read(source, min(_COPIED, size - done))
