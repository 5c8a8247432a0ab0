"""Keys of nyb4: groups of 1 to 7 bits, each stored as planes of 4, 2 and 1 bits.

Widths differ by head but not by token, so all threads of a program branch alike: a group takes one
product for each plane that it has, and nothing for the others. Unrolled over groups, with every
plane's query prepared ahead, the compiler spilled more than it saved.
"""

# Arguments of kernels are traced, not typed.
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from nybble.runtime.triton.tiles import (
    field,
    field_factor,
    fields,
    merge_halves,
    scales,
    short_fields,
    split_rows,
)


@triton.jit
def plane_product(
    q, at, by, address, token,
    BITS: tl.constexpr, CODE: tl.constexpr, GROUP: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Queries times one plane of a group of nyb4's keys, [HALF, tokens].

    Args:
        q: the queries' channels of this group, float32.
        at: where each row starts, [HALF], -1 for no row.
        by: power of two for each row, [HALF].
        address: of the plane of the page's first token.
        token: places in the page.
        BITS: of the plane; 4 bits lose their zero here.
        CODE: code bytes of a token.
        GROUP: channels of a group.
        HALF: query rows.
    """
    k = tl.arange(0, GROUP)
    zero: tl.constexpr = 8 if BITS == 4 else 0
    if GROUP == 32:
        w = tl.arange(0, BITS)
        words = tl.load(
            address.to(tl.pointer_type(tl.int32)) + token[:, None] * (CODE // 4) + w[None, :]
        )
        x = fields(words, BITS, zero)
        some = tl.load(
            q + at[:, None] + field(k, BITS)[None, :], mask=(at >= 0)[:, None], other=0.0
        )
        some = some * field_factor(k, BITS)[None, :]
    else:
        u = tl.arange(0, BITS)
        units = tl.load(address.to(tl.pointer_type(tl.int16)) + token[:, None] * (CODE // 2) + u)
        x = short_fields(units, BITS, zero)
        some = tl.load(q + at[:, None] + k[None, :], mask=(at >= 0)[:, None], other=0.0)
    return merge_halves(tl.dot(split_rows(some * by[:, None], tl.float16), tl.trans(x)), HALF)


@triton.jit
def plane_scores(
    q, at, by, address, token, widths,
    DIM: tl.constexpr, CODE: tl.constexpr, GROUP: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Scores of nyb4's keys, [HALF, tokens]: one product per plane that a group has.

    Args:
        q: queries, float32.
        at: where each row's channels start, [HALF], -1 for no row.
        by: power of two for each row, [HALF].
        address: of the head's page.
        token: places in the page.
        widths: of this head's groups, uint8.
        DIM: size of a head.
        CODE: code bytes of a token.
        GROUP: channels of a group.
        HALF: query rows.
    """
    count: tl.constexpr = token.shape[0]
    c = tl.arange(0, GROUP)
    out = tl.zeros((HALF, count), tl.float32)
    place = address
    for g in range(DIM // GROUP):
        width = tl.load(widths + g).to(tl.int32)
        here = q + g * GROUP
        s = tl.zeros((HALF, count), tl.float32)
        if (width & 4) != 0:
            part = plane_product(here, at, by, place, token, 4, CODE, GROUP, HALF)
            s += part * (1 << (width & 3)).to(tl.float32)
            place += GROUP // 2
        else:
            # Without that plane zero is 4, or lies between two codes; taken off the sum.
            zero = tl.where(width == 3, 4.0, tl.where(width == 2, 1.5, 0.5))
            row = tl.load(here + at[:, None] + c[None, :], mask=(at >= 0)[:, None], other=0.0)
            s -= (tl.sum(row, 1) * by * zero)[:, None]
        if (width & 2) != 0:
            part = plane_product(here, at, by, place, token, 2, CODE, GROUP, HALF)
            s += part * (1 << (width & 1)).to(tl.float32)
            place += GROUP // 4
        if (width & 1) != 0:
            s += plane_product(here, at, by, place, token, 1, CODE, GROUP, HALF)
            place += GROUP // 8
        d = scales(address + 64 * CODE, token, g, DIM // GROUP, "nyb4", token >= 0)
        out += s * d[None, :]
    return out
