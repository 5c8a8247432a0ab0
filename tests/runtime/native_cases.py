"""Packed segments for the tests of the native kernels, and attention over them in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from nybble.formats.kvtype import KVType
from nybble.formats.nyb4 import Nyb4, allot, group_size
from nybble.formats.registry import kv_type
from nybble.formats.rotation import hadamard
from nybble.runtime.layout import PAGE, layout
from nybble.runtime.native_attend import Format, Rebuilt, Stored, attend_segment
from nybble.runtime.reference import Rows

OFFSET, TOKENS = 7, 150  # three pages, the first and the last in part


def bound(name: str, side: str, heads: int, dim: int) -> KVType:
    """A type of one side; nyb4 with widths of all kinds and nothing else calibrated."""
    kind = kv_type(name).of_side(side)
    if not isinstance(kind, Nyb4):
        return kind
    weight = torch.exp(2 * torch.randn(heads, dim, generator=torch.Generator().manual_seed(5)))
    widths = allot(weight.sort(-1, True).values, dim)
    if side == "V":
        widths = torch.full((heads, dim // group_size(dim, "V")), 4)
    eye = torch.eye(dim).expand(heads, -1, -1) if side == "K" else torch.ones(heads, 1, 1)
    return replace(
        kind, centre=torch.zeros(heads, 1, dim), forth=eye, back=eye,
        widths=tuple(map(tuple, widths.tolist())),
    )  # fmt: skip


@dataclass
class Packed:
    """Tokens of one side in pages, and what they say in the coded domain.

    Attributes:
        stored: as kernels take it.
        y: float64 [B, heads, tokens, D], dead tokens included.
        pages: the memory.
    """

    stored: Stored
    y: torch.Tensor
    pages: list[torch.Tensor]


def packed(name: str, side: str, x: torch.Tensor, *, shared: bool = False) -> Packed:
    """Quantize x [B, heads, n, D]; `shared` gives all batch rows the first one's memory."""
    batch, heads, n, dim = x.shape
    kind = bound(name, side, heads, dim)
    flat = x.float().transpose(0, 1).flatten(1, 2)
    rows = kind.quantize(flat)
    return from_rows(name, side, kind, rows.unflatten(1, (batch, n)).transpose(0, 1), dim,
                     shared=shared)  # fmt: skip


def from_rows(
    name: str, side: str, kind: KVType, rows: torch.Tensor, dim: int, *, shared: bool = False
) -> Packed:
    """Rows of bytes [B, heads, n, row_bytes] laid out in pages; bytes behind the last are 0xff."""
    batch, heads, n, _ = rows.shape
    if shared:
        rows = rows[:1].expand(batch, -1, -1, -1)
    where = layout(kind, side, dim)
    codes, scales = where.split(rows)
    pages = []
    for at in range(0, n, PAGE):
        page = torch.full((1 if shared else batch, heads, PAGE * where.row_bytes), 255).byte()
        size = len(where.codes)
        to_codes = page[..., : PAGE * size].unflatten(-1, (PAGE, size))
        to_scales = page[..., PAGE * size :].unflatten(-1, (PAGE, len(where.scales)))
        here = slice(0, len(page))
        to_codes[:, :, : n - at] = codes[here, :, at : at + PAGE]
        to_scales[:, :, : n - at] = scales[here, :, at : at + PAGE]
        pages.append(page.expand(batch, -1, -1))
    table = np.array(
        [[p.data_ptr() + b * p.stride(0) for b in range(batch)] for p in pages], dtype=np.uint64
    ).reshape(-1, batch)
    widths = None
    if name == "nyb4":
        widths = np.array(kind.widths, dtype=np.uint8)
    format = Format(name, dim, len(where.codes), len(where.scales), widths)
    y = kind.coded(rows.transpose(0, 1).flatten(1, 2), dim).unflatten(1, (batch, n))
    return Packed(Stored(format, heads, table), y.transpose(0, 1).double(), pages)


def attend64(
    rows: Rows, k: torch.Tensor, v: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """m, l and acc in float64; k and v are the live tokens, [B, heads, count, D]."""
    q, n = rows.q.double(), rows.n
    scores = q @ k.double().mT
    if rows.bias is not None:
        scores = scores + rows.bias.double()[..., None]
    if rows.softcap:
        scores = torch.tanh(scores / rows.softcap) * rows.softcap
    if rows.added is not None:
        scores = scores + rows.added.double()
    at = torch.arange(k.shape[2])
    seen = (at >= rows.start[:, None]) & (at < rows.stop[:, None])
    seen = seen.expand(q.shape[0], 1, 1, n, -1)
    if rows.mask is not None:
        seen = seen & rows.mask[:, None, None]
    by_query = scores.unflatten(2, (-1, n)).masked_fill(~seen, -torch.inf)
    scores = by_query.flatten(2, 3)
    m = scores.amax(-1) if k.shape[2] else torch.full(scores.shape[:-1], -torch.inf).double()
    base = torch.where(m == -torch.inf, 0.0, m)
    p = torch.exp(scores - base[..., None])
    # Weights of 0 take nothing, not even from a NaN.
    used = torch.where((p > 0).any(2)[..., None], v.double(), 0.0)
    return m, p.sum(-1), p @ used


def error_bound(rows: Rows, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """How far acc / l may be off, [B, heads, rows, 1]: see native_attend.

    A score is a sum of products, each rounded to 2^-24 of itself; a score off by e makes a weight
    off by e times itself.
    """
    sizes = (rows.q.double().abs() @ k.double().abs().mT).amax(-1, keepdim=True)
    largest = v.double().abs().amax((-2, -1), keepdim=True)
    return (2e-6 + sizes * 2**-22) * largest


def rows_of(q: torch.Tensor, count: int, **more: object) -> Rows:
    """Rows of one position that sees all."""
    given = {"start": torch.zeros(1).long(), "stop": torch.full((1,), count), **more}
    return Rows(q, given.pop("bias", None), **given)  # type: ignore[arg-type]


def tokens(kind: str, batch: int, heads: int, n: int, dim: int) -> torch.Tensor:
    """Keys or values that are hard in one way."""
    generator = torch.Generator().manual_seed(dim + n)
    x = torch.randn(batch, heads, n, dim, generator=generator)
    if kind == "outlier":
        x[..., dim // 3] *= 1000
    elif kind == "equal":
        x = torch.full_like(x, 0.75)
    elif kind == "zeros":
        x = torch.zeros_like(x)
    elif kind == "huge":
        x = x.clamp(-1, 1) * 6e4
    elif kind == "denormal":
        x = x * 1e-39
    return x


def compare(rows: Rows, k: Packed, v: Packed, offset: int = OFFSET) -> None:
    """The kernel's answer is within the bound of the one in float64."""
    count = k.y.shape[2] - offset
    out = attend_segment(rows, k.stored, v.stored, offset, count)
    live_k, live_v = k.y[:, :, offset:], v.y[:, :, offset:]
    m, total, acc = attend64(rows, live_k, live_v)
    seen = total > 0
    assert torch.equal(out.m == -torch.inf, ~seen)
    assert not out.l[~seen].any() and not out.acc[~seen].any()
    off = (out.acc.double() / out.l[..., None] - acc / total[..., None]).abs()
    bound = error_bound(rows, live_k, live_v).expand_as(off)
    assert (off[seen] <= bound[seen]).all(), (off / bound)[seen].max()
    sizes = (rows.q.double().abs() @ live_k.abs().mT).amax(-1)
    assert ((out.m - m).abs()[seen] <= 1e-5 + sizes[seen] * 2**-20).all()


def compare_rebuilt(name: str, dim: int, pairs: int, rotation: int) -> None:
    """Keys made of values, also far on, where the model's own float32 angles are off by 2^-7."""
    batch, heads, count = 2, 2, TOKENS - OFFSET
    v = packed(name, "V", tokens("random", batch, heads, TOKENS, dim))
    weight, centre = torch.rand(heads, dim) + 0.5, torch.randn(heads, dim)
    frequencies = 1e6 ** (-torch.arange(pairs) / max(pairs, 1))
    live = v.y[:, :, OFFSET:]
    values = live
    if rotation:
        values = (live.unflatten(-1, (-1, 64)) @ hadamard(64).double()).flatten(-2)
    base = values * weight[None, :, None].double() + centre[None, :, None].double()
    for first in (0, 250_000):
        position = torch.tensor([first, first + 3])
        at = (position[:, None] + torch.arange(count)).float()
        angle = (at[..., None] * frequencies)[:, None].double()
        a, b = base[..., :pairs], base[..., dim // 2 : dim // 2 + pairs]
        keys = base.clone()
        keys[..., :pairs] = a * angle.cos() - b * angle.sin()
        keys[..., dim // 2 : dim // 2 + pairs] = b * angle.cos() + a * angle.sin()
        rebuilt = Rebuilt(weight, centre, frequencies, position, rotation)
        for height in (1, 3, 8, 11):
            q = torch.randn(batch, heads, height, dim) / dim**0.5
            rows = rows_of(q, count, bias=torch.randn(batch, heads, height))
            out = attend_segment(rows, rebuilt, v.stored, OFFSET, count)
            _, total, acc = attend64(rows, keys, live)
            off = (out.acc.double() / out.l[..., None] - acc / total[..., None]).abs()
            assert (off <= error_bound(rows, keys, live)).all()
