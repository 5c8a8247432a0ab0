"""int4_per_token_head: 4-bit codes, one fp32 scale and a hidden zero point for a head; vLLM.

Both sides are turned first: fixed random signs, then a Walsh-Hadamard transform over the largest
power of two that divides the head size, not normalised. The engine has no switch for it, so the
rotation is part of the codec and `dequantize` turns back. The turned head is stored with 16
levels between its minimum and maximum; the zero point takes the lowest 4 bits of the scale's
mantissa, which costs the scale at most 2^-19 of its value.

Everything is float32 here. On a GPU the engine rounds the turned vector to the model's dtype
(and the transform itself runs in bf16 there), and Triton's division is off by up to 2 ulp.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from nybble.formats.codes import butterfly, to_codes
from nybble.formats.int8_per_token_head import from_f32, to_f32
from nybble.formats.kvtype import KVType
from nybble.formats.lazy import torch
from nybble.formats.pack import blocks, divide, pack_codes, unpack_codes

_SEED = 0x9E3779B9
_ZERO_MASK = 15  # mantissa bits that hold the zero point


@lru_cache(maxsize=32)
def signs(n: int) -> torch.Tensor:
    """The engine's random signs, float32 [n]: bernoulli draws of torch's CPU generator."""
    generator = torch.Generator(device="cpu").manual_seed(_SEED)
    return 2 * torch.bernoulli(torch.full((n,), 0.5), generator=generator) - 1


@dataclass(frozen=True)
class Int4PerTokenHead(KVType):
    """Byte j holds channels 2j (low nibble) and 2j + 1, then the scale: `[data (D/2) | fp32]`."""

    def row_bytes(self, head_dim: int) -> int:
        """Half a byte an element and 4 for the scale."""
        return head_dim // 2 + 4

    def fits(self, head_dim: int) -> bool:
        """The scale must lie on a multiple of 4 bytes."""
        return head_dim % 8 == 0

    def quantize(self, x: torch.Tensor) -> torch.Tensor:
        """Turn, take 16 levels, round half up; zero lies on a level or at an end."""
        n = x.shape[-1] & -x.shape[-1]
        turned = butterfly(blocks(x, n) * signs(n).to(x.device)).flatten(-2)
        low, high = turned.amin(-1, keepdim=True), turned.amax(-1, keepdim=True)
        scale = divide(high - low, 15).clamp(min=1e-6)
        # A head that lies on one side of zero has its zero point at 0 or 15 and is clipped.
        zero = to_codes(-low / scale + 0.5, 15)
        codes = to_codes(turned * (1 / scale) + zero + 0.5, 15)
        hidden = scale.view(torch.int32) & ~_ZERO_MASK | zero.int()
        return torch.cat([pack_codes(codes, 4), to_f32(hidden.view(torch.float32))], -1)

    def dequantize(self, data: torch.Tensor, head_dim: int) -> torch.Tensor:
        """(code - zero point) times the scale without its lowest 4 bits, turned back."""
        return _turned_back(self.coded(data, head_dim))

    def coded(self, data: torch.Tensor, head_dim: int) -> torch.Tensor:
        """The same before it is turned back."""
        hidden = from_f32(data[..., head_dim // 2 :]).view(torch.int32)
        scale = (hidden & ~_ZERO_MASK).view(torch.float32)
        codes = unpack_codes(data[..., : head_dim // 2], 4).float()
        return (codes - (hidden & _ZERO_MASK)) * scale

    def query_in(self, q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The transform is its own inverse but for a factor n, so queries turn alike."""
        n = q.shape[-1] & -q.shape[-1]
        return (butterfly(blocks(q, n) * signs(n).to(q.device)) / n).flatten(-2), None

    def sum_out(self, y: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Turned back: the transform again, divided by its size."""
        return _turned_back(y)


def _turned_back(y: torch.Tensor) -> torch.Tensor:
    n = y.shape[-1] & -y.shape[-1]
    back = butterfly(blocks(y, n)) * signs(n).to(y.device)
    return (back / n).flatten(-2)


TYPES = (
    Int4PerTokenHead("int4_per_token_head",
                     "randomised Hadamard; head x 4 bits + fp32 scale with the zero point in it",
                     "vLLM 0.32.0 int4_per_token_head.py", ("vllm",), block=0),
)  # fmt: skip
