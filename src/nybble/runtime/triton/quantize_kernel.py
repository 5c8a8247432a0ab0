"""Quantize new tokens straight into their page, for q4_0 and q8_0.

Bytes are those of formats/q4_0.py and formats/q8_0.py, ties, NaN and infinities included. That
takes IEEE division and no contraction of a product and a sum, so these kernels are compiled
without fused multiply-add.
"""

# Arguments of kernels are traced, not typed.
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def half_bits(d):
    """fp16 of a scale as int16, a NaN as 0x7E00 with its sign (formats/pack.py to_f16)."""
    half = d.to(tl.float16).to(tl.int16, bitcast=True)
    sign = (d.to(tl.int32, bitcast=True) >> 31) & 1
    return tl.where(d != d, (0x7E00 - 0x8000 * sign).to(tl.int16), half)


@triton.jit
def low_byte(x):
    """C's cast to an int's low byte on x86: cut off, 0 where an int32 cannot hold it."""
    fits = tl.abs(x) < 2147483648.0  # False for NaN
    return tl.where(fits, x, 0.0).to(tl.int32) & 255


@triton.jit
def inverse(d):
    """1 / d, and 0 for a scale of 0."""
    return tl.where(d != 0, tl.div_rn(tl.full(d.shape, 1.0, tl.float32), d), 0.0)


@triton.jit(do_not_specialize=["B", "H", "n", "first"])
def append_kernel(
    x, table, B, H, n, first, stride_b, stride_h, stride_n,
    KIND: tl.constexpr, DIM: tl.constexpr, CODE: tl.constexpr, BLOCKS: tl.constexpr,
    PAD: tl.constexpr,
):  # fmt: skip
    """One token of one head; grid (B * H, n).

    first: place of the first token, counted from the start of the first page.
    """
    bh, token = tl.program_id(0), tl.program_id(1)
    b, h = bh // H, bh % H
    place = first + token
    address = tl.load(table + place // 64 * B + b) + h * (64 * (CODE + BLOCKS * 2))
    place = place % 64
    block = tl.arange(0, PAD)
    i = tl.arange(0, 32)
    here = (block < BLOCKS)[:, None]
    at = b.to(tl.int64) * stride_b + h * stride_h + token.to(tl.int64) * stride_n
    y = tl.load(x + at + block[:, None] * 32 + i[None, :], mask=here & (i < 32)[None, :], other=0.0)
    y = y.to(tl.float32)
    size = tl.abs(y)
    nan = y != y
    codes_out = address.to(tl.pointer_type(tl.uint8)) + place * CODE
    if KIND == "q4_0":
        size = tl.where(nan, 0.0, size)
        top = tl.max(size, 1)
        # The first of equals counts, with its sign; nothing above zero gives +0.
        where = tl.min(tl.where(size == top[:, None], i[None, :], 32), 1)
        extreme = tl.sum(tl.where(i[None, :] == where[:, None], y, 0.0), 1)
        d = tl.where(top > 0, extreme, 0.0) * -0.125
        codes = tl.minimum(low_byte(y * inverse(d)[:, None] + 8.5), 15)
        # Byte j holds code j and, above it, code 16 + j.
        low, high = tl.split(tl.permute(tl.reshape(codes, (PAD, 2, 16)), (0, 2, 1)))
        j = tl.arange(0, 16)
        packed = (low | high << 4).to(tl.uint8)
        tl.store(codes_out + block[:, None] * 16 + j[None, :], packed, mask=here)
    else:
        # The largest of what follows the last NaN; a NaN at the end is kept (formats/q8_0.py).
        last = tl.max(tl.where(nan, i[None, :], -1), 1)
        top = tl.max(tl.where(i[None, :] > last[:, None], size, 0.0), 1)
        top = tl.where(last == 31, float("nan"), top)
        d = tl.div_rn(top, tl.full(top.shape, 127.0, tl.float32))
        z = y * inverse(d)[:, None]
        # Ties away from zero. Beyond 2^23 there is nothing to round, nor can it be cast.
        small = tl.abs(z) < 8388608.0
        whole = tl.where(small, z, 0.0).to(tl.int32).to(tl.float32)
        up = tl.where(tl.abs(z - whole) >= 0.5, tl.where(z < 0, -1.0, 1.0), 0.0)
        codes = low_byte(tl.where(small, whole + up, z))
        packed = codes.to(tl.uint8)
        tl.store(codes_out + block[:, None] * 32 + i[None, :], packed, mask=here)
    scales_out = (address + 64 * CODE).to(tl.pointer_type(tl.int16)) + place * BLOCKS + block
    tl.store(scales_out, half_bits(d), mask=block < BLOCKS)
