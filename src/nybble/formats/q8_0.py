"""q8_0: signed bytes and one fp16 scale for 32 channels; llama.cpp's plain 8-bit type.

Codes run from -127 to 127, so the grid is symmetric.

llama.cpp's CPU stores with this function only where it has no vector code of its own. On AVX it
rounds ties to even and multiplies with 127 / absmax: the scale is the same, and 2.5 in a million
codes of normal float32 data are off by one (one in a thousand of bf16 data, which ties often).
Its CUDA kernel (cpy-utils.cuh) has this arithmetic but is built with -use_fast_math.
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
    round_half_away,
    to_f16,
)


def _absmax(b: torch.Tensor) -> torch.Tensor:
    """The loop `amax = amax > |v| ? amax : |v|`: [..., n] -> [..., 1].

    A comparison with NaN is false, so a NaN is taken and then replaced by the value after it:
    the result is the maximum of what follows the last NaN.
    """
    nan = b.isnan()
    until_last = nan.flip(-1).cumsum(-1).flip(-1) > 0
    amax = torch.where(until_last, 0.0, b.abs()).amax(-1, keepdim=True)
    return torch.where(nan[..., -1:], torch.nan, amax)


@dataclass(frozen=True)
class Q8_0(KVType):
    """block_q8_0 of ggml-common.h: `ggml_half d; int8_t qs[32]`."""

    def row_bytes(self, head_dim: int) -> int:
        """34 bytes for 32 channels."""
        return head_dim // 32 * 34

    def quantize(self, x: torch.Tensor) -> torch.Tensor:
        """quantize_row_q8_0_ref: ties are rounded away from zero."""
        b = blocks(x, 32)
        d = divide(_absmax(b), 127)
        codes = low_byte(round_half_away(b * inverse(d)))
        return torch.cat([to_f16(d), codes], -1).flatten(-2)

    def dequantize(self, data: torch.Tensor, head_dim: int) -> torch.Tensor:
        """Code * d."""
        b = blocks(data, 34)
        return (b[..., 2:].view(torch.int8).float() * from_f16(b[..., :2])).flatten(-2)


TYPES = (
    Q8_0("q8_0", "32 x int8 + fp16 scale", "ggml-quants.c, quantize_row_q8_0_ref",
         ("llama.cpp", "ollama"), block=32, rotation="llama", query="q8_0", ggml_id=8),
)  # fmt: skip
