"""int8_per_token_head: int8 codes and one fp32 scale for a head of a token; vLLM.

Symmetric: the largest magnitude becomes 127, so code -128 is never used. Computed in float32
from keys and values in the model's dtype. Triton divides with up to 2 ulp of error on a GPU
(div.full.f32) where this divides exactly: the last bit of a scale may differ, and a code where a
value falls on a half step.
"""

from __future__ import annotations

from dataclasses import dataclass

from nybble.formats.kvtype import KVType
from nybble.formats.lazy import torch
from nybble.formats.pack import divide


def to_f32(scale: torch.Tensor) -> torch.Tensor:
    """Bytes of fp32 scales, little endian: float32 [..., 1] -> uint8 [..., 4]."""
    return scale.contiguous().view(torch.uint8)


def from_f32(data: torch.Tensor) -> torch.Tensor:
    """Read fp32 scales back: uint8 [..., 4] -> float32 [..., 1]."""
    # A copy starts at an aligned address, which a slice of a row may not.
    return data.clone(memory_format=torch.contiguous_format).view(torch.float32)


@dataclass(frozen=True)
class Int8PerTokenHead(KVType):
    """Codes of the whole head, then the scale: `[data (D) | fp32]`."""

    def row_bytes(self, head_dim: int) -> int:
        """A byte an element and 4 for the scale."""
        return head_dim + 4

    def fits(self, head_dim: int) -> bool:
        """The scale must lie on a multiple of 4 bytes."""
        return head_dim % 4 == 0

    def quantize(self, x: torch.Tensor) -> torch.Tensor:
        """Round half away from zero; the scale is at least 1e-6, so zeros stay zeros."""
        scale = divide(x.abs().amax(-1, keepdim=True), 127).clamp(min=1e-6)
        q = x * (1 / scale)
        q = torch.where(q >= 0, q + 0.5, q - 0.5).clamp(-128, 127)
        codes = q.nan_to_num(0.0).to(torch.int8).view(torch.uint8)
        return torch.cat([codes, to_f32(scale)], -1)

    def dequantize(self, data: torch.Tensor, head_dim: int) -> torch.Tensor:
        """Code times scale."""
        codes = data[..., :head_dim].contiguous().view(torch.int8)
        return codes.float() * from_f32(data[..., head_dim:])


TYPES = (
    Int8PerTokenHead("int8_per_token_head", "head x int8 + fp32 scale",
                     "vLLM 0.32.0 triton_reshape_and_cache_flash.py, _reshape_cache_per_token_head",
                     ("vllm",), block=0),
)  # fmt: skip
