"""lmdeploy_int4, lmdeploy_int8: codes, a scale and a zero point for a head of a token; LMDeploy.

All levels lie between the head's minimum and maximum. Codes are made with the float32 scale and
zero point, then both are stored in the model's dtype: fp16 here. A bf16 model stores them in
bf16, which is worse (8 bits cannot place one of 256 levels exactly). Kernels read either as
(code - zero) * scale or as code * scale - zero * scale, in the model's dtype; here in float32.
Triton's division has up to 2 ulp of error on a GPU.

A head of equal values has scale 0, which the kernel divides by; it reads back NaN. Here it reads
back zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

from nybble.formats.codes import to_codes
from nybble.formats.kvtype import KVType
from nybble.formats.lazy import torch
from nybble.formats.pack import divide, from_f16, pack_nibbles, to_f16, unpack_nibbles


@dataclass(frozen=True)
class LMDeployInt(KVType):
    """Codes of the head, then scale and zero point: `[data | fp16 | fp16]`.

    Attributes:
        width: bits of a code, 4 or 8.
    """

    width: int = 4

    def row_bytes(self, head_dim: int) -> int:
        """`width` bits an element and 4 bytes."""
        return head_dim * self.width // 8 + 4

    def fits(self, head_dim: int) -> bool:
        """Two 4-bit codes share a byte."""
        return head_dim % 2 == 0

    def quantize(self, x: torch.Tensor) -> torch.Tensor:
        """Round half up; with 4 bits, low nibbles hold the first half of the head."""
        top = 2**self.width - 1
        low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
        scale = divide(high - low, top)
        zero = torch.where(scale == 0, 0.0, (0 - low) / scale)  # Triton's minus: +0 for +0
        codes = to_codes(x / scale + zero + 0.5, top)
        if self.width == 4:
            codes = pack_nibbles(codes)
        return torch.cat([codes, to_f16(torch.cat([scale, zero], -1))], -1)

    def dequantize(self, data: torch.Tensor, head_dim: int) -> torch.Tensor:
        """(code - zero point) * scale."""
        codes, stored = data[..., :-4], from_f16(data[..., -4:])
        if self.width == 4:
            codes = unpack_nibbles(codes)
        return (codes.float() - stored[..., 1:]) * stored[..., :1]


TYPES = (
    LMDeployInt("lmdeploy_int4", "head x 4 bits + fp16 scale + fp16 zero point",
                "LMDeploy 0.18.0 fill_kv_cache.py, _quant_int4", ("lmdeploy",), block=0),
    LMDeployInt("lmdeploy_int8", "head x 8 bits + fp16 scale + fp16 zero point",
                "LMDeploy 0.18.0 fill_kv_cache.py, _quant_int8", ("lmdeploy",), block=0, width=8),
)  # fmt: skip
