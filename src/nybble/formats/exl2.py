"""exl2_q4, exl2_q8: ExLlamaV2's Q4 and Q8 caches; its Q6 cache is Q8 for K with Q4 for V.

A Hadamard transform of 32 channels is always on, in fp16 and without its factor: its 1 / 32 is
applied when read. A GPU warp holds 64 channels as pairs, so one transform runs over the even and
one over the odd channels of every 64, while each scale serves 32 neighbours of the result.

Where 64 does not divide the head size, the engine lets blocks run on into the next head; such
heads do not fit here. It allocates codes and scales as two tensors, and quantizes in runs of 512
values: where those do not end with a token, up to 511 earlier values are read and stored again.
"""

from __future__ import annotations

from dataclasses import dataclass

from nybble.formats.codes import butterfly, to_codes
from nybble.formats.kvtype import KVType
from nybble.formats.lazy import torch
from nybble.formats.pack import blocks, from_f16, pack_codes, to_f16, unpack_codes
from nybble.formats.reads import CHUNK

ALIASES = {"exl2_q6": "exl2_q8/exl2_q4"}


def _turn(w: torch.Tensor) -> torch.Tensor:
    """Transform even and odd channels of every 64: float16 [..., 64 n], not normalised."""
    pairs = blocks(blocks(w, 64), 2).transpose(-1, -2)
    return butterfly(pairs).transpose(-1, -2).flatten(-3)


def _absmax(w: torch.Tensor) -> torch.Tensor:
    """Largest magnitude as __hmax finds it: NaN only where all are NaN."""
    size = torch.where(w.isnan(), -1.0, w.abs()).amax(-1, keepdim=True)
    return torch.where(size < 0, torch.nan, size)


@dataclass(frozen=True)
class ExLlamaV2(KVType):
    """Codes, then scales: `[uint8 codes, low bits first | fp16 scale for each 32]`.

    Attributes:
        width: bits of a code, 4 or 8.
    """

    width: int = 4

    def row_bytes(self, head_dim: int) -> int:
        """`width` bits an element and 2 bytes for 32 channels."""
        return head_dim * self.width // 8 + head_dim // 32 * 2

    def quantize(self, x: torch.Tensor) -> torch.Tensor:
        """Codes are round(8 w / absmax + 8), ties to even, for 4 bits; 128 for 8 bits.

        Every step rounds to fp16: the quotient, and the sum with 8 (a fused multiply-add whose
        product is exact). The largest positive value asks for code 16 and is cut to 15.
        """
        w = blocks(_turn(x.half()), 32)
        absmax, middle = _absmax(w), 2 ** (self.width - 1)
        codes = to_codes((w / absmax * middle + middle).round(), 2**self.width - 1)
        scales = (absmax / middle).squeeze(-1)
        return torch.cat([pack_codes(codes.flatten(-2), self.width), to_f16(scales)], -1)

    def dequantize(self, data: torch.Tensor, head_dim: int) -> torch.Tensor:
        """(code - 8) * scale in fp16, turned back in fp16, times 1 / 32."""
        size = head_dim * self.width // 8
        levels = unpack_codes(data[..., :size], self.width).half() - 2 ** (self.width - 1)
        scales = from_f16(data[..., size:]).half().unsqueeze(-1)
        return (_turn((blocks(levels, 32) * scales).flatten(-2)) / 32).float()


# get_kv_state reads the cache into fp16, attention adds the new tokens to that, and only then
# store_kv_state quantizes them: a query sees its own chunk raw.
TYPES = (
    ExLlamaV2("exl2_q4", "32 x 4 bits + fp16 scale, Hadamard 32",
              "ExLlamaV2 0.3.2 cuda/cache_q.cuh, fp16_to_q", ("exllamav2",), block=64,
              reads=CHUNK),
    ExLlamaV2("exl2_q8", "32 x 8 bits + fp16 scale, Hadamard 32",
              "ExLlamaV2 0.3.2 cuda/cache_q.cuh, fp16_to_q", ("exllamav2",), block=64,
              reads=CHUNK, width=8),
)  # fmt: skip
