"""exl3_2 to exl3_8: ExLlamaV3's cache at any width from 2 to 8 bits, K and V chosen apart.

32 channels are turned by a normalised Hadamard matrix and divided by their largest magnitude;
[-1, 1] is then cut into 2^k equal cells, and a value comes back as the middle of its cell. The
compander (`-cca`, off by default) is not modelled. Since v1.0.0 codes are packed in bit planes of
power-of-two width, widest first: 5 bits are a plane of the four upper bits and a plane of the
lowest. The engine keeps codes and scales in two tensors.

It is built with --use_fast_math, which takes 1 / absmax from a GPU approximation; here it is
rounded, so a value within an ulp of a cell's edge may get the neighbouring code there. Attention
reads packed codes without ever turning them back (it turns the queries, in fp16), or reads them
into fp16 first for long prefills; the second is what `dequantize` does.
"""

from __future__ import annotations

from dataclasses import dataclass

from nybble.formats.codes import butterfly, to_codes
from nybble.formats.kvtype import KVType
from nybble.formats.lazy import torch
from nybble.formats.pack import blocks, from_f16, pack_codes, to_f16, unpack_codes

_NORM = 32**-0.5  # of the 32 x 32 Hadamard matrix
_TINY = 1e-10  # added to the largest magnitude, so that a zero block divides


def _planes(width: int) -> tuple[int, ...]:
    """Widths of the bit planes: the powers of two that sum to `width`, widest first."""
    return tuple(w for w in (8, 4, 2, 1) if width & w)


@dataclass(frozen=True)
class ExLlamaV3(KVType):
    """Codes, then scales: `[width x uint32 for each 32 | fp16 scale for each 32]`.

    Attributes:
        width: bits of a code, 2 to 8.
    """

    width: int = 4

    def row_bytes(self, head_dim: int) -> int:
        """`width` 4-byte words and a 2-byte scale for 32 channels."""
        return head_dim // 32 * (4 * self.width + 2)

    def quantize(self, x: torch.Tensor) -> torch.Tensor:
        """Codes are floor(m w / absmax + m), m = 2^(width - 1), in float32 with exact absmax."""
        w = butterfly(blocks(x.half().float(), 32)) * _NORM
        absmax, m = w.abs().amax(-1, keepdim=True) + _TINY, 2 ** (self.width - 1)
        codes = to_codes((w * (1 / absmax) * m + m).floor(), 2**self.width - 1)
        left, planes = self.width, []
        for plane in _planes(self.width):
            left -= plane
            planes.append(pack_codes(codes >> left & 2**plane - 1, plane))
        return torch.cat([torch.cat(planes, -1).flatten(-2), to_f16(absmax.squeeze(-1))], -1)

    def dequantize(self, data: torch.Tensor, head_dim: int) -> torch.Tensor:
        """(code - m + 1/2) * scale / m, turned back in float32, rounded to fp16."""
        size, m = head_dim // 8 * self.width, 2 ** (self.width - 1)
        words, at = blocks(data[..., :size], 4 * self.width), 0
        codes = torch.zeros_like(words[..., :1])
        for plane in _planes(self.width):
            codes = codes << plane | unpack_codes(words[..., at : at + 4 * plane], plane)
            at += 4 * plane
        scales = from_f16(data[..., size:]).unsqueeze(-1) * _NORM
        w = (codes.float() - (m - 0.5)) * (scales / m)
        return butterfly(w).half().float().flatten(-2)


# New tokens are stored before attention runs (update_kv_direct), so all is read as stored.
TYPES = tuple(
    ExLlamaV3(f"exl3_{width}", f"32 x {width} bits + fp16 scale, Hadamard 32",
              "ExLlamaV3 1.6.5 cache/q_cache_kernels.cuh, quant_block_x4", ("exllamav3",),
              block=32, width=width)
    for width in range(2, 9)
)  # fmt: skip
