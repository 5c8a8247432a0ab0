"""Orthogonal rotations of a head's channels, and the one llama.cpp uses on each side.

A rotation spreads an outlier channel over a block, so that one scale serves all of it. Keys and
queries turn alike, so scores stay; values are turned back after attention.
"""

from __future__ import annotations

import math
from functools import lru_cache

from nybble.formats.lazy import torch
from nybble.formats.pack import blocks

ROTATIONS = ("none", "llama", "32", "random")
_SEED = 0x6E79  # of the random signs


@lru_cache(maxsize=32)
def hadamard(n: int) -> torch.Tensor:
    """Normalised Sylvester-Hadamard matrix, float32 [n, n]; n a power of two."""
    # Cached across calls, so it must not be made an inference tensor by whoever comes first.
    with torch.inference_mode(False):
        h = torch.ones(1, 1)
        while len(h) < n:
            h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
        scaled: torch.Tensor = h / math.sqrt(n)
        return scaled


@lru_cache(maxsize=32)
def signs(n: int) -> torch.Tensor:
    """Fixed random signs, float32 [n]."""
    with torch.inference_mode(False):
        generator = torch.Generator().manual_seed(_SEED)
        coins: torch.Tensor = torch.randint(0, 2, (n,), generator=generator)
        return coins.float() * 2 - 1


def width(rotation: str, head_dim: int, side: str) -> int:
    """Channels that are mixed with each other; 0 for no rotation.

    llama.cpp (llama-kv-cache.cpp) rotates where 64 divides the head size: K by the largest
    power of two that divides it, V by 64.
    """
    if rotation == "none":
        return 0
    if rotation == "32":
        return 32 if head_dim % 32 == 0 else 0
    if rotation == "llama" and (side == "V" or head_dim % 64):
        return 64 if head_dim % 64 == 0 else 0
    return head_dim & -head_dim  # largest power of two that divides it


def rotate(x: torch.Tensor, n: int, *, random: bool = False) -> torch.Tensor:
    """Turn every block of n channels of x [..., head_dim]; n 0 leaves x as it is."""
    if not n:
        return x
    parts = blocks(x, n)
    if random:
        parts = parts * signs(n).to(x.device)
    return (parts @ hadamard(n).to(x.device)).flatten(-2)


def unrotate(x: torch.Tensor, n: int, *, random: bool = False) -> torch.Tensor:
    """The inverse of `rotate`; the matrix is symmetric."""
    if not n:
        return x
    parts = blocks(x, n) @ hadamard(n).to(x.device)
    if random:
        parts = parts * signs(n).to(x.device)
    return parts.flatten(-2)
