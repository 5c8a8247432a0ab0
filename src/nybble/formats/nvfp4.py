"""nvfp4: 4-bit floats and one e4m3 scale for 16 channels; vLLM and SGLang.

The tensor scale above the block scales is 1.0, what both engines use for a checkpoint without
calibrated ones. Block scales are then e4m3 numbers themselves: a block below 2^-10 x 6 becomes
zeros, one above 448 x 6 is clipped. nvfp4_4over6 has the same bytes; it also tries 4 as the code
of the largest magnitude and keeps what has the smaller squared error.

Values follow FlashInfer's store kernel; it and vLLM's own take the reciprocals from the hardware
(rcp.approx, 1 ulp), so a code on a rounding boundary may differ. vLLM's SM100 kernels interleave
the V scales of 4 tokens inside a page and round queries to fp8: neither is part of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

from nybble.formats.fp8 import saturate
from nybble.formats.kvtype import KVType
from nybble.formats.lazy import torch
from nybble.formats.pack import blocks, divide, pack_codes, unpack_codes

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # magnitudes of codes 0 to 7; bit 3 is the sign


def e2m1_values(codes: torch.Tensor) -> torch.Tensor:
    """Read 4-bit floats: uint8 codes -> float32, same shape."""
    levels = torch.tensor([*E2M1, *(-v for v in E2M1)], device=codes.device)
    return levels[codes.long()]


def e2m1_codes(x: torch.Tensor) -> torch.Tensor:
    """Round to the nearest 4-bit float, ties to the even code, 6 at most; keeps the sign of 0."""
    size = x.abs().nan_to_num(0.0).contiguous()
    # A boundary belongs to the even code next to it: the code below it, or the one above.
    below = torch.tensor([0.25, 1.25, 2.5, 5.0], device=x.device)
    above = torch.tensor([0.75, 1.75, 3.5], device=x.device)
    codes = torch.bucketize(size, below) + torch.bucketize(size, above, right=True)
    return (codes + 8 * x.signbit()).to(torch.uint8)


@dataclass(frozen=True)
class NVFP4(KVType):
    """Codes of the head, even channel in the low nibble, then scales: `[D/2 | D/16 e4m3]`.

    Attributes:
        peaks: codes the largest magnitude of a block may take; the best is kept.
    """

    peaks: tuple[float, ...] = (6.0,)

    def row_bytes(self, head_dim: int) -> int:
        """9 bytes for 16 channels."""
        return head_dim // 2 + head_dim // 16

    def quantize(self, x: torch.Tensor) -> torch.Tensor:
        """The scale is rounded to e4m3 first, codes are made with the rounded one."""
        b = blocks(x, 16)
        largest = torch.where(b.isnan(), 0.0, b.abs()).amax(-1, keepdim=True)
        scale, codes = self._with_peak(b, largest, self.peaks[0])
        for peak in self.peaks[1:]:
            other = self._with_peak(b, largest, peak)
            better = _error(b, *other) < _error(b, scale, codes)
            scale = torch.where(better, other[0].float(), scale.float()).to(scale.dtype)
            codes = torch.where(better, other[1], codes)
        return torch.cat(
            [pack_codes(codes.flatten(-2), 4), scale.view(torch.uint8).flatten(-2)], -1
        )

    @staticmethod
    def _with_peak(
        b: torch.Tensor, largest: torch.Tensor, peak: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scales and codes where the largest magnitude is to become `peak`."""
        scale = saturate(divide(largest, peak), torch.float8_e4m3fn)
        inverse = torch.where(scale.float() > 0, 1 / scale.float(), 0.0)
        return scale, e2m1_codes(b * inverse)

    def dequantize(self, data: torch.Tensor, head_dim: int) -> torch.Tensor:
        """4-bit float times block scale (times the tensor scale, 1.0)."""
        values = blocks(e2m1_values(unpack_codes(data[..., : head_dim // 2], 4)), 16)
        scale = data[..., head_dim // 2 :].contiguous().view(torch.float8_e4m3fn)
        return (values * scale.float().unsqueeze(-1)).flatten(-2)


def _error(b: torch.Tensor, scale: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Sum of squared errors of each block."""
    return (e2m1_values(codes) * scale.float() - b).square().sum(-1, keepdim=True)


TYPES = (
    NVFP4("nvfp4", "16 x e2m1 + e4m3 scale; tensor scale 1.0",
          "FlashInfer 0.7.2 page.cuh, nvfp4_append_quantize_block", ("vllm", "sglang"), block=16),
    NVFP4("nvfp4_4over6", "nvfp4 with the better of two scales: largest value as 6 or as 4",
          "vLLM nvfp4_kv_cache_kernels.cu, cvt_warp_fp16_to_fp4_4over6", ("vllm",), block=16,
          peaks=(6.0, 4.0)),
)  # fmt: skip
