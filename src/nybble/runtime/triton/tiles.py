"""From packed words to 16-bit floats that hold codes exactly, and the scales beside them.

A code is put into the mantissa of a half: 0x6400 | c is 1024 + c, so one subtraction for two
halves gives c - zero without any conversion. Codes in bits 4 to 7 give 1024 + 16 c; the factor 16
is taken out of the query, or of the sum, and costs nothing here. Eight nibbles take one shift,
four and-ors and four packed subtractions.

Unpacking leaves a block's channels in an order of its own, the same for every block: `channel`
says which channel place k holds, `factor` what its value is to be multiplied with.
"""

# Arguments of kernels are traced, not typed.
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def field(k, BITS: tl.constexpr):
    """Which field of its row of words, counted from the lowest bit, place k of `fields` holds."""
    word = k // (32 // BITS)
    byte = k // (16 // BITS) % 2
    within = k // 2 % (8 // BITS)
    return word * (32 // BITS) + k % 2 * (16 // BITS) + byte * (8 // BITS) + within


@triton.jit
def field_factor(k, BITS: tl.constexpr):
    """What a code from `fields` lacks: codes above a byte's lowest bits come as a multiple."""
    within = k // 2 % (8 // BITS)
    # By its exponent, since a GPU's exp2 is an approximation.
    return ((127 - within * BITS) << 23).to(tl.float32, bitcast=True)


@triton.jit
def channel(k, KIND: tl.constexpr, GROUP: tl.constexpr):
    """Channel of its block that place k of an unpacked tile holds."""
    if KIND == "q8_0":
        at = k // 4 * 4 + k % 2 * 2 + k // 2 % 2
    else:
        at = field(k, 4)
        if KIND != "nyb4":
            # ggml: low nibbles hold the first half of a block, high ones the second.
            at = at // 2 + at % 2 * (GROUP // 2)
    return at


@triton.jit
def factor(k, KIND: tl.constexpr):
    """What the code in place k is to be multiplied with: high nibbles come as 16 times theirs."""
    if KIND == "q8_0":
        by = k * 0.0 + 1.0
    else:
        by = field_factor(k, 4)
    return by


@triton.jit
def _halves(words):
    """int32 [...] whose halves are floats -> fp16 [..., 2]."""
    pair = tl.join(words.to(tl.int16), (words >> 16).to(tl.int16))
    return pair.to(tl.float16, bitcast=True)


@triton.jit
def _two(words, AT: tl.constexpr, BITS: tl.constexpr, ZERO: tl.constexpr):
    """Fields at bit AT of each half's low byte, and the next ones: fp16 [..., half, field]."""
    first: tl.constexpr = ((1 << BITS) - 1) * 0x10001 << AT
    next_one: tl.constexpr = first << BITS
    return tl.join(
        _halves(words & first | 0x64006400) - (1024.0 + ZERO * (1 << AT)),
        _halves(words & next_one | 0x64006400) - (1024.0 + ZERO * (1 << AT + BITS)),
    )


@triton.jit
def fields(words, BITS: tl.constexpr, ZERO: tl.constexpr):
    """All fields of some words, less a zero.

    Args:
        words: int32 [X, W].
        BITS: of a field, 4, 2 or 1.
        ZERO: an integer.

    Returns:
        fp16 [X, W * 32 / BITS] in the order of `field`, to be multiplied by `field_factor`; exact.
    """
    rows: tl.constexpr = words.shape[0]
    count: tl.constexpr = words.shape[1] * (32 // BITS)
    high = words >> 8
    # [X, word, half, field, .., byte] -> halves last, as they lie in a register.
    if BITS == 4:
        both = tl.join(_two(words, 0, 4, ZERO), _two(high, 0, 4, ZERO))
        both = tl.permute(both, (0, 1, 4, 3, 2))
    elif BITS == 2:
        low = tl.join(_two(words, 0, 2, ZERO), _two(words, 4, 2, ZERO))
        both = tl.join(low, tl.join(_two(high, 0, 2, ZERO), _two(high, 4, 2, ZERO)))
        both = tl.permute(both, (0, 1, 5, 4, 3, 2))
    else:
        low = tl.join(_two(words, 0, 1, ZERO), _two(words, 2, 1, ZERO))
        low = tl.join(low, tl.join(_two(words, 4, 1, ZERO), _two(words, 6, 1, ZERO)))
        up = tl.join(_two(high, 0, 1, ZERO), _two(high, 2, 1, ZERO))
        up = tl.join(up, tl.join(_two(high, 4, 1, ZERO), _two(high, 6, 1, ZERO)))
        both = tl.permute(tl.join(low, up), (0, 1, 6, 5, 4, 3, 2))
    return tl.reshape(both, (rows, count))


@triton.jit
def unpack(words, KIND: tl.constexpr):
    """Words of blocks to codes less their zero.

    Args:
        words: int32 [X, words of a block].
        KIND: the type; q4_1 has no zero.

    Returns:
        fp16 [X, GROUP], in the order of `channel`, exact.
    """
    if KIND == "q8_0":
        rows: tl.constexpr = words.shape[0]
        count: tl.constexpr = words.shape[1]
        # Two's complement to offset binary: c + 128.
        w = words ^ -2139062144
        even = _halves(w & 0x00FF00FF | 0x64006400) - 1152.0
        odd = _halves((w >> 8) & 0x00FF00FF | 0x64006400) - 1152.0
        out = tl.reshape(tl.permute(tl.join(even, odd), (0, 1, 3, 2)), (rows, count * 4))
    else:
        out = fields(words, 4, 0 if KIND == "q4_1" else 8)
    return out


@triton.jit
def short_fields(units, BITS: tl.constexpr, ZERO: tl.constexpr):
    """`fields` of 16-bit units [X, U], in their own order and without factors.

    For groups of 16, whose planes are no whole words.
    """
    rows: tl.constexpr = units.shape[0]
    per: tl.constexpr = 16 // BITS
    count: tl.constexpr = units.shape[1] * per
    shift = (tl.arange(0, per) * BITS).to(tl.int16)
    codes = (units[:, :, None] >> shift[None, None, :]) & (2**BITS - 1) | 0x6400
    values = codes.to(tl.int16).to(tl.float16, bitcast=True) - (1024.0 + ZERO)
    return tl.reshape(values, (rows, count))


@triton.jit
def scales(base, token, block, BLOCKS: tl.constexpr, KIND: tl.constexpr, valid):
    """Scales of blocks, float32; 0 where not valid.

    Args:
        base: address of the page's scales.
        token: places in the page.
        block: indices of blocks; broadcast with `token`.
        BLOCKS: of a token.
        KIND: the type.
        valid: where to read.
    """
    at = token * BLOCKS + block
    if KIND == "nyb4":
        byte = tl.load(base.to(tl.pointer_type(tl.uint8)) + at, mask=valid, other=0).to(tl.int32)
        size = tl.exp2(((byte & 127) - 88).to(tl.float32) * 0.125)
        size = tl.where(byte > 127, -size, size)
        d = tl.where((byte & 127) > 0, size, 0.0)
    else:
        step: tl.constexpr = 2 if KIND == "q4_1" else 1
        half = tl.load(base.to(tl.pointer_type(tl.float16)) + at * step, mask=valid, other=0.0)
        d = half.to(tl.float32)
    return d


@triton.jit
def minima(base, token, block, BLOCKS: tl.constexpr, valid):
    """Minima of q4_1's blocks, float32; 0 where not valid."""
    at = (token * BLOCKS + block) * 2 + 1
    low = tl.load(base.to(tl.pointer_type(tl.float16)) + at, mask=valid, other=0.0)
    return low.to(tl.float32)


@triton.jit
def power_of_two(x, TO: tl.constexpr):
    """The power of two that brings |x| to [2^TO, 2^(TO + 1)), and its inverse; float32."""
    exponent = (x.to(tl.int32, bitcast=True) >> 23) & 255
    up = tl.minimum(tl.maximum(254 + TO - exponent, 1), 253)
    by = (up << 23).to(tl.float32, bitcast=True)
    back = ((254 - up) << 23).to(tl.float32, bitcast=True)
    return by, back


@triton.jit
def split_rows(x, DTYPE: tl.constexpr):
    """A float32 matrix as two of 16 bits whose sum it is, one above the other.

    Args:
        x: float32 [rows, n].
        DTYPE: float16, for 22 bits together, or bfloat16, for 16.

    Returns:
        DTYPE [2 * rows, n].
    """
    rows: tl.constexpr = x.shape[0]
    n: tl.constexpr = x.shape[1]
    high = x.to(DTYPE)
    low = (x - high.to(tl.float32)).to(DTYPE)
    return tl.reshape(tl.permute(tl.join(high, low), (2, 0, 1)), (2 * rows, n))


@triton.jit
def merge_halves(x, ROWS: tl.constexpr):
    """Sum of the two halves of each row: [2 * ROWS, n] -> [ROWS, n]."""
    n: tl.constexpr = x.shape[1]
    return tl.sum(tl.reshape(x, (2, ROWS, n)), 0)


@triton.jit
def split_blocks(x, DTYPE: tl.constexpr):
    """`split_rows` for every block: float32 [blocks, rows, n] -> DTYPE [blocks, 2 * rows, n]."""
    blocks: tl.constexpr = x.shape[0]
    rows: tl.constexpr = x.shape[1]
    n: tl.constexpr = x.shape[2]
    high = x.to(DTYPE)
    low = (x - high.to(tl.float32)).to(DTYPE)
    return tl.reshape(tl.permute(tl.join(high, low), (0, 3, 1, 2)), (blocks, 2 * rows, n))


@triton.jit
def tanh(x):
    """Without the cancellation near zero that 1 - 2 / (exp(2 x) + 1) has."""
    square = x * x
    near = x * (
        1 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * 62 / 2835)))
    )
    e = tl.exp(-2 * tl.abs(x))
    far = (1 - e) / (1 + e)
    return tl.where(tl.abs(x) < 0.25, near, tl.where(x < 0, -far, far))
