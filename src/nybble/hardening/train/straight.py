"""KV types with a gradient: forward what is stored, bit for bit; backward straight through.

A block's stored values are x + m c: m is its value of largest magnitude, which sets the scale, and
c = (stored - x) / m comes of the rounding. Codes are constants to the gradient, so it goes
straight through to x, and the sum over the block of gradient times c goes to m. The second part is
what tells training that a smaller outlier means less noise; a plain straight-through gradient is
blind to it, and a scale that leaves the model as it is would get none at all.

Types with an offset are taken for such ones. Whatever sets their scale, their noise grows with the
block, so along the block's size, sum_i x_i grad_i, the gradient is right for them too.
"""

from __future__ import annotations

from typing import Any

import torch

from nybble.formats.kvtype import KVType
from nybble.formats.pack import blocks


class _Stored(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, kind: KVType) -> torch.Tensor:
        stored = kind.roundtrip(x)
        # Types that share a scale over tokens, and plain floats, go straight through.
        ctx.block = (kind.block or x.shape[-1]) if kind.quantized and kind.tokens == 1 else 0
        if ctx.block > 1:
            ctx.save_for_backward(x, stored)
        return stored.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        if ctx.block <= 1:
            return grads[0], None
        x, stored = (blocks(t.float(), ctx.block) for t in ctx.saved_tensors)
        grad = blocks(grads[0].float(), ctx.block)
        largest = x.abs().argmax(-1, keepdim=True)
        m = x.gather(-1, largest)
        of_scale = torch.where(m != 0, (grad * (stored - x)).sum(-1, keepdim=True) / m, 0.0)
        total = grad.scatter_add(-1, largest, of_scale)
        return total.reshape(grads[0].shape).to(grads[0].dtype), None


def straight_through(kind: KVType, x: torch.Tensor) -> torch.Tensor:
    """Values as stored and read back, same shape, with the gradient above."""
    stored: torch.Tensor = _Stored.apply(x, kind)  # type: ignore[no-untyped-call]
    return stored
