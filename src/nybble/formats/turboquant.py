"""turboquant_k4, turboquant_v4: the two sides of vLLM's turboquant_4bit_nc.

Keys: the direction of the head is turned by a plain Hadamard matrix, after which its channels
look like draws from N(0, 1/D); each takes the nearest of 16 Lloyd-Max levels for that law. The
length is kept in fp16, and reading gives the levels unit length again ("norm correction").
Values: not turned, 16 even levels between minimum and maximum, fp16 scale and minimum.

vLLM puts K and V of a head into one slot, K first; on gfx950 it keeps scales in a region of their
own. It attends to the current chunk raw in prefill unless that continues a prompt with 128 tokens
or fewer. The matrix product in float32 is left to cuBLAS, and division to the hardware (2 ulp).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from nybble.formats.codes import to_codes
from nybble.formats.kvtype import KVType
from nybble.formats.lazy import torch
from nybble.formats.pack import divide, from_f16, pack_codes, to_f16, unpack_codes
from nybble.formats.reads import CHUNK
from nybble.formats.rotation import rotate, unrotate


@lru_cache(maxsize=32)
def lloyd_max_levels(head_dim: int) -> torch.Tensor:
    """The 16 levels for N(0, 1/head_dim), float32, ascending.

    Lloyd's iteration from even levels over 3.5 standard deviations, at most 200 rounds; means by
    the trapezoid rule on 200 intervals. It stops short of the optimum, so both count.
    """
    reach = 3.5 * head_dim**-0.5
    ranks = torch.arange(16, dtype=torch.float64)
    levels: torch.Tensor = -reach + 2 * reach * (ranks + 0.5) / 16
    steps = torch.arange(201, dtype=torch.float64)
    ends = torch.tensor([-3 * reach, 3 * reach], dtype=torch.float64)
    for _ in range(200):
        edges = torch.cat([ends[:1], (levels[1:] + levels[:-1]) / 2, ends[1:]])
        x = edges[:-1, None] + edges.diff()[:, None] / 200 * steps
        weight = torch.exp(-x.square() * head_dim / 2)
        weight[:, [0, -1]] /= 2
        means = (x * weight).sum(-1) / weight.sum(-1)
        if (means - levels).abs().max() < 1e-10:
            break
        levels = means
    return levels.float()


@dataclass(frozen=True)
class TurboQuantKey(KVType):
    """Level numbers, even channel in the low nibble, then the length: `[D/2 | fp16]`."""

    def row_bytes(self, head_dim: int) -> int:
        """Half a byte an element and 2."""
        return head_dim // 2 + 2

    def fits(self, head_dim: int) -> bool:
        """The Hadamard matrix spans the head: a power of two."""
        return head_dim > 1 and head_dim & (head_dim - 1) == 0

    def quantize(self, x: torch.Tensor) -> torch.Tensor:
        """Turn the direction, take the level between whose midpoints it falls."""
        length = x.norm(dim=-1, keepdim=True)
        turned = rotate(x / (length + 1e-8), x.shape[-1])
        levels = lloyd_max_levels(x.shape[-1]).to(x.device)
        # right=True: a value on a midpoint takes the upper level.
        codes = torch.bucketize(turned, (levels[1:] + levels[:-1]) / 2, right=True)
        return torch.cat([pack_codes(codes.to(torch.uint8), 4), to_f16(length)], -1)

    def dequantize(self, data: torch.Tensor, head_dim: int) -> torch.Tensor:
        """Levels scaled to the stored length, turned back."""
        levels = lloyd_max_levels(head_dim).to(data.device)
        turned = levels[unpack_codes(data[..., :-2], 4).long()]
        unit = turned * (1 / (turned.square().sum(-1, keepdim=True) + 1e-16).sqrt())
        return unrotate(from_f16(data[..., -2:]) * unit, head_dim)


@dataclass(frozen=True)
class TurboQuantValue(KVType):
    """Codes, even channel in the low nibble, then scale and minimum: `[D/2 | fp16 | fp16]`."""

    def row_bytes(self, head_dim: int) -> int:
        """Half a byte an element and 4."""
        return head_dim // 2 + 4

    def fits(self, head_dim: int) -> bool:
        """Two codes share a byte."""
        return head_dim % 2 == 0

    def quantize(self, x: torch.Tensor) -> torch.Tensor:
        """Round half up, with the float32 scale and minimum; they are stored in fp16."""
        low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
        scale = divide(high - low, 15).clamp(min=1e-8)
        codes = to_codes((x - low) / scale + 0.5, 15)
        return torch.cat([pack_codes(codes, 4), to_f16(torch.cat([scale, low], -1))], -1)

    def dequantize(self, data: torch.Tensor, head_dim: int) -> torch.Tensor:
        """Code * scale + minimum."""
        stored = from_f16(data[..., -4:])
        return unpack_codes(data[..., :-4], 4).float() * stored[..., :1] + stored[..., 1:]


TYPES = (
    TurboQuantKey("turboquant_k4", "Hadamard; head x 4-bit Lloyd-Max levels + fp16 length",
                  "vLLM 0.32.0 triton_turboquant_store.py, turboquant/centroids.py", ("vllm",),
                  block=0, sides="K", reads=CHUNK),
    TurboQuantValue("turboquant_v4", "head x 4 bits + fp16 scale + fp16 minimum",
                    "vLLM 0.32.0 triton_turboquant_store.py, _store_quantized_value", ("vllm",),
                    block=0, sides="V", reads=CHUNK),
)  # fmt: skip

# vLLM leaves the first 2 and the last 2 layers of a dense model in 16 bits.
ALIASES = {
    "turboquant_4bit_nc": "turboquant_k4/turboquant_v4+skip0.1.-2.-1",
    "turboquant_k8v4": "fp8_e4m3/turboquant_v4+chunk512+skip0.1.-2.-1",
}
