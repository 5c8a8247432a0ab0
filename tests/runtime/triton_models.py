"""Whole models whose attention runs through the Triton kernels, in the interpreter's process."""

from __future__ import annotations

from typing import Any

from packed_runs import packed_model, run
from tiny_torch import text

from nybble.runtime import attention
from nybble.runtime.cache import Cache
from nybble.runtime.reference import Partial, Rows, attend
from nybble.runtime.strand import Strand

CHUNKS = (60, 3, 1)


def against_reference(kind: str, setting: str, latent: bool) -> tuple[float, int]:
    """Run a tiny model twice, by the reference and by Triton.

    Returns:
        The relative difference of the last hidden states, and how many strands Triton read.
    """
    from nybble.runtime.triton.attend import attend_strand, refusal

    model: Any = packed_model(kind)
    read = 0

    def reference(strand: Strand, rows: Rows) -> Partial:
        return attend(rows, strand.coded, strand.v.dim)

    def triton(strand: Strand, rows: Rows) -> Partial:
        nonlocal read
        reason = refusal(strand)
        assert reason is None, reason
        read += 1
        return attend_strand(strand, rows)

    tokens = text(sum(CHUNKS))
    states = []
    before = attention.segment
    try:
        for kernel in (reference, triton):
            attention.segment = kernel
            cache = Cache(model, setting, latent=latent)
            states.append(run(model, tokens, cache, CHUNKS).double())
    finally:
        attention.segment = before
    expected, got = states
    return float((got - expected).norm() / expected.norm()), read
