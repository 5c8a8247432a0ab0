"""q4_1: 4-bit codes, an fp16 scale and an fp16 minimum for 32 channels.

The sixteen codes span the block's range from its minimum to its maximum, which suits blocks that
do not lie around zero. Codes are taken with the float32 scale and minimum and read back with the
fp16 ones.

llama.cpp's CPU stores with this very function. Its CUDA kernel (cpy-utils.cuh) has the same
arithmetic but is built with -use_fast_math, so a value close to a tie may round the other way.
"""

from __future__ import annotations

from dataclasses import dataclass

from nybble.formats.kvtype import KVType
from nybble.formats.lazy import torch
from nybble.formats.pack import (
    blocks,
    divide,
    extremes,
    from_f16,
    inverse,
    low_byte,
    pack_nibbles,
    to_f16,
    unpack_nibbles,
)


@dataclass(frozen=True)
class Q4_1(KVType):
    """block_q4_1 of ggml-common.h: `ggml_half d; ggml_half m; uint8_t qs[16]`."""

    def row_bytes(self, head_dim: int) -> int:
        """20 bytes for 32 channels."""
        return head_dim // 32 * 20

    def quantize(self, x: torch.Tensor) -> torch.Tensor:
        """quantize_row_q4_1_ref: low nibbles hold the first 16 channels of a block."""
        b = blocks(x, 32)
        low, high = extremes(b)
        d = divide(high - low, 15)
        codes = low_byte((b - low) * inverse(d) + 0.5)  # at most 15: the range ends there
        return torch.cat([to_f16(d), to_f16(low), pack_nibbles(codes)], -1).flatten(-2)

    def dequantize(self, data: torch.Tensor, head_dim: int) -> torch.Tensor:
        """Code * d + minimum; the product is exact in float32, so only the sum is rounded."""
        b = blocks(data, 20)
        codes = unpack_nibbles(b[..., 4:]).float()
        return (codes * from_f16(b[..., :2]) + from_f16(b[..., 2:4])).flatten(-2)


TYPES = (
    Q4_1("q4_1", "32 x 4 bits + fp16 scale + fp16 minimum",
         "ggml-quants.c, quantize_row_q4_1_ref", ("llama.cpp",), block=32,
         rotation="llama", query="q8_0", ggml_id=3),
)  # fmt: skip
