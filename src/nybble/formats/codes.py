"""Helpers of the codecs after ExLlama, mlx, quanto, hqq and KIVI: codes and min-max scales."""

from __future__ import annotations

from nybble.formats.lazy import torch
from nybble.formats.pack import blocks, divide


def to_codes(x: torch.Tensor, top: int) -> torch.Tensor:
    """Whole numbers to uint8, held in 0..top; NaN becomes 0, as in CUDA's casts."""
    return x.nan_to_num(0.0).clamp(0, top).to(torch.uint8)


def min_max(groups: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Asymmetric min-max rounding in the dtype of the input, each step rounded to it.

    Args:
        groups: float16 [..., group], the values that share a scale on the last axis.
        width: bits of a code.

    Returns:
        Codes, uint8 like groups; scale and minimum, float16 [..., 1]. Ties go to the even code.
        Equal values have scale 0 and code 0 (0 / 0, cast from NaN) and come back exact.
    """
    top = 2**width - 1
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale = divide(high - low, top)
    return to_codes(((groups - low) / scale).round(), top), scale, low


def butterfly(x: torch.Tensor) -> torch.Tensor:
    """Unnormalised Walsh-Hadamard transform of the last axis, in the dtype of x.

    Sums neighbours first, then pairs two apart, and so on, each sum rounded: the order in which
    ExLlama's threads exchange values. Bit for bit this differs from a matrix product.
    """
    stride = 1
    while stride < x.shape[-1]:
        first, second = blocks(blocks(x, 2 * stride), stride).unbind(-2)
        x = torch.stack([first + second, first - second], -2).flatten(-3)
        stride *= 2
    return x
