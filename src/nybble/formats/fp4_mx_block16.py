"""fp4_mx_block16: 4-bit floats and one power-of-two scale for 16 channels; SGLang.

MXFP4's recipe on half its block. The scale is rounded up, so nothing is clipped, and a block
whose largest value lies just above 6 x 2^k uses little more than half of its codes. Ties go away
from zero, unlike in nvfp4. SGLang compiles these very torch operations (float32 inside); the log2
of a value within 1 ulp of a power of two is left to the hardware.
"""

from __future__ import annotations

from dataclasses import dataclass

from nybble.formats.kvtype import KVType
from nybble.formats.lazy import torch
from nybble.formats.nvfp4 import e2m1_values
from nybble.formats.pack import blocks, divide, pack_codes, unpack_codes
from nybble.formats.reads import CHUNK

_BIAS = 127  # of the e8m0 scale


def e8m0_values(data: torch.Tensor) -> torch.Tensor:
    """2 ** (byte - 127): uint8 -> float32, whose exponent field is that very byte."""
    return (data.to(torch.int32) << 23).view(torch.float32)


@dataclass(frozen=True)
class FP4MXBlock16(KVType):
    """Codes of the head, even channel in the low nibble, then scales: `[D/2 | D/16 e8m0]`."""

    def row_bytes(self, head_dim: int) -> int:
        """9 bytes for 16 channels."""
        return head_dim // 2 + head_dim // 16

    def quantize(self, x: torch.Tensor) -> torch.Tensor:
        """Scale 2^e, e the smallest integer that keeps the largest magnitude at 6 or below."""
        b = blocks(x, 16)
        largest = b.abs().amax(-1, keepdim=True)
        exponent = divide(largest, 6).clamp(min=1e-10).log2().ceil().nan_to_num(0.0)
        scales = (exponent.clamp(max=127) + _BIAS).to(torch.uint8)
        scaled = (b / e8m0_values(scales)).contiguous()
        boundaries = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0], device=x.device)
        size = torch.bucketize(scaled.abs().nan_to_num(0.0), boundaries, right=True)
        codes = (size + 8 * (scaled < 0)).to(torch.uint8)
        return torch.cat([pack_codes(codes.flatten(-2), 4), scales.flatten(-2)], -1)

    def dequantize(self, data: torch.Tensor, head_dim: int) -> torch.Tensor:
        """4-bit float times 2^e; the engine's cast to bf16 changes nothing."""
        values = blocks(e2m1_values(unpack_codes(data[..., : head_dim // 2], 4)), 16)
        return (values * e8m0_values(data[..., head_dim // 2 :]).unsqueeze(-1)).flatten(-2)


TYPES = (
    FP4MXBlock16("fp4_mx_block16", "16 x e2m1 + e8m0 scale",
                 "SGLang 0.5.23 kvfp4_tensor.py, FP4MXBlock16KVQuantizeUtil", ("sglang",),
                 block=16, reads=CHUNK),
)  # fmt: skip
