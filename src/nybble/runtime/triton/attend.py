"""Attention of query rows over one strand's pages by the Triton kernels.

    refusal(strand) -> None, or why the reference must read it
    attend_strand(strand, rows) -> Partial
    attend_segment(rows, keys, values, offset, count) -> Partial

Works on CUDA tensors, and on CPU tensors under TRITON_INTERPRET=1.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
import triton

from nybble.errors import NybbleError
from nybble.formats.nyb4 import Nyb4, group_size
from nybble.runtime.layout import PAGE
from nybble.runtime.pages import Pages
from nybble.runtime.reference import Partial, Rows
from nybble.runtime.side import Side
from nybble.runtime.strand import Strand
from nybble.runtime.triton import tune
from nybble.runtime.triton.decode import join_kernel, segment_kernel

TYPES = ("f16", "bf16", "q8_0", "q4_0", "q4_1", "nyb4")
MOST = 512  # largest head: beyond it the sums of a program do not fit its registers
_ROWS = 32  # most query rows of a program; their halves make 64 rows of a product
_PLAIN = ("f16", "bf16")
_FITS: dict[tune.Case, tune.Launch] = {}  # what ran


@dataclass(frozen=True)
class Stored:
    """One side of a segment as a kernel reads it.

    Attributes:
        name: the type's.
        dim: size of a head.
        code_bytes: of one token of one head.
        scale_bytes: likewise.
        table: address of head 0 of each page and batch row, int64 [pages, B] on the device.
        group: channels that share a scale; 1 for plain floats.
        widths: nyb4's keys: bits of each group, uint8 [heads, groups] on the device.
    """

    name: str
    dim: int
    code_bytes: int
    scale_bytes: int
    table: torch.Tensor
    group: int
    widths: torch.Tensor | None = None

    @property
    def row_bytes(self) -> int:
        """Bytes of one token of one head."""
        return self.code_bytes + self.scale_bytes

    @property
    def padded(self) -> int:
        """Power of two that holds the channels of plain floats, the blocks of other types."""
        return int(triton.next_power_of_2(self.dim // self.group))


@lru_cache(maxsize=256)
def _on_device(widths: tuple[tuple[int, ...], ...], device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):
        return torch.tensor(widths, dtype=torch.uint8, device=device)


def refusal_of(side: Side, which: str) -> str | None:
    """Why the kernels cannot read a side, or None.

    Args:
        side: the side.
        which: "K" or "V".
    """
    kind, dim = side.kind, side.dim
    if kind.name not in TYPES:
        return f"the Triton kernels do not read {kind.name}, only {', '.join(TYPES)}"
    if dim > MOST:
        return f"the Triton kernels take heads of up to {MOST}, this one has {dim}"
    if isinstance(kind, Nyb4) and which == "V" and {b for w in kind.widths for b in w} != {4}:
        return "the Triton kernels read nyb4 values of 4 bits in every group only"
    return None


def refusal(strand: Strand) -> str | None:
    """Why the kernels cannot read a strand, or None."""
    if strand.k is None:
        from nybble.runtime.triton.latent import latent_refusal

        return latent_refusal(strand)
    return refusal_of(strand.k, "K") or refusal_of(strand.v, "V")


def stored(side: Side, pages: Pages, which: str) -> Stored:
    """A side and its pages as a kernel reads them."""
    kind, dim = side.kind, side.dim
    widths = None
    group = 1 if kind.name in _PLAIN else 32
    if isinstance(kind, Nyb4):
        group = group_size(dim, which)
        if which == "K":
            widths = _on_device(kind.widths, pages.device)
    codes, scales = len(side.layout.codes), len(side.layout.scales)
    return Stored(kind.name, dim, codes, scales, pages.device_table(), group, widths)


def attend_strand(strand: Strand, rows: Rows) -> Partial:
    """Attention over all tokens of a strand; `acc` in the coded domain of its values."""
    values = stored(strand.v, strand.v_pages, "V")
    if strand.k is None or strand.k_pages is None:
        from nybble.runtime.triton.latent import attend_latent

        return attend_latent(rows, strand, values)
    keys = stored(strand.k, strand.k_pages, "K")
    return attend_segment(rows, keys, values, strand.v_pages.offset, strand.count)


@dataclass(frozen=True)
class Given:
    """What both kernels are called with besides pages: tensors, sizes and switches."""

    tensors: tuple[torch.Tensor, ...]
    strides: tuple[int, int, int]
    softcap: float
    switches: dict[str, bool]


def given(rows: Rows) -> Given:
    """Rows as a kernel takes them; what is absent is stood for by `q`, which is then not read."""
    q = rows.q
    batch, heads, count, _ = q.shape
    bias = q if rows.bias is None else rows.bias.float().expand(q.shape[:3]).contiguous()
    mask = q if rows.mask is None else rows.mask.to(torch.uint8).contiguous()
    added, strides = q, (0, 0, 0)
    if rows.added is not None:
        added = rows.added.float()
        added = added if added.stride(-1) == 1 else added.contiguous()
        added = added.expand(batch, heads, count, -1)
        strides = (added.stride(0), added.stride(1), added.stride(2))
    spans = torch.stack([rows.start, rows.stop]).to(torch.int32).to(q.device)
    return Given(
        (bias, mask, added, spans),
        strides,
        float(rows.softcap or 0.0),
        {
            "HAS_BIAS": rows.bias is not None,
            "HAS_MASK": rows.mask is not None,
            "HAS_ADDED": rows.added is not None,
            "HAS_CAP": bool(rows.softcap),
        },
    )


def half_rows(count: int) -> int:
    """Query rows of a program: at least 8, so that with their halves they fill 16."""
    return min(_ROWS, max(8, int(triton.next_power_of_2(count))))


@dataclass(frozen=True)
class Parts:
    """How the context is split.

    Attributes:
        how: the launch.
        pages: of the segment.
        each: pages of a part.
    """

    how: tune.Launch
    pages: int
    each: int

    @property
    def count(self) -> int:
        """Parts."""
        return -(-self.pages // self.each)


def split(shape: torch.Size, tokens: int, device: torch.device, how: tune.Launch) -> Parts:
    """Split so many tokens, dead ones included, for queries [B, heads, rows, D]."""
    batch, heads, height, _ = shape
    pages = max(1, -(-tokens // PAGE))
    programs = batch * heads * -(-height // half_rows(height))
    each = tune.pages_of_part(pages, programs, tune.multiprocessors(device), how)
    return Parts(how, pages, each)


def launched(
    run: Callable[[tune.Launch], Partial], case: tune.Case, device: torch.device
) -> Partial:
    """Run with the table's launch, or the largest below it that the chip has memory for."""
    how: tune.Launch | None = _FITS.get(case) or tune.launch(case)
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        while how is not None:
            try:
                out = run(how)
            except triton.runtime.errors.OutOfResources:
                how = tune.smaller(how)
            else:
                _FITS[case] = how
                return out
    raise NybbleError(
        "this GPU has too little shared memory for the attention kernel", seen=str(case),
        hint="the model on the CPU",
    )  # fmt: skip


def attend_segment(
    rows: Rows,
    keys: Stored,
    values: Stored,
    offset: int,
    count: int,
    how: tune.Launch | None = None,
) -> Partial:
    """Attention over one segment.

    Args:
        rows: the query rows; `q` in the coded domain of the keys, on the pages' device.
        keys: of the segment.
        values: of the segment.
        offset: dead tokens in front of the first live one on the first page.
        count: live tokens.
        how: the launch; the table's by default.

    Returns:
        Unnormalised attention, float32. Relative to the sum of |weight * value| it is off by
        about 2^-20 (tests/runtime/test_triton_attend.py), or 2^-15 where a side is bf16, whose
        queries or weights are split in bf16.
    """
    q = rows.q.float().contiguous()
    batch, heads, height, _ = q.shape
    args = given(replace(rows, q=q))
    half = half_rows(height)

    def run(how: tune.Launch) -> Partial:
        parts = split(q.shape, offset + count, q.device, how)
        out = empty_parts(parts.count, batch, heads, height, values.dim, q.device)
        segment_kernel[(batch * heads, -(-height // half), parts.count)](
            q, *args.tensors, keys.table, values.table,
            q if keys.widths is None else keys.widths, out.m, out.l, out.acc,
            batch, heads, height, rows.n, offset, count, parts.pages, parts.each, args.softcap,
            *args.strides,
            K=keys.name, DK=keys.dim, CODE_K=keys.code_bytes, ROW_K=keys.row_bytes,
            GROUP_K=keys.group, V=values.name, DV=values.dim, CODE_V=values.code_bytes,
            ROW_V=values.row_bytes, GROUP_V=values.group, PAD_K=keys.padded, PAD_V=values.padded,
            HALF=half, TILE=how.tile, **args.switches,
            num_warps=how.warps, num_stages=how.stages, enable_fp_fusion=True,
        )  # fmt: skip
        return joined(out)

    return run(how) if how is not None else launched(run, case_of(keys, values, q), q.device)


def case_of(keys: Stored, values: Stored, q: torch.Tensor, kind: str = "") -> tune.Case:
    """What a launch for these is chosen by."""
    bits = round(keys.code_bytes * 8 / keys.dim)
    return tune.Case(tune.capability(q.device), max(keys.dim, values.dim), bits, kind)


def empty_parts(
    parts: int, batch: int, heads: int, height: int, dim: int, device: torch.device
) -> Partial:
    """Room for what each part of the context gives."""
    m = torch.empty(parts, batch, heads, height, device=device)
    acc = torch.empty(parts, batch, heads, height, dim, device=device)
    return Partial(m, torch.empty_like(m), acc)


def joined(parts: Partial) -> Partial:
    """Parts [parts, B, heads, rows] as one, by log-sum-exp."""
    if parts.m.shape[0] == 1:
        return Partial(parts.m[0], parts.l[0], parts.acc[0])
    count, batch, heads, height, dim = parts.acc.shape
    out = empty_parts(1, batch, heads, height, dim, parts.m.device)
    join_kernel[(batch * heads * height,)](
        parts.m, parts.l, parts.acc, out.m, out.l, out.acc, batch * heads * height, count,
        DV=dim, PAD=triton.next_power_of_2(dim), num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    return Partial(out.m[0], out.l[0], out.acc[0])
