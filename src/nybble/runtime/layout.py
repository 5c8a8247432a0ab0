"""How a page lays out the bytes of a type: codes first, scales behind them.

A type's row holds the bytes of one head of one token as its engine stores them, with a scale in
front of every block (ggml) or behind the head (vLLM). Kernels want codes that start on word
boundaries, so a page keeps the codes of its tokens together and the scales after them. No byte is
added, dropped or changed, and `row` puts them back.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from nybble.formats.kvtype import KVType
from nybble.formats.lazy import torch
from nybble.formats.nyb4 import group_size

PAGE = 64  # tokens of a page

# Bytes of a block and of the scales it starts with: ggml-common.h.
_BLOCKS = {
    "q4_0": (18, 2), "q4_1": (20, 4), "q5_0": (22, 2), "q5_1": (24, 4), "q8_0": (34, 2),
    "iq4_nl": (18, 2),
}  # fmt: skip
_SCALE_BEHIND = {"int8_per_token_head": 4, "int4_per_token_head": 4, "fp8_per_token_head": 4}


@dataclass(frozen=True)
class Layout:
    """Where the bytes of one row go.

    Attributes:
        codes: places of the code bytes in a row, in the order they are kept.
        scales: places of the scale bytes; empty for types without or with an unknown layout.
    """

    codes: tuple[int, ...]
    scales: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of one head of one token."""
        return len(self.codes) + len(self.scales)

    def split(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows uint8 [..., row_bytes] as codes [..., code_bytes] and scales [..., scale_bytes]."""
        if not self.scales:
            return rows, rows[..., :0]
        return rows[..., list(self.codes)], rows[..., list(self.scales)]

    def row(self, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """The inverse of `split`."""
        if not self.scales:
            return codes
        rows = codes.new_empty(*codes.shape[:-1], self.row_bytes)
        rows[..., list(self.codes)] = codes
        rows[..., list(self.scales)] = scales
        return rows


@lru_cache(maxsize=64)
def _layout(name: str, side: str, head_dim: int, size: int) -> Layout:
    places = range(size)
    if name in _BLOCKS:
        block, front = _BLOCKS[name]
        scales = tuple(i for i in places if i % block < front)
    elif name in _SCALE_BEHIND:
        scales = tuple(places[size - _SCALE_BEHIND[name] :])
    elif name == "nyb4":
        scales = tuple(places[: head_dim // group_size(head_dim, side)])
    else:
        scales = ()
    taken = set(scales)
    return Layout(tuple(i for i in places if i not in taken), scales)


def layout(kind: KVType, side: str, head_dim: int) -> Layout:
    """The layout of a type that stores tokens one by one.

    Args:
        kind: the type.
        side: "K" or "V".
        head_dim: size of the head.
    """
    return _layout(kind.name, side, head_dim, kind.row_bytes(head_dim))
