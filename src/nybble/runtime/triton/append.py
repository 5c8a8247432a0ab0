"""Quantize new tokens straight into their page, for q4_0 and q8_0."""

from __future__ import annotations

from contextlib import nullcontext

import torch
import triton

from nybble.errors import NybbleError
from nybble.formats.search import Searched
from nybble.runtime.layout import PAGE
from nybble.runtime.pages import Pages
from nybble.runtime.side import Side
from nybble.runtime.triton.quantize_kernel import append_kernel

TYPES = ("q4_0", "q8_0")


def writes(side: Side) -> str | None:
    """Why the kernel cannot write a side, or None."""
    if isinstance(side.kind, Searched) or side.kind.name not in TYPES:
        return f"the Triton kernels do not write {side.kind.name}, only {' and '.join(TYPES)}"
    return None


def write(side: Side, pages: Pages, x: torch.Tensor) -> None:
    """Store tokens behind those of `pages`.

    Args:
        side: `writes` found nothing against it.
        pages: its pages.
        x: keys after RoPE or values, [B, heads, n, D].
    """
    first = pages.grow(x.shape[2])
    append(side.kind.name, side.coded_in(x).contiguous(), pages.device_table(), first)


def append(name: str, x: torch.Tensor, table: torch.Tensor, first: int) -> None:
    """Quantize tokens into pages that have room for them and no other reader.

    Args:
        name: "q4_0" or "q8_0".
        x: what surrounds the type done, float [B, heads, n, D], the last axis contiguous.
        table: page addresses, int64 [pages, B] on the same device.
        first: place of the first token, counted from the start of the first page.

    Raises:
        NybbleError: another type, or more tokens than the pages hold.
    """
    if name not in TYPES:
        raise NybbleError("the append kernel does not write this type", seen=name, allowed=TYPES)
    batch, heads, n, dim = x.shape
    if first + n > table.shape[0] * PAGE:
        raise NybbleError(
            "these tokens do not fit the pages",
            seen=f"tokens {first} to {first + n}",
            allowed=f"{table.shape[0]} pages of {PAGE}",
        )
    if not n:
        return
    blocks = dim // 32
    with torch.cuda.device(x.device) if x.device.type == "cuda" else nullcontext():
        append_kernel[(batch * heads, n)](
            x, table, batch, heads, n, first, *x.stride()[:3],
            KIND=name, DIM=dim, CODE=dim // 2 if name == "q4_0" else dim, BLOCKS=blocks,
            PAD=triton.next_power_of_2(blocks), num_warps=1, enable_fp_fusion=False,
        )  # fmt: skip
