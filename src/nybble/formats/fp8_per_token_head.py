"""fp8_per_token_head: e4m3 codes and one fp32 scale for a head of a token; vLLM.

The same kernel as int8_per_token_head with a largest code of 448. It has 8.25 bits like it, yet
3 mantissa bits: the step is finer near zero and coarser near the largest value. Division has up
to 2 ulp of error on a GPU, as there. ROCm parts with e4m3fnuz (largest code 224) are not covered.
"""

from __future__ import annotations

from dataclasses import dataclass

from nybble.formats.fp8 import saturate
from nybble.formats.int8_per_token_head import from_f32, to_f32
from nybble.formats.kvtype import KVType
from nybble.formats.lazy import torch
from nybble.formats.pack import divide


@dataclass(frozen=True)
class Fp8PerTokenHead(KVType):
    """Codes of the whole head, then the scale: `[data (D) | fp32]`."""

    def row_bytes(self, head_dim: int) -> int:
        """A byte an element and 4 for the scale."""
        return head_dim + 4

    def fits(self, head_dim: int) -> bool:
        """The scale must lie on a multiple of 4 bytes."""
        return head_dim % 4 == 0

    def quantize(self, x: torch.Tensor) -> torch.Tensor:
        """The largest magnitude becomes 448; the scale is at least 1e-6."""
        scale = divide(x.abs().amax(-1, keepdim=True), 448).clamp(min=1e-6)
        codes = saturate(x * (1 / scale), torch.float8_e4m3fn).view(torch.uint8)
        return torch.cat([codes, to_f32(scale)], -1)

    def dequantize(self, data: torch.Tensor, head_dim: int) -> torch.Tensor:
        """Code times scale."""
        codes = data[..., :head_dim].contiguous().view(torch.float8_e4m3fn)
        return codes.float() * from_f32(data[..., head_dim:])


TYPES = (
    Fp8PerTokenHead("fp8_per_token_head", "head x e4m3 + fp32 scale",
                    "vLLM 0.32.0 triton_reshape_and_cache_flash.py, _reshape_cache_per_token_head",
                    ("vllm",), block=0),
)  # fmt: skip
