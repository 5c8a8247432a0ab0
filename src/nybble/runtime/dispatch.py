"""Which kernel reads a strand: Triton on a GPU, native C on a CPU, else the reference.

A kernel that lacks a type, a head size or a mask says so, and the reference takes its place with
one warning that names the reason. No kernel ever guesses.
"""

from __future__ import annotations

import logging

from nybble.runtime.reference import Partial, Rows, attend
from nybble.runtime.strand import Strand

_LOG = logging.getLogger("nybble.runtime")
_TOLD: set[str] = set()


def segment(strand: Strand, rows: Rows) -> Partial:
    """Attention of `rows` over the tokens of a strand; `acc` in the coded domain of its values."""
    return attend(rows, strand.coded, strand.v.dim)


def tell_once(reason: str) -> None:
    """Warn of a kernel that could not be used, the first time for each reason."""
    if reason not in _TOLD:
        _TOLD.add(reason)
        _LOG.warning("the reference kernel reads this cache: %s", reason)
