"""Cases for the Triton kernels, run in the interpreter's process (triton_child.py).

The expected values are float64, from the bytes in the pages by formats/'s own code.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from nybble.formats.codec import Codec
from nybble.formats.nyb4 import Nyb4, group_size, total_width
from nybble.formats.pack import blocks
from nybble.formats.registry import kv_type
from nybble.formats.search import Searched
from nybble.runtime.latent import Latent
from nybble.runtime.layout import layout
from nybble.runtime.pages import Pages
from nybble.runtime.reference import Partial, Rows
from nybble.runtime.side import Side
from nybble.runtime.strand import Strand


@dataclass(frozen=True)
class Case:
    """One call of a kernel.

    Attributes:
        k, v: types; k is "" for a latent strand.
        k_dim, v_dim: sizes of a head.
        group, n: query heads of a KV head, queries.
        count, drop: live tokens, dead ones in front.
        data: "normal", "outlier", "equal", "zero", "huge" or "tiny".
        extra: any of "mask", "bias", "added", "cap".
        span: tokens each query sees: "causal", "window", "none" or "some" (rows without any).
        repeat: how often one row of the batch is repeated, seen through stride 0.
        rotation, pairs: of a latent strand.
        tile, pages: tokens of a step, fewest pages of a part.
    """

    k: str = "q4_0"
    v: str = "q4_0"
    k_dim: int = 64
    v_dim: int = 64
    batch: int = 1
    heads: int = 2
    group: int = 2
    n: int = 1
    count: int = 130
    drop: int = 5
    data: str = "normal"
    extra: tuple[str, ...] = ()
    span: str = "causal"
    repeat: int = 0
    rotation: int = 0
    pairs: int = 0
    tile: int = 64
    pages: int = 1


def _values(case: Case, dim: int) -> torch.Tensor:
    x = torch.randn(case.batch, case.heads, case.count + case.drop, dim)
    if case.data == "outlier":
        x[..., dim // 3] *= 1000
    elif case.data == "equal":
        x[:] = 1.5
    elif case.data == "zero":
        x[:] = 0
        x[:, :, ::3] = torch.randn_like(x[:, :, ::3])
    elif case.data == "huge":
        x = x / x.abs().amax() * 6e4
    elif case.data == "tiny":
        x *= 1e-6  # scales of q4_0 are fp16's denormals
    return x


def side(name: str, which: str, dim: int, heads: int, rotation: int = 0) -> Side:
    """A side without a calibration; nyb4 gets widths of its own for every head."""
    kind = kv_type(name).of_side(which)
    if isinstance(kind, Nyb4):
        groups = dim // group_size(dim, which)
        widths = ((4,) * groups,) * heads
        if which == "K":
            widths = tuple(_widths(groups, total_width(dim, "K"), head) for head in range(heads))
        size = torch.linspace(0.5, 2, heads)[:, None, None]
        centre = torch.linspace(-1, 1, dim).expand(heads, 1, dim)
        kind = replace(kind, centre=centre, forth=1 / size, back=size, widths=widths)
        if which == "K":
            eye = torch.eye(dim).expand(heads, -1, -1)
            kind = replace(kind, forth=eye, back=eye)
    return Side(Codec(kind, kind.reads, rotation=rotation), dim, layout(kind, which, dim))


def _widths(groups: int, total: int, head: int) -> tuple[int, ...]:
    found = [1 + (3 * g + head) % 7 for g in range(groups)]
    while sum(found) != total:
        step = 1 if sum(found) < total else -1
        found[found.index(min(found) if step > 0 else max(found))] += step
    return tuple(found)


def _pages(case: Case, of: Side) -> Pages:
    pages = Pages(of.layout, case.heads, case.batch, torch.device("cpu"))
    pages.append(*of.store(_values(case, of.dim)))
    pages.drop(case.drop)
    if case.repeat:
        pages.repeat(case.repeat)
    return pages


def _rows(case: Case, dim: int) -> Rows:
    batch, n, count = case.batch * max(1, case.repeat), case.n, case.count
    height = case.group * n
    q = torch.randn(batch, case.heads, height, dim) * 2 * dim**-0.5
    stop = torch.arange(count - n, count) + 1
    start = torch.zeros(n, dtype=torch.long)
    if case.span == "window":
        start = stop - 40
    elif case.span == "none":
        stop = start.clone()
    elif case.span == "some":
        stop[0] = start[0] = 7
    mask = torch.rand(batch, n, count) > 0.3 if "mask" in case.extra else None
    added = None
    if "added" in case.extra:
        added = torch.randn(batch, 1, height, count)
        added[..., ::5] = -torch.inf
    return Rows(
        q, torch.randn(batch, case.heads, height) if "bias" in case.extra else None,
        start, stop, mask, added, 3.0 if "cap" in case.extra else None,
    )  # fmt: skip


@dataclass(frozen=True)
class Expected:
    """The answer in float64, and what its errors are measured by."""

    part: Partial
    l_size: torch.Tensor
    acc_size: torch.Tensor


def _size(x: torch.Tensor, name: str) -> torch.Tensor:
    """How large the terms are that make up stored values."""
    if name != "q4_1":
        return x.abs()
    # A small value is the difference of a large product and a large minimum.
    return blocks(x.abs(), 32).amax(-1).repeat_interleave(32, -1)


def _exact(rows: Rows, k: torch.Tensor, v: torch.Tensor, case: Case) -> Expected:
    """What `rows` get from keys and values, all in float64."""
    q = rows.q.double()
    s = q @ k.mT
    # A score is off by rounding in proportion to what it is summed from; weights are as much.
    loose = 1 + (q.abs() @ _size(k, case.k).mT).amax(-1, keepdim=True)
    if rows.bias is not None:
        s = s + rows.bias[..., None]
    if rows.softcap is not None:
        s = torch.tanh(s / rows.softcap) * rows.softcap
    if rows.added is not None:
        s = s + rows.added
    at = torch.arange(k.shape[2])
    sees = (at >= rows.start[:, None]) & (at < rows.stop[:, None])
    if rows.mask is not None:
        sees = sees & rows.mask[:, None, None]
    shape = s.shape
    s = s.unflatten(2, (-1, rows.n)).masked_fill(~sees, -torch.inf).view(shape)
    m = s.amax(-1)
    p = torch.exp(s - torch.where(m == -torch.inf, 0.0, m)[..., None])
    size = _size(v, case.v)
    # Weights below 2^-36 of the largest may vanish.
    floor = size.amax((-1, -2), keepdim=True) * 2**-14
    total = p.sum(-1)
    return Expected(Partial(m, total, p @ v), loose[..., 0] * total, loose * (p @ size + floor))


def strand_and_rows(case: Case) -> tuple[Strand, Rows]:
    """The tokens and the queries of a case."""
    v = side(case.v, "V", case.v_dim, case.heads, case.rotation)
    if case.k:
        k = side(case.k, "K", case.k_dim, case.heads)
        return Strand(k, v, _pages(case, k), _pages(case, v)), _rows(case, case.k_dim)
    shift = torch.arange(case.batch * max(1, case.repeat)) * 3
    latent = Latent(torch.randn(case.v_dim), torch.rand(case.pairs), shift)
    return Strand(None, v, None, _pages(case, v), latent), _rows(case, case.v_dim)


def attend(case: Case) -> float:
    """Run a case.

    Returns:
        The largest error, in units of 2^-22 times what the sum is made of.
    """
    from nybble.runtime.triton import attend as kernels
    from nybble.runtime.triton import latent as latents
    from nybble.runtime.triton import tune

    torch.manual_seed(0)
    strand, rows = strand_and_rows(case)
    assert kernels.refusal(strand) is None
    v, v_pages = strand.v, strand.v_pages
    values = kernels.stored(v, v_pages, "V")
    y = v.coded(*v_pages.read(0, case.count)).double()
    how = tune.Launch(tile=case.tile, pages=case.pages, waves=64)
    if strand.k is not None and strand.k_pages is not None:
        keys = strand.k.coded(*strand.k_pages.read(0, case.count)).double()
        packed = kernels.stored(strand.k, strand.k_pages, "K")
        run = kernels.attend_segment(rows, packed, values, v_pages.offset, case.count, how)
    else:
        assert strand.latent is not None
        x = v.sum_out(y.float(), torch.ones_like(y[..., :1]).float())
        keys = _keys(strand.latent, x, v_pages)
        run = latents.attend_latent(rows, strand, values, how)
    expected = _exact(rows, keys, y, case)
    want = expected.part
    assert run.m.dtype == run.l.dtype == run.acc.dtype == torch.float32
    assert torch.equal(run.m == -torch.inf, want.m == -torch.inf)
    seen = want.m > -torch.inf
    # Both sides in the units of the expected maximum.
    fade = torch.where(seen, torch.exp(run.m.double() - want.m), 0.0)
    off = (run.acc * fade[..., None] - want.acc).abs() / expected.acc_size.clamp(min=1e-300)
    off_total = (run.l * fade - want.l).abs() / expected.l_size.clamp(min=1e-300)
    assert not run.acc[~seen].any() and not run.l[~seen].any()
    return max(float(off.amax()), float(off_total.amax())) * 2**22


def _keys(latent: Latent, values: torch.Tensor, pages: Pages) -> torch.Tensor:
    """RoPE(w * V) in float64."""
    assert latent.shift is not None
    x = values.double() * latent.weight.double()
    half, pairs = x.shape[-1] // 2, len(latent.frequencies)
    positions = torch.arange(pages.start, pages.stop)[None] - latent.shift[:, None]
    angle = positions[:, None, :, None].double() * latent.frequencies.double()
    first, second = x[..., :pairs], x[..., half : half + pairs]
    out = x.clone()
    out[..., :pairs] = first * angle.cos() - second * angle.sin()
    out[..., half : half + pairs] = second * angle.cos() + first * angle.sin()
    return out


def nasty(batch: int, heads: int, n: int, dim: int) -> torch.Tensor:
    """Values whose blocks try what casts and comparisons do not agree on."""
    x = torch.randn(batch, heads, n, dim)
    f = x.view(-1, 32)
    f[0], f[1], f[2] = 0.0, -0.0, 1.0
    f[2, 5] = -1.0
    f[3] = torch.nan
    f[4, 3] = f[5, 31] = torch.nan
    f[6, 0], f[7, 7] = torch.inf, -torch.inf
    f[8], f[9], f[10], f[11] = f[8] * 1e-40, f[9] * 1e-44, f[10] * 1e38, f[11] * 6e4
    f[12] = (torch.arange(32) - 16) / 2
    f[13] = (torch.arange(32) - 16) / 2 + 0.25
    f[14] = torch.round(f[14] * 4) / 8
    f[15], f[16] = f[15] * 1e5, 1e-45
    f[17, :2] = torch.tensor([torch.inf, torch.nan])
    return x


def append(name: str, dim: int) -> int:
    """Append nasty tokens across the end of a page; returns how many bytes differ."""
    from nybble.runtime.triton.append import write, writes

    torch.manual_seed(1)
    of = side(name, "V", dim, 2)
    pages = Pages(of.layout, 2, 2, torch.device("cpu"))
    pages.append(*of.store(torch.zeros(2, 2, 60, dim)))
    assert writes(of) is None
    x = nasty(2, 2, 9, dim)
    write(of, pages, x)
    got = torch.cat(pages.read(60, 69), -1)
    before = torch.cat(pages.read(0, 60), -1)
    assert torch.equal(before, torch.cat(of.store(torch.zeros(2, 2, 60, dim)), -1))
    return int((got != torch.cat(of.store(x), -1)).sum())


def refusals() -> dict[str, str | None]:
    """What the kernels say of sides they may or may not read."""
    from nybble.runtime.triton.append import writes
    from nybble.runtime.triton.attend import refusal, refusal_of

    def latent(name: str, dim: int, pairs: int, rotation: int) -> str | None:
        v = side(name, "V", dim, 1, rotation)
        pages = Pages(v.layout, 1, 1, torch.device("cpu"))
        return refusal(Strand(None, v, None, pages, Latent(torch.ones(dim), torch.ones(pairs))))

    plain = kv_type("q4_0")
    return {
        "writes q4_0": writes(side("q4_0", "V", 64, 1)),
        "writes searched": writes(
            replace(side("q4_0", "V", 64, 1), codec=Codec(Searched.of(plain), plain.reads))
        ),
        "writes f16": writes(side("f16", "V", 64, 1)),
        "q4_0": refusal_of(side("q4_0", "K", 128, 1), "K"),
        "q5_1": refusal_of(side("q5_1", "K", 128, 1), "K"),
        "1024": refusal_of(side("q4_0", "K", 1024, 1), "K"),
        "latent": latent("q4_0", 512, 64, 64),
        "latent of 32": latent("q4_0", 512, 64, 32),
        "latent, small": latent("q4_0", 64, 8, 64),
        "latent, all pairs": latent("q4_0", 128, 64, 64),
    }
