"""Attention of a few query rows over packed pages: one segment, split along the context.

A program takes one batch row, one KV head, up to `HALF` query rows and one part of the context.
All query heads of the KV head are rows of the same products, so a page is read once for them.
Queries and weights are float32 but tensor cores take 16 bits, so each is split in two halves that
lie above each other in the rows: where a decode step would pad 8 rows to the 16 of a tensor core,
the second halves ride along free. Codes are exact in 16 bits, sums are float32.

Scales never touch elements: a key block's scale multiplies its column of logits, a value block's
the column of weights. Values are batched by block, so a warp takes whole blocks; keys are not,
so that the sum over blocks stays within a thread.

Kernels see the coded domain only; runtime/reference.py is the specification.
"""

# Arguments of kernels are traced, not typed.
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from nybble.runtime.triton.planes import plane_scores
from nybble.runtime.triton.tiles import (
    channel,
    factor,
    merge_halves,
    minima,
    power_of_two,
    scales,
    split_blocks,
    split_rows,
    tanh,
    unpack,
)

# Queries are brought to 2^13 .. 2^14 and weights below it, so that second halves of small ones
# do not fall off fp16's end at 2^-24; a product of 64 tokens stays below 2^31.
SHIFT = tl.constexpr(13)
RAISE = tl.constexpr(2.0**13)
FAR = tl.constexpr(1 << 30)
SIZES = "B H R n offset count pages part added_batch added_head added_row".split()


# The interpreter holds bfloat16 as integers and would multiply those.
WIDEN = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def product(a, b):
    """Matrix product of two 16-bit matrices, float32."""
    if WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def aligned(address, TYPE: tl.constexpr):
    """A pointer to a page's head; 64 tokens of any row are a multiple of 16 bytes."""
    return tl.multiple_of(address.to(tl.pointer_type(TYPE)), 16)


@triton.jit
def key_words(address, token, block, CODE: tl.constexpr, GROUP: tl.constexpr, KIND: tl.constexpr):
    """Words of one block of some tokens, int32 [tokens, words]; token and block broadcast."""
    words: tl.constexpr = GROUP // 4 if KIND == "q8_0" else GROUP // 8
    w = tl.arange(0, words)
    at = token[:, None] * (CODE // 4) + block * words + w[None, :]
    return tl.load(aligned(address, tl.int32) + at)


@triton.jit
def float_tile(address, token, DIM: tl.constexpr, PADDED: tl.constexpr, KIND: tl.constexpr, valid):
    """Plain floats of some tokens, [tokens, PADDED]; 0 where not valid."""
    c = tl.arange(0, PADDED)
    dtype: tl.constexpr = tl.bfloat16 if KIND == "bf16" else tl.float16
    at = token[:, None] * DIM + c[None, :]
    return tl.load(
        aligned(address, dtype) + at, mask=valid[:, None] & (c < DIM)[None, :], other=0.0
    )


@triton.jit
def finish_scores(
    s, token, start, stop, row, position, b, bh, mask, added, n, count, added_batch, added_head,
    added_row, heads, softcap,
    HAS_MASK: tl.constexpr, HAS_ADDED: tl.constexpr, HAS_CAP: tl.constexpr,
):  # fmt: skip
    """Softcap, what is added, and who sees whom; s [rows, tokens] with its bias in."""
    if HAS_CAP:
        s = tanh(s / softcap) * softcap
    sees = (token[None, :] >= start[:, None]) & (token[None, :] < stop[:, None])
    if HAS_ADDED:
        at = b.to(tl.int64) * added_batch + (bh % heads) * added_head + row * added_row
        s += tl.load(added + at[:, None] + token[None, :], mask=sees, other=0.0)
    if HAS_MASK:
        at = (b.to(tl.int64) * n + position) * count
        may = tl.load(mask + at[:, None] + token[None, :], mask=sees, other=0)
        sees = sees & (may != 0)
    return tl.where(sees, s, float("-inf"))


@triton.jit
def softmax_step(s, m, total):
    """One step of the online softmax: weights, what fades the past, new maximum and total."""
    top = tl.maximum(m, tl.max(s, 1))
    base = tl.where(top == float("-inf"), 0.0, top)  # -inf minus -inf would be NaN
    p = tl.exp(s - base[:, None])
    fade = tl.exp(m - base)
    return p, fade, top, total * fade + tl.sum(p, 1)


@triton.jit
def add_blocks(acc, p, fade, codes, d, HALF: tl.constexpr):
    """Let the past fade and add weights times values, block by block.

    Args:
        acc: float32 [blocks, HALF, GROUP].
        p: weights, float32 [HALF, tokens].
        fade: [HALF].
        codes: fp16 [blocks, tokens, GROUP].
        d: scales, float32 [blocks, tokens].
        HALF: query rows.
    """
    group: tl.constexpr = codes.shape[2]
    blocks: tl.constexpr = codes.shape[0]
    # Weights times scales may lie anywhere; a power of two per block brings them into fp16.
    by, back = power_of_two(tl.max(tl.abs(d), 1), SHIFT)
    weights = split_blocks(p[None, :, :] * (d * by[:, None])[:, None, :], tl.float16)
    sums = tl.sum(tl.reshape(tl.dot(weights, codes), (blocks, 2, HALF, group)), 1)
    return acc * fade[None, :, None] + sums * back[:, None, None]


@triton.jit
def value_codes(
    address, token, KIND: tl.constexpr, CODE: tl.constexpr, GROUP: tl.constexpr,
    BLOCKS: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Unpacked blocks of some tokens, fp16 [PADDED blocks, tokens, GROUP]."""
    words: tl.constexpr = GROUP // 4 if KIND == "q8_0" else GROUP // 8
    count: tl.constexpr = token.shape[0]
    block = tl.arange(0, PADDED)[:, None, None]
    w = tl.arange(0, words)[None, None, :]
    at = token[None, :, None] * (CODE // 4) + block * words + w
    pointers = address.to(tl.pointer_type(tl.int32)) + at
    if PADDED == BLOCKS:
        packed = tl.load(pointers)
    else:
        packed = tl.load(pointers, mask=block < BLOCKS, other=0)
    flat = unpack(tl.reshape(packed, (PADDED * count, words)), KIND)
    return tl.reshape(flat, (PADDED, count, GROUP))


# Sizes change at every step; a kernel for each kind of size would be compiled as they come.
@triton.jit(do_not_specialize=SIZES)
def segment_kernel(
    q, bias, mask, added, spans, k_table, v_table, widths, m_out, l_out, acc_out,
    B, H, R, n, offset, count, pages, part, softcap, added_batch, added_head, added_row,
    K: tl.constexpr, DK: tl.constexpr, CODE_K: tl.constexpr, ROW_K: tl.constexpr,
    GROUP_K: tl.constexpr,
    V: tl.constexpr, DV: tl.constexpr, CODE_V: tl.constexpr, ROW_V: tl.constexpr,
    GROUP_V: tl.constexpr, PAD_K: tl.constexpr, PAD_V: tl.constexpr,
    HALF: tl.constexpr, TILE: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr, HAS_ADDED: tl.constexpr,
    HAS_CAP: tl.constexpr,
):  # fmt: skip
    """One part of one head; grid (B * H, row blocks, parts). See attend.py for the arguments.

    PAD_K and PAD_V are powers of two: channels of plain floats, blocks of all other types.
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

    at = tl.where(live, (bh * R + row) * DK, -1)
    every = tl.arange(0, PAD_K if K == "f16" or K == "bf16" else PAD_K * GROUP_K)
    whole = tl.load(
        q + at[:, None] + every[None, :], mask=live[:, None] & (every < DK)[None, :], other=0.0
    )
    by, back = power_of_two(tl.max(tl.abs(whole), 1), SHIFT)
    PLAIN_K: tl.constexpr = K == "f16" or K == "bf16"
    PLAIN_V: tl.constexpr = V == "f16" or V == "bf16"
    TYPE_K: tl.constexpr = tl.bfloat16 if K == "bf16" else tl.float16
    TYPE_V: tl.constexpr = tl.bfloat16 if V == "bf16" else tl.float16
    queries = ()
    sums = ()
    if PLAIN_K:
        queries = (split_rows(whole * by[:, None], TYPE_K),)
    elif K != "nyb4":
        c = tl.arange(0, GROUP_K)
        for g in tl.static_range(DK // GROUP_K):
            some = tl.load(
                q + at[:, None] + g * GROUP_K + channel(c, K, GROUP_K)[None, :],
                mask=live[:, None], other=0.0,
            ) * by[:, None]  # fmt: skip
            sums = sums + (tl.sum(some, 1),)
            queries = queries + (split_rows(some * factor(c, K)[None, :], tl.float16),)
    shift = tl.zeros((HALF,), tl.float32)
    if HAS_BIAS:
        shift = tl.load(bias + bh * R + row, mask=live, other=0.0)

    m = tl.full((HALF,), float("-inf"), tl.float32)
    total = tl.zeros((HALF,), tl.float32)
    if PLAIN_V:
        acc = tl.zeros((HALF, PAD_V), tl.float32)
    else:
        acc = tl.zeros((PAD_V, HALF, GROUP_V), tl.float32)

    for u in range((lo + offset) // TILE * TILE, hi + offset, TILE):
        page = u // 64
        place = u % 64 + tl.arange(0, TILE)
        token = u + tl.arange(0, TILE) - offset
        valid = (token >= lo) & (token < hi)
        address = tl.load(k_table + page * B + b) + h * (64 * ROW_K)
        if K == "nyb4":
            s = plane_scores(
                q, at, by, address, place, widths + h * (DK // GROUP_K),
                DK, CODE_K, GROUP_K, HALF,
            )  # fmt: skip
        elif PLAIN_K:
            x = float_tile(address, place, DK, PAD_K, K, valid)
            s = merge_halves(product(queries[0], tl.trans(x)), HALF)
        else:
            both = tl.zeros((2 * HALF, TILE), tl.float32)
            low = tl.zeros((HALF, TILE), tl.float32)
            base = address + 64 * CODE_K
            everywhere = place >= 0  # scores of tokens that are not there are dropped later
            for g in tl.static_range(DK // GROUP_K):
                x = unpack(key_words(address, place, g, CODE_K, GROUP_K, K), K)
                d = scales(base, place, g, DK // GROUP_K, K, everywhere)
                both += tl.dot(queries[g], tl.trans(x)) * d[None, :]
                if K == "q4_1":
                    least = minima(base, place, g, DK // GROUP_K, everywhere)
                    low += sums[g][:, None] * least[None, :]
            s = merge_halves(both, HALF) + low
        s = s * back[:, None] + shift[:, None]
        s = finish_scores(
            s, token, start, stop, row, position, b, bh, mask, added, n, count, added_batch,
            added_head, added_row, H, softcap, HAS_MASK, HAS_ADDED, HAS_CAP,
        )  # fmt: skip
        p, fade, m, total = softmax_step(s, m, total)

        address = tl.load(v_table + page * B + b) + h * (64 * ROW_V)
        if PLAIN_V:
            x = float_tile(address, place, DV, PAD_V, V, valid)
            weights = split_rows(p * RAISE, TYPE_V)
            new = merge_halves(product(weights, x), HALF)
            acc = acc * fade[:, None] + new / RAISE
        else:
            blocks: tl.constexpr = DV // GROUP_V
            block = tl.arange(0, PAD_V)[:, None]
            codes = value_codes(address, place, V, CODE_V, GROUP_V, blocks, PAD_V)
            where = valid[None, :] & (block < blocks)
            base = address + 64 * CODE_V
            d = scales(base, place[None, :], block, blocks, V, where)
            acc = add_blocks(acc, p, fade, codes, d, HALF)
            if V == "q4_1":
                # The same for all channels of a block, so not worth a tensor core.
                least = minima(base, place[None, :], block, blocks, where)
                acc += lift(p, least, GROUP_V)

    out = (tl.program_id(2).to(tl.int64) * B * H + bh) * R + row
    tl.store(m_out + out, m, mask=live)
    tl.store(l_out + out, total, mask=live)
    if PLAIN_V:
        c = tl.arange(0, PAD_V)
        tl.store(
            acc_out + out[:, None] * DV + c[None, :], acc, mask=live[:, None] & (c < DV)[None, :]
        )
    else:
        store_blocks(acc_out, out, acc, live, V, DV, GROUP_V)


@triton.jit
def lift(p, least, GROUP: tl.constexpr):
    """What q4_1's minima add: [HALF, tokens], [blocks, tokens] -> [blocks, HALF, GROUP].

    Every place of a high nibble is later multiplied by 1 / 16, so it gets 16 times as much.
    """
    sums = tl.sum(p[None, :, :] * least[:, None, :], 2)
    return sums[:, :, None] * (1.0 / factor(tl.arange(0, GROUP), "q4_1"))[None, None, :]


@triton.jit
def store_blocks(acc_out, out, acc, live, V: tl.constexpr, DV: tl.constexpr, GROUP: tl.constexpr):
    """Write sums [blocks, HALF, GROUP] in the order of the channels."""
    block = tl.arange(0, acc.shape[0])
    k = tl.arange(0, GROUP)
    at = (
        out[None, :, None] * DV + block[:, None, None] * GROUP + channel(k, V, GROUP)[None, None, :]
    )
    inside = live[None, :, None] & (block < DV // GROUP)[:, None, None]
    tl.store(acc_out + at, acc * factor(k, V)[None, None, :], mask=inside)


@triton.jit(do_not_specialize=["rows", "parts"])
def join_kernel(
    m_parts, l_parts, acc_parts, m_out, l_out, acc_out, rows, parts,
    DV: tl.constexpr, PAD: tl.constexpr,
):  # fmt: skip
    """Join the parts of one row by log-sum-exp; grid (rows,)."""
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, PAD)
    m = tl.full((1,), float("-inf"), tl.float32)
    total = tl.zeros((1,), tl.float32)
    acc = tl.zeros((PAD,), tl.float32)
    for i in range(parts):
        at = i * rows + row
        new = tl.load(m_parts + at)
        top = tl.maximum(m, new)
        base = tl.where(top == float("-inf"), 0.0, top)
        fade, weight = tl.exp(m - base), tl.exp(new - base)
        total = total * fade + tl.load(l_parts + at) * weight
        acc = acc * fade + tl.load(acc_parts + at * DV + c, mask=c < DV, other=0.0) * weight
        m = top
    one = tl.arange(0, 1)
    tl.store(m_out + row + one, m)
    tl.store(l_out + row + one, total)
    tl.store(acc_out + row * DV + c, acc, mask=c < DV)
