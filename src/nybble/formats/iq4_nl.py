"""iq4_nl: 4-bit codes into a fixed table of sixteen uneven steps, one fp16 scale for 32 channels.

The steps are fine around zero and coarse at the ends, as values of a bell curve are. Codes are
taken with the scale that puts the value of largest magnitude on the table's first entry, -127;
what is stored is the scale of least squared error for these codes, each channel weighted with
its square. The weighted search over fifteen scales that writes iq4_nl weights into GGUF files
(quantize_iq4_nl) is another function, which no cache uses.

llama.cpp's CPU stores with this very function. Its CUDA kernel (cpy-utils.cuh) sums channels in
another order and is built with -use_fast_math, so the scale can differ in its last bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from nybble.formats.kvtype import KVType
from nybble.formats.lazy import torch
from nybble.formats.pack import (
    blocks,
    divide,
    from_f16,
    pack_nibbles,
    signed_absmax,
    to_f16,
    unpack_nibbles,
)

VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""kvalues_iq4nl of ggml-common.h."""

_SMALLEST = 1e-15  # GROUP_MAX_EPS: a block below it is stored as zeros
_CODE_OF_ZERO = 8  # any code would do at a scale of 0; this one gives +0


@lru_cache(maxsize=8)
def _table(device: torch.device) -> torch.Tensor:
    return torch.tensor(VALUES, dtype=torch.float32, device=device)


def nearest_code(x: torch.Tensor) -> torch.Tensor:
    """Index of the nearest table value, the upper one on ties and for NaN; same shape, int64."""
    table = _table(x.device)
    upper = torch.bucketize(x.contiguous(), table, right=True).clamp(1, 15)  # table[upper - 1] <= x
    return torch.where(x - table[upper - 1] < table[upper] - x, upper - 1, upper)


def _in_order(terms: torch.Tensor) -> torch.Tensor:
    """Sum of float32 terms from first to last, rounded at every step: [..., n] -> [..., 1]."""
    total = torch.zeros_like(terms[..., 0])
    for term in terms.movedim(-1, 0).contiguous():
        total = total + term
    return total.unsqueeze(-1)


@dataclass(frozen=True)
class IQ4NL(KVType):
    """block_iq4_nl of ggml-common.h: `ggml_half d; uint8_t qs[16]`."""

    def row_bytes(self, head_dim: int) -> int:
        """18 bytes for 32 channels."""
        return head_dim // 32 * 18

    def quantize(self, x: torch.Tensor) -> torch.Tensor:
        """quantize_row_iq4_nl_ref: low nibbles hold the first 16 channels of a block.

        ggml writes no codes for a block below 1e-15 and leaves those of the block before it, or
        of the stack; here it is the code of the value 1. Both read back as zeros. The sign of a
        NaN scale (values from 1.8e19 on, whose squares are infinite) is the hardware's.
        """
        b = blocks(x, 32)
        largest = signed_absmax(b)
        empty = largest.abs() < _SMALLEST
        codes = nearest_code(b * (1 / divide(largest, VALUES[0])))
        values = _table(x.device)[codes]
        weighted = b * b * values
        squares = _in_order(weighted * values)
        d = torch.where(squares > 0, _in_order(weighted * b) / squares, 0.0)
        codes = torch.where(empty, _CODE_OF_ZERO, codes).to(torch.uint8)
        return torch.cat([to_f16(torch.where(empty, 0.0, d)), pack_nibbles(codes)], -1).flatten(-2)

    def dequantize(self, data: torch.Tensor, head_dim: int) -> torch.Tensor:
        """Table value of the code * d."""
        b = blocks(data, 18)
        values = _table(data.device)[unpack_nibbles(b[..., 2:]).long()]
        return (from_f16(b[..., :2]) * values).flatten(-2)


TYPES = (
    IQ4NL("iq4_nl", "32 x 4 bits into a fixed non-linear table + fp16 scale",
          "ggml-quants.c, quantize_row_iq4_nl_ref", ("llama.cpp",), block=32,
          rotation="llama", query="q8_0", ggml_id=20),
)  # fmt: skip
