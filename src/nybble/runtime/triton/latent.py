"""Attention over a strand that stores values alone, its keys being RoPE(w * V).

Everything that is the same for all tokens is done to the query here, in torch: the norm's weights
and the type's rotation for channels that stay, the position of the first page for those that turn.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch.utils.weak import WeakIdKeyDictionary

from nybble.formats.nyb4 import Nyb4, group_size
from nybble.formats.rotation import rotate, width
from nybble.runtime.latent import Latent
from nybble.runtime.layout import PAGE
from nybble.runtime.reference import Partial, Rows
from nybble.runtime.side import Side
from nybble.runtime.strand import Strand
from nybble.runtime.triton import tune
from nybble.runtime.triton.attend import (
    Stored,
    case_of,
    empty_parts,
    given,
    half_rows,
    joined,
    launched,
    refusal_of,
    split,
)
from nybble.runtime.triton.latent_kernel import latent_kernel

_MIXED = 64  # channels of the only rotation that the kernel turns back
_TABLES = WeakIdKeyDictionary()  # frequencies -> their tables
_LAYERS = WeakIdKeyDictionary()  # weights of a layer's norm -> what is the same at every step


@dataclass(frozen=True)
class Domain:
    """How coded values become values: x = size * H y + centre.

    Attributes:
        mixed: channels that the Hadamard rotation H mixes, 0 for none.
        size: float32 [heads or 1, 1].
        centre: float32 [heads, D], or None for zero.
    """

    mixed: int
    size: torch.Tensor
    centre: torch.Tensor | None


@dataclass(frozen=True)
class Tables:
    """Cosines and sines of places in a page, [2, 64, pairs], and of pages, [2, pages, pairs]."""

    place: torch.Tensor
    page: torch.Tensor


@dataclass(frozen=True)
class Layer:
    """What is the same at every step.

    Attributes:
        side: how values are stored.
        space: how coded values become values.
        stay: w for channels that stay, 0 for others, [D].
        most: of the weights in channels that turn, the largest of each head, [heads, 1, 1].
        places: cosines and sines of places in a page times what the two values of a pair are
            multiplied with: cos first, cos second, sin first, sin second; [heads, 4, 64, pairs].
        centre: added to values in channels that turn before that, [heads, 2 * pairs]; or None.
    """

    side: Side
    space: Domain
    stay: torch.Tensor
    most: torch.Tensor
    places: torch.Tensor
    centre: torch.Tensor | None


@dataclass(frozen=True)
class Queries:
    """The query as the kernel takes it.

    Attributes:
        still: channels that stay, in the coded domain, float32 [B, heads, rows, D].
        turn: first and second halves of pairs that turn, [B, heads, rows, 2 * pairs].
        bias: what the centre adds to scores, [B, heads, rows], or None.
    """

    still: torch.Tensor
    turn: torch.Tensor
    bias: torch.Tensor | None


def domain(side: Side, device: torch.device) -> Domain:
    """How a side's coded values become values."""
    kind = side.kind
    one = torch.ones(1, 1, device=device)
    if not isinstance(kind, Nyb4):
        return Domain(side.codec.rotation, one, None)
    mixed = width("llama", side.dim, "V") or group_size(side.dim, "V")
    size = one if kind.back is None else kind.back.reshape(-1, 1).to(device)
    centre = None if kind.centre is None else kind.centre.reshape(-1, side.dim).to(device)
    return Domain(mixed, size, centre)


def turning(pairs: int, mixed: int) -> tuple[int, int]:
    """Pairs that the kernel turns, a multiple of those it turns at a time, and these."""
    at_a_time = _MIXED if mixed else 32
    return -(-pairs // at_a_time) * at_a_time, at_a_time


def latent_refusal(strand: Strand) -> str | None:
    """Why the kernel cannot read a strand without keys, or None."""
    reason = refusal_of(strand.v, "V")
    if reason is not None or strand.latent is None:
        return reason
    codec, dim = strand.v.codec, strand.v.dim
    mixed = domain(strand.v, torch.device("cpu")).mixed
    if mixed not in (0, _MIXED) or codec.random:
        return "the Triton latent kernel turns rotations of 64 channels back, no others"
    if codec.mean is not None or codec.scale is not None or codec.order is not None:
        return "the Triton latent kernel knows no mean, scale or order around values"
    pairs, at_a_time = turning(len(strand.latent.frequencies), mixed)
    if dim % (2 * at_a_time) or 2 * pairs > dim:
        return f"the Triton latent kernel turns {at_a_time} pairs at a time, not in heads of {dim}"
    return None


def tables(frequencies: torch.Tensor, pairs: int, pages: int) -> Tables:
    """Tables of at least so many pages; angles are exact before their cosine is taken.

    The model itself rounds an angle to float32, so at position p the two differ by up to
    p * 2^-24 radians times the frequency.
    """
    kept: Tables | None = _TABLES[frequencies] if frequencies in _TABLES else None
    if kept is not None and kept.page.shape[1] >= pages and kept.page.shape[2] == pairs:
        return kept
    rate = torch.nn.functional.pad(frequencies.double(), (0, pairs - len(frequencies)))
    count = 1 << max(0, pages - 1).bit_length()

    def both(positions: torch.Tensor) -> torch.Tensor:
        angle = positions.to(rate)[:, None] * rate
        return torch.stack([angle.cos(), angle.sin()]).float()

    made = Tables(both(torch.arange(PAGE)), both(torch.arange(count) * PAGE))
    _TABLES[frequencies] = made
    return made


def layer_of(side: Side, latent: Latent, heads: int, place: torch.Tensor) -> Layer:
    """What is the same at every step of a layer.

    Args:
        side: how values are stored.
        latent: rebuilds keys.
        heads: KV heads.
        place: cosines and sines of places in a page, [2, 64, pairs].
    """
    kept: Layer | None = _LAYERS[latent.weight] if latent.weight in _LAYERS else None
    if kept is not None and kept.side is side:
        return kept
    space = domain(side, place.device)
    half, pairs = side.dim // 2, place.shape[-1]
    stay = latent.weight.float().to(place.device).clone()
    norm = _MIXED**-0.5 if space.mixed else 1.0
    weight = (_pairs(stay, pairs) * space.size * norm).expand(heads, -1)
    stay[:pairs] = stay[half : half + pairs] = 0
    # The largest goes to the query, so that keys stay within fp16.
    most = weight.abs().amax(-1).clamp(min=1e-30)[:, None, None]
    pair = weight.reshape(heads, 1, 2, 1, pairs) / most[..., None, None]
    places = (place[None, :, None] * pair).contiguous()  # [heads, cos and sin, 2, 64, pairs]
    centre = None
    if space.centre is not None:
        centre = _pairs(space.centre, pairs) / (space.size * norm)
        centre = centre.expand(heads, -1).contiguous()
    made = Layer(side, space, stay, most, places, centre)
    _LAYERS[latent.weight] = made
    return made


def _pairs(x: torch.Tensor, pairs: int) -> torch.Tensor:
    """The channels that turn, first ones and second ones, [..., 2 * pairs]."""
    half = x.shape[-1] // 2
    return torch.cat([x[..., :pairs], x[..., half : half + pairs]], -1)


def prepare(q: torch.Tensor, latent: Latent, layer: Layer, first: int) -> Queries:
    """Do to the query what is the same for all tokens.

    Args:
        q: float32 [B, heads, rows, D] as the model has it, scaled.
        latent: rebuilds keys.
        layer: of `layer_of`.
        first: slot of place 0 of the first page.
    """
    half, pairs = q.shape[-1] // 2, layer.places.shape[-1]
    space = layer.space
    stay = q * layer.stay
    still = rotate(stay * space.size[:, None], space.mixed).contiguous()
    bias = None if space.centre is None else (stay * space.centre[:, None]).sum(-1)
    rate = torch.nn.functional.pad(
        latent.frequencies.double(), (0, pairs - len(latent.frequencies))
    ).to(q.device)
    shift = latent.shift
    lag = torch.zeros(1, device=q.device) if shift is None else shift.to(q.device)
    angle = ((first - lag.double())[:, None] * rate)[:, None, None]  # [B or 1, 1, 1, pairs]
    cos, sin = angle.cos(), angle.sin()
    x, y = q[..., :pairs].double(), q[..., half : half + pairs].double()
    turn = torch.cat([x * cos + y * sin, y * cos - x * sin], -1).float() * layer.most
    return Queries(still, turn.contiguous(), bias)


def attend_latent(
    rows: Rows, strand: Strand, values: Stored, how: tune.Launch | None = None
) -> Partial:
    """Attention over a strand without keys.

    Args:
        rows: the query rows; `q` as the model has it, scaled.
        strand: `latent_refusal` found nothing against it.
        values: its pages.
        how: the launch; the table's by default.

    Returns:
        As `attend.attend_segment`; turning adds the rounding of float32 cosines to scores.
    """
    assert strand.latent is not None
    latent, pages = strand.latent, strand.v_pages
    q = rows.q.float()
    batch, heads, height, _ = q.shape
    mixed = domain(strand.v, q.device).mixed
    pairs, at_a_time = turning(len(latent.frequencies), mixed)
    pages_used = -(-(pages.offset + pages.count) // PAGE)
    # What is kept must not be an inference tensor because the first call was in that mode.
    with torch.inference_mode(False), torch.no_grad():
        table = tables(latent.frequencies, pairs, pages_used)
        layer = layer_of(strand.v, latent, heads, table.place)
    made = prepare(q, latent, layer, pages.start - pages.offset)
    bias = made.bias
    if rows.bias is not None:
        bias = rows.bias if bias is None else bias + rows.bias
    args = given(replace(rows, q=made.still, bias=bias))
    half = half_rows(height)

    def run(how: tune.Launch) -> Partial:
        parts = split(q.shape, pages.offset + pages.count, q.device, how)
        out = empty_parts(parts.count, batch, heads, height, values.dim, q.device)
        latent_kernel[(batch * heads, -(-height // half), parts.count)](
            made.still, made.turn, q if layer.centre is None else layer.centre, layer.places,
            *table.page, *args.tensors, values.table, out.m, out.l, out.acc,
            batch, heads, height, rows.n, pages.offset, pages.count, parts.pages, parts.each,
            args.softcap, *args.strides,
            V=values.name, DV=values.dim, CODE_V=values.code_bytes, ROW_V=values.row_bytes,
            GROUP_V=values.group, PAD_V=values.padded, PAIRS=pairs, WIDTH=at_a_time,
            MIXED=bool(mixed), HALF=half, TILE=how.tile, **args.switches,
            HAS_CENTRE=layer.centre is not None,
            num_warps=how.warps, num_stages=how.stages, enable_fp_fusion=True,
        )  # fmt: skip
        return joined(out)

    if how is not None:
        return run(how)
    return launched(run, case_of(values, values, q, "latent"), q.device)
