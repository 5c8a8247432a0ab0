"""f32, f16, bf16: plain floats, what a cache holds when it is not quantized."""

from __future__ import annotations

from dataclasses import dataclass

from nybble.formats.kvtype import KVType
from nybble.formats.lazy import torch

_EVERY = ("llama.cpp", "ollama", "vllm", "exllamav2", "exllamav3", "sglang", "lmdeploy",
          "tensorrt-llm", "mlx-lm", "transformers")  # fmt: skip


@dataclass(frozen=True)
class Float(KVType):
    """A float of `size` bytes."""

    size: int = 4

    @property
    def quantized(self) -> bool:
        """False: no codes, no scale."""
        return False

    @property
    def dtype(self) -> torch.dtype:
        """The torch dtype of the same name."""
        return {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[self.name]

    def row_bytes(self, head_dim: int) -> int:
        """`size` bytes an element."""
        return self.size * head_dim

    def quantize(self, x: torch.Tensor) -> torch.Tensor:
        """Round to nearest, ties to even, overflow to infinity; a NaN's payload is the hardware's.

        Always a copy: what is stored must not change with x.
        """
        stored = x.to(self.dtype, copy=True, memory_format=torch.contiguous_format)
        return stored.view(torch.uint8)

    def dequantize(self, data: torch.Tensor, head_dim: int) -> torch.Tensor:
        """Widen to float32."""
        # A copy starts at an aligned address, which a slice of somebody's buffer may not.
        aligned = data.clone(memory_format=torch.contiguous_format)
        return aligned.view(self.dtype).float()


TYPES = (
    Float("f32", "32-bit float; flash attention on the CPU reads it as f16", "IEEE 754",
          ("llama.cpp",), ggml_id=0, size=4),
    Float("f16", "16-bit float: 5-bit exponent, 10-bit mantissa", "IEEE 754",
          _EVERY, ggml_id=1, size=2),
    Float("bf16", "16-bit float: 8-bit exponent, 7-bit mantissa", "bfloat16",
          tuple(e for e in _EVERY if e != "ollama"), ggml_id=30, size=2),
)  # fmt: skip
