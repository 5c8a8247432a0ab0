"""Attention where keys follow from values, K = RoPE(w * V): one stored row serves both.

A tile is unpacked once: as it lies it is multiplied with the weights, and turned around with the
queries. Channels that do not rotate need no more than w folded into the query. The others, a
quarter of Gemma 4's, are unpacked once more, turned back from the type's Hadamard rotation (its
entries are signs, so that is one more exact product), and rotated.

No angle is computed per token: position = base of the page + place in the page, so the query is
rotated by the base, a row of a small table, and keys by the place, a table of 64 rows.
"""

# Arguments of kernels are traced, not typed.
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from nybble.runtime.triton.decode import (
    FAR,
    RAISE,
    SHIFT,
    SIZES,
    add_blocks,
    finish_scores,
    float_tile,
    key_words,
    lift,
    product,
    softmax_step,
    store_blocks,
    value_codes,
)
from nybble.runtime.triton.tiles import (
    channel,
    factor,
    merge_halves,
    minima,
    power_of_two,
    scales,
    split_blocks,
    split_rows,
    unpack,
)


@triton.jit
def signs(place, KIND: tl.constexpr, GROUP: tl.constexpr, FIRST: tl.constexpr):
    """Rows of 64 x 64 Hadamard signs in the order of an unpacked block, fp16 [GROUP, 64].

    Row k is that of channel FIRST + channel(k), times what the code in place k lacks.
    """
    x = (FIRST + channel(place, KIND, GROUP))[:, None] & tl.arange(0, 64)[None, :]
    x = x ^ (x >> 4)
    x = x ^ (x >> 2)
    x = x ^ (x >> 1)
    sign = 1.0 - 2.0 * (x & 1).to(tl.float32)
    return (sign * factor(place, KIND)[:, None]).to(tl.float16)


@triton.jit
def block_scales(
    address, place, first, valid,
    V: tl.constexpr, DV: tl.constexpr, CODE: tl.constexpr, GROUP: tl.constexpr,
    MIXED: tl.constexpr,
):  # fmt: skip
    """Scales and minima of the block of a channel and of the next one, [tokens] each.

    Zeros for the next block where blocks are not MIXED, and for minima but q4_1's.
    """
    base = address + 64 * CODE
    blocks: tl.constexpr = DV // GROUP
    block = first // GROUP
    d = scales(base, place, block, blocks, V, valid)
    d_next, least, least_next = d * 0.0, d * 0.0, d * 0.0
    if MIXED:
        d_next = scales(base, place, block + 1, blocks, V, valid)
    if V == "q4_1":
        least = minima(base, place, block, blocks, valid)
        if MIXED:
            least_next = minima(base, place, block + 1, blocks, valid)
    return d, d_next, least, least_next


@triton.jit
def bound(d, d_next, least, least_next):
    """Roughly the size of a block's codes times scales over 16, [tokens]."""
    low = tl.maximum(tl.abs(least), tl.abs(least_next)) * 0.0625
    return tl.maximum(tl.maximum(tl.abs(d), tl.abs(d_next)), low)


@triton.jit
def turning_values(
    address, place, first, by, d, d_next, least, least_next,
    V: tl.constexpr, CODE: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr,
    MIXED: tl.constexpr,
):  # fmt: skip
    """Values of WIDTH channels from `first` on, times `by`, float32 [tokens, WIDTH].

    Turned back, but for the factor 1/8 of the Hadamard matrix, where blocks are MIXED by a
    rotation; in the order of `channel` where they are not.
    """
    k = tl.arange(0, GROUP)
    block = first // GROUP
    codes = unpack(key_words(address, place, block, CODE, GROUP, V), V)
    if MIXED:
        out = tl.dot(codes, signs(k, V, GROUP, 0)) * (d * by)[:, None]
        codes = unpack(key_words(address, place, block + 1, CODE, GROUP, V), V)
        out += tl.dot(codes, signs(k, V, GROUP, GROUP)) * (d_next * by)[:, None]
        if V == "q4_1":
            # A block's minimum is a constant, which only the signs of channels 0 and 32 keep.
            c = tl.arange(0, WIDTH)
            both, apart = (least + least_next) * by, (least - least_next) * by
            out += both[:, None] * tl.where(c == 0, GROUP, 0)[None, :]
            out += apart[:, None] * tl.where(c == GROUP, GROUP, 0)[None, :]
    else:
        out = codes.to(tl.float32) * factor(k, V)[None, :] * (d * by)[:, None]
        if V == "q4_1":
            out += (least * by)[:, None]
    return out


@triton.jit
def plain_values(
    address, place, first, valid, V: tl.constexpr, DV: tl.constexpr, WIDTH: tl.constexpr
):
    """Plain floats of WIDTH channels from `first` on, float32 [tokens, WIDTH]."""
    dtype: tl.constexpr = tl.bfloat16 if V == "bf16" else tl.float16
    at = place[:, None] * DV + first + tl.arange(0, WIDTH)[None, :]
    pointers = address.to(tl.pointer_type(dtype)) + at
    return tl.load(pointers, mask=valid[:, None], other=0.0).to(tl.float32)


@triton.jit
def exact_scores(q, x):
    """Queries in halves times float32 keys [tokens, n], float32 [2 * rows, tokens]."""
    high = x.to(tl.float16)
    low = (x - high.to(tl.float32)).to(tl.float16)
    return tl.dot(q, tl.trans(high)) + tl.dot(q, tl.trans(low))


@triton.jit(do_not_specialize=SIZES)
def latent_kernel(
    q, turn, centre, place_turns, base_cos, base_sin,
    bias, mask, added, spans, v_table, m_out, l_out, acc_out,
    B, H, R, n, offset, count, pages, part, softcap, added_batch, added_head, added_row,
    V: tl.constexpr, DV: tl.constexpr, CODE_V: tl.constexpr, ROW_V: tl.constexpr,
    GROUP_V: tl.constexpr, PAD_V: tl.constexpr,
    PAIRS: tl.constexpr, WIDTH: tl.constexpr, MIXED: tl.constexpr,
    HALF: tl.constexpr, TILE: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr, HAS_ADDED: tl.constexpr,
    HAS_CAP: tl.constexpr, HAS_CENTRE: tl.constexpr,
):  # fmt: skip
    """One part of one head; grid (B * H, row blocks, parts). See latent.py for the arguments.

    PAIRS is a multiple of WIDTH, the channels that are turned back and rotated at a time.
    """
    bh = tl.program_id(0)
    b, h = bh // H, bh % H
    row = tl.program_id(1) * HALF + tl.arange(0, HALF)
    live = row < R
    position = row % n
    # What lies outside of the tokens, and rows that are none, are nobody's range.
    start = tl.maximum(tl.load(spans + position, mask=live, other=FAR), 0)
    stop = tl.minimum(tl.load(spans + n + position, mask=live, other=0), count)
    first_page = tl.program_id(2) * part
    lo = tl.maximum(tl.min(start, 0), first_page * 64 - offset)
    hi = tl.minimum(tl.max(stop, 0), tl.minimum(first_page + part, pages) * 64 - offset)
    PLAIN: tl.constexpr = V == "f16" or V == "bf16"
    TYPE: tl.constexpr = tl.bfloat16 if V == "bf16" else tl.float16

    # Queries of the channels that stay: [HALF, D], or [blocks, HALF, GROUP] in unpacked order.
    at = (bh * R + row) * DV
    if PLAIN:
        c = tl.arange(0, PAD_V)
        still = tl.load(
            q + at[:, None] + c[None, :], mask=live[:, None] & (c < DV)[None, :], other=0.0
        )
        by, back = power_of_two(tl.max(tl.abs(still), 1), SHIFT)
        queries = split_rows(still * by[:, None], TYPE)
    else:
        k = tl.arange(0, GROUP_V)
        block = tl.arange(0, PAD_V)
        where = block[:, None, None] * GROUP_V + channel(k, V, GROUP_V)[None, None, :]
        still = tl.load(
            q + at[None, :, None] + where, mask=live[None, :, None] & (where < DV), other=0.0
        )
        by, back = power_of_two(tl.max(tl.max(tl.abs(still), 2), 0), SHIFT)
        still = still * by[None, :, None]
        sums = tl.sum(still, 2)
        queries = split_blocks(still * factor(k, V)[None, None, :], tl.float16)
    shift = tl.zeros((HALF,), tl.float32)
    if HAS_BIAS:
        shift = tl.load(bias + bh * R + row, mask=live, other=0.0)
    # Queries of the channels that turn, already rotated by the position of the first page.
    turn += (bh * R + row)[:, None] * (2 * PAIRS)
    pair = tl.arange(0, WIDTH)
    peak = tl.zeros((HALF,), tl.float32)
    for f in tl.static_range(2 * PAIRS // WIDTH):
        some = tl.load(turn + f * WIDTH + pair[None, :], mask=live[:, None], other=0.0)
        peak = tl.maximum(peak, tl.max(tl.abs(some), 1))
    turn_by, turn_back = power_of_two(peak, SHIFT)
    most = 0.0
    if HAS_CENTRE:
        for f in tl.static_range(2 * PAIRS // WIDTH):
            some = tl.load(centre + h * (2 * PAIRS) + f * WIDTH + pair)
            most = tl.maximum(most, tl.max(tl.abs(some), 0) * 0.0625)
    if not PLAIN and not MIXED:
        pair = channel(pair, V, GROUP_V)
    place_turns += h * (4 * 64 * PAIRS)
    COS_Y: tl.constexpr = 64 * PAIRS
    SIN_X: tl.constexpr = 2 * 64 * PAIRS
    SIN_Y: tl.constexpr = 3 * 64 * PAIRS
    centre += h * (2 * PAIRS) + pair

    m = tl.full((HALF,), float("-inf"), tl.float32)
    total = tl.zeros((HALF,), tl.float32)
    if PLAIN:
        acc = tl.zeros((HALF, PAD_V), tl.float32)
    else:
        acc = tl.zeros((PAD_V, HALF, GROUP_V), tl.float32)

    for u in range((lo + offset) // TILE * TILE, hi + offset, TILE):
        page = u // 64
        place = u % 64 + tl.arange(0, TILE)
        token = u + tl.arange(0, TILE) - offset
        valid = (token >= lo) & (token < hi)
        address = tl.load(v_table + page * B + b) + h * (64 * ROW_V)
        turned = tl.zeros((HALF, TILE), tl.float32)
        for f in tl.static_range(PAIRS // WIDTH):
            o = f * WIDTH
            if PLAIN:
                x = plain_values(address, place, o, valid, V, DV, WIDTH)
                y = plain_values(address, place, DV // 2 + o, valid, V, DV, WIDTH)
                size = tl.maximum(tl.max(tl.abs(x), 1), tl.max(tl.abs(y), 1))
                token_by, token_back = power_of_two(size, 0)
                x, y = x * token_by[:, None], y * token_by[:, None]
            else:
                d, e, low, low_e = block_scales(
                    address, place, o, valid, V, DV, CODE_V, GROUP_V, MIXED
                )
                size = bound(d, e, low, low_e)
                g, i, low_g, low_i = block_scales(
                    address, place, DV // 2 + o, valid, V, DV, CODE_V, GROUP_V, MIXED
                )
                size = tl.maximum(size, bound(g, i, low_g, low_i))
                if HAS_CENTRE:
                    size = tl.maximum(size, most)
                # Keys are at most about 2^10 times this: codes of 2^3 or 2^7, 64 of them, over 8.
                token_by, token_back = power_of_two(size, 0)
                x = turning_values(
                    address, place, o, token_by, d, e, low, low_e, V, CODE_V, GROUP_V, WIDTH, MIXED
                )
                y = turning_values(
                    address, place, DV // 2 + o, token_by, g, i, low_g, low_i,
                    V, CODE_V, GROUP_V, WIDTH, MIXED,
                )  # fmt: skip
            if HAS_CENTRE:
                # w is in the tables, so what is added is over w (latent.py).
                x += tl.load(centre + o)[None, :] * token_by[:, None]
                y += tl.load(centre + PAIRS + o)[None, :] * token_by[:, None]
            turns = place_turns + place[:, None] * PAIRS + o + pair[None, :]
            first = x * tl.load(turns) - y * tl.load(turns + SIN_Y)
            second = y * tl.load(turns + COS_Y) + x * tl.load(turns + SIN_X)
            cos_q = tl.load(base_cos + page * PAIRS + o + pair)[None, :]
            sin_q = tl.load(base_sin + page * PAIRS + o + pair)[None, :]
            q_x = tl.load(turn + o + pair[None, :], mask=live[:, None], other=0.0)
            q_y = tl.load(turn + PAIRS + o + pair[None, :], mask=live[:, None], other=0.0)
            q_first = split_rows((q_x * cos_q + q_y * sin_q) * turn_by[:, None], tl.float16)
            q_second = split_rows((q_y * cos_q - q_x * sin_q) * turn_by[:, None], tl.float16)
            new = exact_scores(q_first, first)
            new += exact_scores(q_second, second)
            turned += merge_halves(new, HALF) * token_back[None, :]
        if PLAIN:
            codes = float_tile(address, place, DV, PAD_V, V, valid)
            s = merge_halves(product(queries, tl.trans(codes)), HALF)
        else:
            blocks: tl.constexpr = DV // GROUP_V
            every_block = tl.arange(0, PAD_V)[:, None]
            here = valid[None, :] & (every_block < blocks)
            base = address + 64 * CODE_V
            codes = value_codes(address, place, V, CODE_V, GROUP_V, blocks, PAD_V)
            d = scales(base, place[None, :], every_block, blocks, V, here)
            # Both halves of a row in one thread, then all blocks.
            by_block = tl.dot(queries, tl.permute(codes, (0, 2, 1)))
            by_block = tl.sum(tl.reshape(by_block, (PAD_V, 2, HALF, TILE)), 1)
            by_block = by_block * d[:, None, :]
            if V == "q4_1":
                least = minima(base, place[None, :], every_block, blocks, here)
                by_block += sums[:, :, None] * least[:, None, :]
            s = tl.sum(by_block, 0)
        s = s * back[:, None] + turned * turn_back[:, None] + shift[:, None]
        s = finish_scores(
            s, token, start, stop, row, position, b, bh, mask, added, n, count, added_batch,
            added_head, added_row, H, softcap, HAS_MASK, HAS_ADDED, HAS_CAP,
        )  # fmt: skip
        p, fade, m, total = softmax_step(s, m, total)
        if PLAIN:
            weights = split_rows(p * RAISE, TYPE)
            acc = acc * fade[:, None] + merge_halves(product(weights, codes), HALF) / RAISE
        else:
            acc = add_blocks(acc, p, fade, codes, d, HALF)
            if V == "q4_1":
                acc += lift(p, least, GROUP_V)

    out = (tl.program_id(2).to(tl.int64) * B * H + bh) * R + row
    tl.store(m_out + out, m, mask=live)
    tl.store(l_out + out, total, mask=live)
    if PLAIN:
        c = tl.arange(0, PAD_V)
        tl.store(
            acc_out + out[:, None] * DV + c[None, :], acc, mask=live[:, None] & (c < DV)[None, :]
        )
    else:
        store_blocks(acc_out, out, acc, live, V, DV, GROUP_V)
