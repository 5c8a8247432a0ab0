"""hqq_4, hqq_8: transformers' QuantizedCache with the HQQ backend, axis 1, groups of 64.

hqq starts from min-max and then moves the zero points: up to 20 rounds of half-quadratic steps
that make the error sparse (an L0.7 norm), while the scales stay. transformers leaves this on.

axis_key and axis_value must be set to 1, which is also hqq's advice for weights: a group is then
64 neighbouring channels of one token. transformers' default of 0 folds the tensor into 64 rows,
so that a group gathers values from all heads and tokens; one head alone cannot show that.

The rounds end when the mean error over everything stored at once stops falling, so a token's
bytes depend a little on its company: give `quantize` what the engine would give, all heads of all
tokens. On a GPU hqq works in fp16 until the last rounding, here in float32 as on a CPU. hqq packs
the first half of all groups of the tensor with the second half; here that is done within a token.
"""

from __future__ import annotations

from dataclasses import dataclass

from nybble.formats.codes import to_codes
from nybble.formats.kvtype import KVType
from nybble.formats.lazy import torch
from nybble.formats.pack import blocks, from_f16, to_f16
from nybble.formats.reads import Reads

_GROUP = 64
_ROUNDS, _BETA, _NORM = 20, 10.0, 0.7  # defaults of optimize_weights_proximal_legacy
_FLAT, _STEEPEST = 1e-4, 2e4  # ranges up to the first have scale 1; no scale above the second


def _shrink(error: torch.Tensor) -> torch.Tensor:
    """Proximal step of the L0.7 norm: small errors to 0, large ones a little smaller."""
    size = error.abs()
    return (size - size.pow(_NORM - 1) * (1 / _BETA)).clamp(min=0) * error.sign()


def _zero_points(
    w: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, top: int
) -> torch.Tensor:
    """Moved zero points; the round that brings no gain is kept, as in hqq."""
    best = torch.inf
    for _ in range(_ROUNDS):
        codes = (w * scale + zero).round().clamp(0, top)
        error = w - (codes - zero) / scale
        zero = (codes - (w - _shrink(error)) * scale).mean(-1, keepdim=True)
        mean = error.abs().mean().item()
        if not mean < best:
            break
        best = mean
    return zero


@dataclass(frozen=True)
class Hqq(KVType):
    """Codes, scales, zero points: `[uint8 codes, first channels in the high bits | fp16 | fp16]`.

    Attributes:
        width: bits of a code, 4 or 8.
    """

    width: int = 4

    def row_bytes(self, head_dim: int) -> int:
        """`width` bits an element and 4 bytes for 64 channels."""
        return head_dim * self.width // 8 + head_dim // _GROUP * 4

    def quantize(self, x: torch.Tensor) -> torch.Tensor:
        """Codes are round(x * steps + zero) in float32, ties to even; stored is 1 / steps."""
        w, top = blocks(x.half().float(), _GROUP), 2**self.width - 1
        low, high = w.amin(-1, keepdim=True), w.amax(-1, keepdim=True)
        span = high - low
        steps = torch.where(span <= _FLAT, 1.0, top / span).clamp(max=_STEEPEST)
        zero = _zero_points(w, steps, -low * steps, top)
        codes = to_codes((w * steps + zero).round(), top).flatten(-2)
        if self.width == 4:
            first, second = codes.chunk(2, -1)
            codes = first << 4 | second
        return torch.cat([codes, to_f16((1 / steps).squeeze(-1)), to_f16(zero.squeeze(-1))], -1)

    def dequantize(self, data: torch.Tensor, head_dim: int) -> torch.Tensor:
        """(code - zero) * scale, both steps rounded to fp16."""
        size = head_dim * self.width // 8
        codes = data[..., :size]
        if self.width == 4:
            codes = torch.cat([codes >> 4, codes & 15], -1)
        scale, zero = from_f16(data[..., size:]).half().unsqueeze(-1).chunk(2, -2)
        return ((blocks(codes.half(), _GROUP) - zero) * scale).float().flatten(-2)


_READS = Reads("residual", 128)  # the same window as for quanto

TYPES = (
    Hqq("hqq_4", "64 x 4 bits + fp16 scale + fp16 zero point",
        "hqq 0.2.8.post1 core/quantize.py and optimize.py", ("transformers",), block=_GROUP,
        reads=_READS),
    Hqq("hqq_8", "64 x 8 bits + fp16 scale + fp16 zero point",
        "hqq 0.2.8.post1 core/quantize.py and optimize.py", ("transformers",), block=_GROUP,
        reads=_READS, width=8),
)  # fmt: skip
