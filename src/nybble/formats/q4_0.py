"""q4_0: 4-bit codes and one fp16 scale for 32 channels; llama.cpp's plain 4-bit type.

The value of largest magnitude, sign included, becomes code 0 (that is -8 times the scale), which
uses all sixteen codes where absmax / 7 would waste one. A value as large with the other sign
would need +8 and is cut to +7.

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
    pack_nibbles,
    signed_absmax,
    to_f16,
    unpack_nibbles,
)


@dataclass(frozen=True)
class Q4_0(KVType):
    """block_q4_0 of ggml-common.h: `ggml_half d; uint8_t qs[16]`."""

    def row_bytes(self, head_dim: int) -> int:
        """18 bytes for 32 channels."""
        return head_dim // 32 * 18

    def quantize(self, x: torch.Tensor) -> torch.Tensor:
        """quantize_row_q4_0_ref: low nibbles hold the first 16 channels of a block."""
        b = blocks(x, 32)
        d = divide(signed_absmax(b), -8)
        codes = low_byte(b * inverse(d) + 8.5).clamp(max=15)
        return torch.cat([to_f16(d), pack_nibbles(codes)], -1).flatten(-2)

    def dequantize(self, data: torch.Tensor, head_dim: int) -> torch.Tensor:
        """(code - 8) * d."""
        b = blocks(data, 18)
        codes = unpack_nibbles(b[..., 2:]).float() - 8
        return (codes * from_f16(b[..., :2])).flatten(-2)


TYPES = (
    Q4_0("q4_0", "32 x 4 bits + fp16 scale", "ggml-quants.c, quantize_row_q4_0_ref",
         ("llama.cpp", "ollama"), block=32, rotation="llama", query="q8_0", ggml_id=2),
)  # fmt: skip
