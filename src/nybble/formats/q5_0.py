"""q5_0: 5-bit codes and one fp16 scale for 32 channels.

q4_0 with a fifth bit: the value of largest magnitude, sign included, becomes code 0, that is -16
times the scale. The fifth bits of a block sit together in four bytes before the nibbles.

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
    from_f16,
    inverse,
    low_byte,
    pack_5_bits,
    signed_absmax,
    to_f16,
    unpack_5_bits,
)


@dataclass(frozen=True)
class Q5_0(KVType):
    """block_q5_0 of ggml-common.h: `ggml_half d; uint8_t qh[4]; uint8_t qs[16]`."""

    def row_bytes(self, head_dim: int) -> int:
        """22 bytes for 32 channels."""
        return head_dim // 32 * 22

    def quantize(self, x: torch.Tensor) -> torch.Tensor:
        """quantize_row_q5_0_ref: low nibbles hold the first 16 channels of a block."""
        b = blocks(x, 32)
        d = divide(signed_absmax(b), -16)
        codes = low_byte(b * inverse(d) + 16.5).clamp(max=31)
        return torch.cat([to_f16(d), pack_5_bits(codes)], -1).flatten(-2)

    def dequantize(self, data: torch.Tensor, head_dim: int) -> torch.Tensor:
        """(code - 16) * d."""
        b = blocks(data, 22)
        codes = unpack_5_bits(b[..., 2:]).float() - 16
        return (codes * from_f16(b[..., :2])).flatten(-2)


TYPES = (
    Q5_0("q5_0", "32 x 5 bits + fp16 scale", "ggml-quants.c, quantize_row_q5_0_ref",
         ("llama.cpp",), block=32, rotation="llama", query="q8_0", ggml_id=6),
)  # fmt: skip
