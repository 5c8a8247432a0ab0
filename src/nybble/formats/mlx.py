"""mlx_4, mlx_8: mlx-lm's --kv-bits with its default group of 64 channels; mx.quantize, affine.

The end of the range with the larger magnitude, the edge, has code 0; the scale, negative when the
edge is the maximum, is (max - min) / top, then changed so that the edge is a whole number of
scales away from zero. So zeros stay zero, and the other end may be cut by up to one scale.

Scale and bias are stored in the model's dtype: fp16 here; in bf16 both are eight times coarser,
the codes being made with the unrounded float32 values. The rule is the one of mlx's CPU code. The
Metal kernel starts the maximum at 0, so groups without a positive value get a wider range, and it
rounds ties away from zero instead of to even.

`mx.quantized_matmul` reads the cache and Metal sums in float32; code * scale + bias is float32
here, where mx.dequantize would round it to the model's dtype.
"""

from __future__ import annotations

from dataclasses import dataclass

from nybble.formats.codes import to_codes
from nybble.formats.kvtype import KVType
from nybble.formats.lazy import torch
from nybble.formats.pack import blocks, divide, from_f16, pack_codes, to_f16, unpack_codes

_GROUP = 64
_EPS = 1e-7  # smallest scale; keeps a group of equal values from dividing by zero


@dataclass(frozen=True)
class Mlx(KVType):
    """Codes, scales, biases: `[uint32 words, low bits first | fp16 | fp16]`, each for 64.

    Attributes:
        width: bits of a code, 4 or 8.
    """

    width: int = 4

    def row_bytes(self, head_dim: int) -> int:
        """`width` bits an element and 4 bytes for 64 channels."""
        return head_dim * self.width // 8 + head_dim // _GROUP * 4

    def quantize(self, x: torch.Tensor) -> torch.Tensor:
        """Round to nearest in float32, ties to even, for the code and for the edge's level."""
        w, top = blocks(x.half().float(), _GROUP), 2**self.width - 1
        low, high = w.amin(-1, keepdim=True), w.amax(-1, keepdim=True)
        edge_is_low = low.abs() > high.abs()
        edge = torch.where(edge_is_low, low, high)
        scale = divide(high - low, top).clamp(min=_EPS)
        scale = torch.where(edge_is_low, scale, -scale)
        steps = (edge / scale).round()
        scale = torch.where(steps == 0, scale, edge / steps)
        bias = torch.where(steps == 0, 0.0, edge)
        codes = to_codes(((w - bias) / scale).round(), top)
        return torch.cat([pack_codes(codes.flatten(-2), self.width),
                          to_f16(scale.squeeze(-1)), to_f16(bias.squeeze(-1))], -1)  # fmt: skip

    def dequantize(self, data: torch.Tensor, head_dim: int) -> torch.Tensor:
        """Code * scale + bias."""
        size = head_dim * self.width // 8
        codes = blocks(unpack_codes(data[..., :size], self.width).float(), _GROUP)
        scale, bias = from_f16(data[..., size:]).unsqueeze(-1).chunk(2, -2)
        return (codes * scale + bias).flatten(-2)


# The first prefill chunks, up to --quantized-kv-start (default 5000), run on a plain cache that
# is converted after the chunk. From then on QuantizedKVCache.update_and_fetch returns the new
# tokens quantized too, so every later query reads all keys as stored, its own included.
TYPES = (
    Mlx("mlx_4", "64 x 4 bits + fp16 scale + fp16 bias",
        "mlx 0.32.4 backend/cpu/quantized.cpp, quantize", ("mlx-lm",), block=_GROUP),
    Mlx("mlx_8", "64 x 8 bits + fp16 scale + fp16 bias",
        "mlx 0.32.4 backend/cpu/quantized.cpp, quantize", ("mlx-lm",), block=_GROUP, width=8),
)  # fmt: skip
