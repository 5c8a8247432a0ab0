"""Attention of query rows over one strand's pages by the native kernels.

    refusal(strand) -> None, or why the reference must read it
    attend_strand(strand, rows) -> Partial
    attend_segment(rows, keys, values, offset, count) -> Partial
    unpack(stored, first, count) -> float32 [B, heads, count, D]
    quantize(stored, first, x) -> whether x was finite

All is float32: a normalised result is off by at most 2e-6 plus 2^-22 times the largest sum
|q_i y_i| of its scores, both as shares of the largest value (tests/runtime/native_cases.py,
`error_bound`).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch

from nybble.errors import NybbleError
from nybble.formats.nyb4 import Nyb4
from nybble.runtime import native_abi as abi
from nybble.runtime.layout import PAGE
from nybble.runtime.native import active, library
from nybble.runtime.pages import Pages
from nybble.runtime.reference import Partial, Rows
from nybble.runtime.side import Side

if TYPE_CHECKING:
    from nybble.runtime.strand import Strand  # which imports this module's callers


@dataclass(frozen=True)
class Format:
    """A type as kernels know it.

    Attributes:
        name: the type's.
        dim: size of a head.
        code_bytes: of one head of one token.
        scale_bytes: likewise.
        widths: nyb4: bits of each group, uint8 [heads, groups]; else None.
    """

    name: str
    dim: int
    code_bytes: int
    scale_bytes: int
    widths: np.ndarray | None = None

    @classmethod
    def of(cls, side: Side) -> Format:
        """The format of a side."""
        widths = _widths(side.kind.widths) if isinstance(side.kind, Nyb4) else None
        layout = side.layout
        return cls(side.kind.name, side.dim, len(layout.codes), len(layout.scales), widths)

    def _c(self) -> abi.CFormat:
        at, groups = None, 0
        if self.widths is not None:
            at, groups = self.widths.ctypes.data, self.widths.shape[1]
        kind = abi.KINDS.index(self.name)
        return abi.CFormat(kind, self.dim, self.code_bytes, self.scale_bytes, at, groups)


@lru_cache(maxsize=1024)  # one of every layer and side
def _widths(widths: tuple[tuple[int, ...], ...]) -> np.ndarray | None:
    return np.array(widths, dtype=np.uint8) if widths else None


@dataclass(frozen=True)
class Stored:
    """One side of a segment as a kernel reads it.

    Attributes:
        format: of its rows.
        heads: KV heads.
        table: address of head 0 of each page and batch row, uint64 [pages, B].
    """

    format: Format
    heads: int
    table: np.ndarray

    @classmethod
    def of(cls, side: Side, pages: Pages) -> Stored:
        """A side and its pages."""
        return cls(Format.of(side), pages.heads, pages.table())


@dataclass(frozen=True)
class Rebuilt:
    """Keys as RoPE(weight * turned(y) + centre) of coded values y (csrc/latent.h).

    Attributes:
        weight: float32 [heads, D].
        centre: likewise, or None.
        frequencies: of the pairs (i, i + D/2) that rotate, float32 [pairs].
        position: of the first live token, int64 [B].
        rotation: 64 where values were turned in Hadamard blocks of 64, or 0.
    """

    weight: torch.Tensor
    centre: torch.Tensor | None
    frequencies: torch.Tensor
    position: torch.Tensor
    rotation: int

    def _c(self) -> abi.CLatent:
        return abi.CLatent(
            self.weight.data_ptr(), None if self.centre is None else self.centre.data_ptr(),
            self.frequencies.data_ptr(), self.position.data_ptr(),
            len(self.frequencies), self.rotation,
        )  # fmt: skip


def capable(format: Format) -> str | None:
    """Why the native kernels cannot read a format, or None."""
    kernel = active()
    if not kernel.native:
        return kernel.reason
    if format.name not in abi.KINDS:
        return f"the native kernels do not read {format.name}, only {', '.join(abi.KINDS)}"
    if format.dim > abi.MAX_DIM or format.dim % 16:
        return (
            f"the native kernels take heads of multiples of 16 up to {abi.MAX_DIM}, "
            f"this one has {format.dim}"
        )
    if format.name == "nyb4" and format.widths is None:
        return "nyb4 has no widths before it is calibrated"
    return None


def refusal(strand: Strand) -> str | None:
    """Why the native kernels cannot read a strand, or None."""
    if strand.v_pages.device.type != "cpu":
        return f"the native kernels read memory of the CPU, not of {strand.v_pages.device}"
    if strand.k is None:
        return capable(Format.of(strand.v)) or _latent_refusal(strand)
    return capable(Format.of(strand.k)) or capable(Format.of(strand.v))


def attend_strand(strand: Strand, rows: Rows) -> Partial:
    """Attention over all tokens of a strand; `acc` in the coded domain of its values."""
    values = Stored.of(strand.v, strand.v_pages)
    if strand.k is None or strand.k_pages is None:
        keys: Stored | Rebuilt = _rebuilt(strand)
    else:
        keys = Stored.of(strand.k, strand.k_pages)
    return attend_segment(rows, keys, values, strand.v_pages.offset, strand.count)


def attend_segment(
    rows: Rows, keys: Stored | Rebuilt, values: Stored, offset: int, count: int
) -> Partial:
    """Attention over one segment.

    Args:
        rows: the query rows; `q` in the coded domain of the keys, of rebuilt keys as the model
            has it.
        keys: of the segment.
        values: of the segment.
        offset: dead tokens in front of the first live one on the first page.
        count: live tokens.

    Returns:
        Unnormalised attention, float32.

    Raises:
        NybbleError: shapes that do not belong together, or no memory.
    """
    q = rows.q.float().contiguous()
    batch, heads, height, dim = q.shape
    v_dim = values.format.dim
    m, total = q.new_empty(batch, heads, height), q.new_empty(batch, heads, height)
    acc = q.new_empty(batch, heads, height, v_dim)
    bias = rows.bias
    if bias is not None:
        bias = bias.float().expand(batch, heads, height).contiguous()
    start, stop = rows.start.long().contiguous(), rows.stop.long().contiguous()
    mask = rows.mask
    if mask is not None:
        mask = mask.expand(batch, rows.n, count).contiguous().view(torch.uint8)
    added, strides = rows.added, [0, 0, 0]
    if added is not None:
        added = added.float()
        added = added if added.stride(-1) == 1 else added.contiguous()
        added = added.expand(batch, heads, height, count)
        strides = [added.stride(axis) for axis in range(3)]
    latent = k_pages = None
    if isinstance(keys, Rebuilt):
        latent = keys._c()
        k_format = abi.CFormat(abi.KINDS.index("f32"), dim)
    else:
        k_format = keys.format._c()
        k_pages = keys.table
        _same("pages of K and V", keys.table.shape, values.table.shape)
    _same("size of queries and keys", dim, k_format.dim)
    _same("batch and heads", (batch, heads), (values.table.shape[1], values.heads))
    call = abi.CCall(
        batch, heads, height, rows.n, len(values.table), torch.get_num_threads(),
        offset, count, k_format, values.format._c(),
        None if k_pages is None else k_pages.ctypes.data, values.table.ctypes.data,
        q.data_ptr(), _address(bias), start.data_ptr(), stop.data_ptr(),
        _address(mask), _address(added), *strides, rows.softcap or 0.0, 0,
        None if latent is None else ctypes.pointer(latent),
        m.data_ptr(), total.data_ptr(), acc.data_ptr(),
    )  # fmt: skip
    _done(_kernels().nyb_attend(ctypes.byref(call)))
    return Partial(m, total, acc)


def unpack(stored: Stored, first: int, count: int) -> torch.Tensor:
    """Coded values of tokens, float32 [B, heads, count, D].

    Args:
        stored: the side.
        first: the first token, counted from the start of the first page.
        count: tokens.

    Raises:
        NybbleError: no such tokens.
    """
    shape = (stored.table.shape[1], stored.heads, count, stored.format.dim)
    out = torch.empty(shape, dtype=torch.float32)
    _done(_kernels().nyb_unpack(ctypes.byref(_stretch(stored, first, out))))
    return out


def writes(format: Format) -> str | None:
    """Why `quantize` cannot write a format, or None."""
    if format.name in abi.KINDS and format.name not in abi.WRITTEN:
        return f"the native kernels do not write {format.name}, only {', '.join(abi.WRITTEN)}"
    return capable(format)


def quantize(stored: Stored, first: int, x: torch.Tensor) -> bool:
    """Write tokens into pages, the bytes of formats/.

    Args:
        stored: the side.
        first: where the first token goes, counted from the start of the first page.
        x: in the coded domain, for nyb4 centred and turned; float32 [B, heads, n, D].

    Returns:
        Whether all of x is finite.

    Raises:
        NybbleError: no such places.
    """
    x = x.float().contiguous()
    _same("batch and heads", x.shape[:2], (stored.table.shape[1], stored.heads))
    _same("size of a head", x.shape[3], stored.format.dim)
    status = _kernels().nyb_quantize(ctypes.byref(_stretch(stored, first, x)))
    _done(min(status, abi.OK))
    return bool(status != abi.NONFINITE)


def _stretch(stored: Stored, first: int, x: torch.Tensor) -> abi.CStretch:
    return abi.CStretch(
        x.shape[0], x.shape[1], len(stored.table), torch.get_num_threads(), first, x.shape[2],
        stored.format._c(), stored.table.ctypes.data, x.data_ptr(),
    )  # fmt: skip


def _latent_refusal(strand: Strand) -> str | None:
    """A latent's values may be turned in blocks of 64 or not at all, and scaled by head."""
    codec = strand.v.codec
    if codec.mean is not None or codec.scale is not None or codec.order is not None:
        return "the native kernels rebuild keys only from values without mean, scale or order"
    # nyb4 turns values itself, by 64 where that divides the head (formats/nyb4.py).
    turned = 64 if isinstance(codec.kind, Nyb4) else codec.rotation
    if codec.random or turned not in (0, 64) or codec.kind.name == "int4_per_token_head":
        return "the native kernels rebuild keys only from values turned in blocks of 64 or not"
    if strand.v.dim % 64:
        return f"the native kernels rebuild keys only of multiples of 64, not {strand.v.dim}"
    return None


def _rebuilt(strand: Strand) -> Rebuilt:
    latent, kind = strand.latent, strand.v.kind
    assert latent is not None
    weight = latent.weight.float().expand(strand.v_pages.heads, -1)
    centre = None
    rotation = strand.v.codec.rotation
    if isinstance(kind, Nyb4):
        assert kind.back is not None and kind.centre is not None
        rotation = 64
        centre = (weight * kind.centre[:, 0]).contiguous()
        weight = weight * kind.back[:, 0]
    shift = latent.shift
    if shift is None:
        shift = torch.zeros(strand.v_pages.batch, dtype=torch.long)
    position = (strand.start - shift).expand(strand.v_pages.batch).contiguous()
    return Rebuilt(
        weight.contiguous(), centre, latent.frequencies.float().contiguous(), position, rotation
    )


def _kernels() -> ctypes.CDLL:
    found = library()
    if found is None:
        raise NybbleError("there are no native kernels", seen=active().reason)
    return found


def _address(x: torch.Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _same(what: str, seen: object, wanted: object) -> None:
    if seen != wanted:
        raise NybbleError(f"{what} differ", seen=seen, allowed=str(wanted))


def _done(status: int) -> None:
    if status == abi.NO_MEMORY:
        raise NybbleError("no memory for the native kernels")
    if status != abi.OK:
        raise NybbleError("the native kernels refused a call", seen=f"status {status}")


assert PAGE == 64  # NYB_PAGE of csrc/nybble.h
