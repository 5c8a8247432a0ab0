"""fp8_e4m3, fp8_e5m2: one byte an element and no scale but a per-tensor 1.0.

The cast rounds to nearest, ties to even, and saturates: vLLM converts with `__NV_SATFINITE` (and
Triton with cvt.rn.satfinite), LMDeploy and SGLang clamp first, so an infinity becomes 448 or
57344 and only NaN stays. Two deviations in the wild: SGLang does not clamp fp8_e5m2, which there
overflows to infinity above 61440, and vLLM's Triton backend stores e4m3 when asked for fp8_e5m2.
Checkpoints may bring another tensor scale; 1.0 is what engines use without one.
"""

from __future__ import annotations

from dataclasses import dataclass

from nybble.formats.kvtype import KVType
from nybble.formats.lazy import torch


def saturate(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Cast to a float8 dtype, the largest finite value for all that is beyond it."""
    limit = torch.finfo(dtype).max
    return x.clamp(-limit, limit).to(dtype)


@dataclass(frozen=True)
class Float8(KVType):
    """One float8 an element; the scale of 1.0 belongs to the tensor and is not stored."""

    @property
    def dtype(self) -> torch.dtype:
        """The torch dtype: 4 exponent and 3 mantissa bits without infinity, or 5 and 2."""
        return torch.float8_e4m3fn if self.name == "fp8_e4m3" else torch.float8_e5m2

    def row_bytes(self, head_dim: int) -> int:
        """One byte an element."""
        return head_dim

    def quantize(self, x: torch.Tensor) -> torch.Tensor:
        """Divide by 1.0 and cast."""
        return saturate(x, self.dtype).contiguous().view(torch.uint8)

    def dequantize(self, data: torch.Tensor, head_dim: int) -> torch.Tensor:
        """Widen to float32."""
        return data.contiguous().view(self.dtype).float()


_ENGINES = ("vllm", "sglang", "lmdeploy")

TYPES = (
    Float8("fp8_e4m3", "8-bit float: 4-bit exponent, 3-bit mantissa, up to 448; scale 1.0",
           "vLLM fp8/nvidia/quant_utils.cuh, scaled_vec_conversion",
           (*_ENGINES, "tensorrt-llm")),
    Float8("fp8_e5m2", "8-bit float: 5-bit exponent, 2-bit mantissa, up to 57344; scale 1.0",
           "vLLM fp8/nvidia/quant_utils.cuh, scaled_vec_conversion", _ENGINES),
)  # fmt: skip

ALIASES = {"fp8": "fp8_e4m3/fp8_e4m3"}  # what vLLM, LMDeploy and TensorRT-LLM call it
