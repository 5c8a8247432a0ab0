"""kivi_k2, kivi_k4, kivi_v2, kivi_v4: KIVI, keys per channel and values per token.

Keys have outlier channels, so a group is one channel of 32 tokens; values have none, so a group
is 32 channels of one token. No engine ships it; this follows the authors' repository jy-yuan/KIVI
with groups of 32 and a residual of 128. Both are settings without a default; the repository's
example.py has 32 and 32.

Keys gather in fp16 until 128 of them are quantized together, as four groups of 32. Of the values
the last 128 stay in fp16 and one is quantized for each new one. A prefill attends to raw keys and
values throughout.
"""

from __future__ import annotations

from dataclasses import dataclass

from nybble.formats.codes import min_max
from nybble.formats.kvtype import KVType
from nybble.formats.lazy import torch
from nybble.formats.pack import blocks, from_f16, pack_codes, to_f16, unpack_codes
from nybble.formats.reads import Reads

ALIASES = {"kivi2": "kivi_k2/kivi_v2", "kivi4": "kivi_k4/kivi_v4"}

_GROUP = 32


def _by_channel(x: torch.Tensor, tokens: int) -> torch.Tensor:
    """Tokens of a channel side by side: [..., n, d] -> [..., n / tokens, d * tokens]."""
    groups = x.reshape(*x.shape[:-2], x.shape[-2] // tokens, tokens, x.shape[-1])
    return groups.transpose(-1, -2).flatten(-2)


@dataclass(frozen=True)
class Kivi(KVType):
    """Codes, scales, minima: `[int32 words, low bits first | fp16 | fp16]`, each for 32.

    The keys' codes run over the tokens of the first channel, then of the second, and so on.

    Attributes:
        width: bits of a code, 2 or 4.
    """

    width: int = 4

    def _groups(self, head_dim: int) -> int:
        """Groups in a row: one a channel for keys."""
        return head_dim * self.tokens // _GROUP

    def row_bytes(self, head_dim: int) -> int:
        """`width` bits an element and 4 bytes for a group of 32."""
        return self._groups(head_dim) * (_GROUP * self.width // 8 + 4)

    def quantize(self, x: torch.Tensor) -> torch.Tensor:
        """round((x - min) / scale) in fp16, ties to even; scale = (max - min) / top in fp16."""
        w = x.half()
        if self.tokens > 1:
            w = _by_channel(w, self.tokens)
        codes, scale, low = min_max(blocks(w, _GROUP), self.width)
        return torch.cat([pack_codes(codes.flatten(-2), self.width),
                          to_f16(scale.squeeze(-1)), to_f16(low.squeeze(-1))], -1)  # fmt: skip

    def dequantize(self, data: torch.Tensor, head_dim: int) -> torch.Tensor:
        """Code * scale + minimum in float32, as bgemv4_kernel_outer_dim does."""
        size = self._groups(head_dim) * _GROUP * self.width // 8
        codes = blocks(unpack_codes(data[..., :size], self.width).float(), _GROUP)
        scale, low = from_f16(data[..., size:]).unsqueeze(-1).chunk(2, -2)
        w = (codes * scale + low).flatten(-2)
        if self.tokens > 1:
            w = blocks(w, self.tokens).transpose(-1, -2).flatten(-3, -2)
        return w


def _kivi(side: str, width: int) -> Kivi:
    """One of the four."""
    name, source = f"kivi_{side.lower()}{width}", "jy-yuan/KIVI quant/new_pack.py; in no engine"
    if side == "K":
        return Kivi(name, f"32 tokens of a channel x {width} bits + fp16 scale + fp16 minimum",
                    source, tokens=_GROUP, sides="K", reads=Reads("residual", 128),
                    width=width)  # fmt: skip
    # A query sees 128 raw values and its own; only then does the oldest go.
    return Kivi(name, f"32 x {width} bits + fp16 scale + fp16 minimum", source, block=_GROUP,
                sides="V", reads=Reads("recent", 129), width=width)  # fmt: skip


TYPES = tuple(_kivi(side, width) for width in (4, 2) for side in "KV")
