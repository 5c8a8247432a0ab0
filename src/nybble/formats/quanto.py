"""quanto_2, quanto_4: transformers' QuantizedCache with the optimum-quanto backend.

transformers passes axis 0 and groups of 64 on [batch, heads, tokens, channels], which quanto
flattens: a group is 64 neighbouring channels of one token, for keys too, whatever the word
"per-channel" in the documentation says. Scale and shift have the model's dtype, fp16 here. Head
sizes that 64 does not divide run on into the next token or head there; they do not fit here.

quanto packs the first half of all groups of the tensor with the second half (quarters for 2
bits); here that is done within each token. Every time the residual is full, transformers reads
the whole cache, joins it with the residual and quantizes all of it again; the levels are their
own nearest levels, so that changes next to nothing, and here it is done once.
"""

from __future__ import annotations

from dataclasses import dataclass

from nybble.formats.codes import min_max
from nybble.formats.kvtype import KVType
from nybble.formats.lazy import torch
from nybble.formats.pack import blocks, from_f16, to_f16
from nybble.formats.reads import Reads

_GROUP = 64


@dataclass(frozen=True)
class Quanto(KVType):
    """Codes, scales, shifts: `[uint8 codes, first channels in the low bits | fp16 | fp16]`.

    Attributes:
        width: bits of a code, 2 or 4.
    """

    width: int = 4

    def row_bytes(self, head_dim: int) -> int:
        """`width` bits an element and 4 bytes for 64 channels."""
        return head_dim * self.width // 8 + head_dim // _GROUP * 4

    def quantize(self, x: torch.Tensor) -> torch.Tensor:
        """MaxOptimizer: round((x - min) / scale) in fp16, ties to even; the shift is -min."""
        codes, scale, low = min_max(blocks(x.half(), _GROUP), self.width)
        packed = torch.zeros_like(codes.flatten(-2)[..., : x.shape[-1] * self.width // 8])
        for i, part in enumerate(codes.flatten(-2).chunk(8 // self.width, -1)):
            packed = packed | part << i * self.width
        return torch.cat([packed, to_f16(scale.squeeze(-1)), to_f16(-low.squeeze(-1))], -1)

    def dequantize(self, data: torch.Tensor, head_dim: int) -> torch.Tensor:
        """Scale * code - shift, both steps rounded to fp16."""
        size = head_dim * self.width // 8
        parts = [data[..., :size] >> at & 2**self.width - 1 for at in range(0, 8, self.width)]
        codes = blocks(torch.cat(parts, -1).half(), _GROUP)
        scale, shift = from_f16(data[..., size:]).half().unsqueeze(-1).chunk(2, -2)
        return (scale * codes - shift).float().flatten(-2)


# The prompt is stored at once, but the forward that brings it reads it raw; then 128 tokens
# gather in the model's dtype. The token that fills the residual still reads it raw.
_READS = Reads("residual", 128)

TYPES = (
    Quanto("quanto_4", "64 x 4 bits + fp16 scale + fp16 shift",
           "optimum-quanto 0.2.7 max_optimizer.py, library/quantize.py", ("transformers",),
           block=_GROUP, reads=_READS),
    Quanto("quanto_2", "64 x 2 bits + fp16 scale + fp16 shift",
           "optimum-quanto 0.2.7 max_optimizer.py, library/quantize.py", ("transformers",),
           block=_GROUP, reads=_READS, width=2),
)  # fmt: skip
