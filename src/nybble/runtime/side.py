"""One side of one layer as the runtime stores it: a codec, a layout, and the coded domain.

What a setting puts around a type (mean, channel scale, order, rotation) is undone for the query
and for the weighted sum, once each, never for the tokens (formats/kvtype.py `coded`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nybble.errors import NybbleError
from nybble.formats.codec import Codec, SideStore
from nybble.formats.kvtype import KVType
from nybble.formats.registry import kv_type
from nybble.formats.rotation import rotate
from nybble.runtime.layout import Layout, layout


@dataclass(frozen=True)
class Side:
    """K or V of one layer.

    Attributes:
        codec: the type and what surrounds it; its `first` and `reads` are the cache's business.
        dim: size of a head.
        layout: of a row's bytes.
    """

    codec: Codec
    dim: int
    layout: Layout

    @property
    def kind(self) -> KVType:
        """The type."""
        return self.codec.kind

    def store(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Quantize tokens.

        Args:
            x: keys after RoPE or values, [B, heads, n, D].

        Returns:
            Codes uint8 [B, heads, n, code_bytes] and scales uint8 [B, heads, n, scale_bytes].
        """
        # Types work head by head: [B, heads, n, D] -> [heads, B * n, D].
        y = self.codec.enter(x).transpose(0, 1).flatten(1, 2)
        rows = self.codec.kind.quantize(y)
        rows = rows.view(x.shape[1], x.shape[0], x.shape[2], self.layout.row_bytes).transpose(0, 1)
        return self.layout.split(rows)

    def coded_in(self, x: torch.Tensor) -> torch.Tensor:
        """What a kernel that writes is given: tokens [B, heads, n, D] in the coded domain."""
        return self.codec.kind.turn_in(self.codec.enter(x))

    def coded(self, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """Stored tokens as a kernel reads them, float32 [B, heads, n, D]."""
        rows = self.layout.row(codes, scales)
        flat = rows.transpose(0, 1).flatten(1, 2)
        y = self.codec.kind.coded(flat, self.dim)
        batch, heads, n = rows.shape[:3]
        return y.reshape(heads, batch, n, self.dim).transpose(0, 1)

    def query_in(self, q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Queries that meet coded keys as `q` meets keys.

        Args:
            q: float32 [B, heads, rows, D].

        Returns:
            Queries of that shape, and what each adds to all its scores, [B, heads, rows] or None.
        """
        codec = self.codec
        bias = None
        if codec.mean is not None:
            bias = (q * codec.mean).sum(-1)
        if codec.scale is not None:
            q = q * codec.scale
        if codec.order is not None:
            q = q[..., codec.order]
        q, inner = codec.kind.query_in(rotate(q, codec.rotation, random=codec.random))
        if inner is not None:
            bias = inner if bias is None else bias + inner
        return q, bias

    def sum_out(self, y: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Weighted sums of coded values as weighted sums of values.

        Args:
            y: float32 [B, heads, rows, D].
            weight: sums of the weights, [B, heads, rows, 1].
        """
        return self.codec.leave(self.codec.kind.sum_out(y, weight), weight)


def raw_side(side: str, dim: int) -> Side:
    """Tokens kept in f16: protected ones and the recent window."""
    kind = kv_type("f16")
    return Side(Codec(kind, kind.reads), dim, layout(kind, side, dim))


def side_of(store: SideStore, side: str, dim: int, setting: object) -> Side:
    """The side that a setting's codecs make.

    Args:
        store: the codecs of one layer.
        side: "K" or "V".
        dim: size of a head.
        setting: for the error.

    Raises:
        NybbleError: the setting tells heads of a layer apart, or the type stores tokens together.
    """
    if len(store.codecs) > 1:
        raise NybbleError(
            "the runtime stores all heads of a layer alike",
            seen=str(setting),
            allowed="types by layer (+at0.5:q8_0/q8_0), not by head",
        )
    codec = store.codecs[0][1]
    if codec.kind.tokens != 1 or codec.reads.rule == "residual":
        raise NybbleError(
            f"{codec.kind.name} stores tokens together, so it cannot take them one by one",
            seen=str(setting),
            allowed="types that store a token by itself, such as nyb4, q8_0, q5_1, q4_0",
            hint="nybble formats",
        )
    return Side(codec, dim, layout(codec.kind, side, dim))
