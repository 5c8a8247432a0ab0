"""Which kernel reads and writes a strand: Triton on a GPU, native C on a CPU, else the reference.

A kernel that lacks a type, a head size or a device says so, and the reference takes its place with
one warning that names the reason. No kernel ever guesses.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from nybble.formats.search import Searched
from nybble.runtime import native_attend as native
from nybble.runtime.native import VARIABLE, active
from nybble.runtime.pages import Pages
from nybble.runtime.reference import Partial, Rows, attend
from nybble.runtime.side import Side

if TYPE_CHECKING:
    from nybble.runtime.strand import Strand

_LOG = logging.getLogger("nybble.runtime")
_TOLD: set[str] = set()
# Query rows of one KV head from which unpacking a tile and multiplying by BLAS is faster.
_MANY = 64


def segment(strand: Strand, rows: Rows) -> Partial:
    """Attention of `rows` over the tokens of a strand; `acc` in the coded domain of its values."""
    reason = refusal(strand, rows.q.device)
    if reason is not None:
        tell_once(reason)
    elif rows.q.shape[2] <= _MANY and rows.q.device.type == "cpu":
        return native.attend_strand(strand, rows)
    elif rows.q.shape[2] <= _MANY and rows.added is None:
        from nybble.runtime.triton import attend as triton

        return triton.attend_strand(strand, rows)
    return attend(rows, strand.coded, strand.v.dim)


def refusal(strand: Strand, device: torch.device) -> str | None:
    """Why no kernel reads a strand, or None where one does."""
    if device.type == "cpu":
        return native.refusal(strand)
    if device.type != "cuda":
        return f"there is no kernel for {device.type}"
    if os.environ.get(VARIABLE) == "reference":
        return f"{VARIABLE}=reference"
    if not has_triton():
        return "triton is not installed"
    from nybble.runtime.triton import attend as triton

    return triton.refusal(strand)


def write(side: Side, pages: Pages, x: torch.Tensor) -> None:
    """Store tokens [B, heads, n, D] behind those of `pages`."""
    device, searched = x.device.type, isinstance(side.kind, Searched)
    if device == "cpu" and not searched and native.writes(native.Format.of(side)) is None:
        first = pages.grow(x.shape[2])
        native.quantize(native.Stored.of(side, pages), first, side.coded_in(x))
        return
    if device == "cuda" and has_triton() and os.environ.get(VARIABLE) != "reference":
        from nybble.runtime.triton import append

        if append.writes(side) is None:
            append.write(side, pages, x)
            return
    pages.append(*side.store(x))


def coded(side: Side, pages: Pages, first: int, last: int) -> torch.Tensor:
    """Live tokens [first, last) in the coded domain, float32 [B, heads, n, D]."""
    if pages.device.type == "cpu" and native.capable(native.Format.of(side)) is None:
        stored = native.Stored.of(side, pages)
        return native.unpack(stored, pages.offset + first, last - first)
    return side.coded(*pages.read(first, last))


def has_triton() -> bool:
    """Whether the GPU kernels can be imported."""
    return importlib.util.find_spec("triton") is not None


def kernel(device: torch.device, strands: Sequence[Strand] = ()) -> str:
    """The kernel that reads these strands on a device, and why it is that one."""
    reason = next((r for s in strands if (r := refusal(s, device)) is not None), None)
    if reason is not None:
        return f"reference ({reason})"
    if device.type == "cpu":
        found = active()
        return f"{found.name} ({found.reason})"
    if device.type == "cuda" and has_triton():
        return "triton"
    return f"reference (no kernel for {device.type})"


def tell_once(reason: str) -> None:
    """Warn of a kernel that could not be used, the first time for each reason."""
    if reason not in _TOLD:
        _TOLD.add(reason)
        _LOG.warning("the reference kernel reads this cache: %s", reason)
