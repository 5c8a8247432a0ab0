"""What a KV type is: how one side of the cache is stored, bytes <-> tensors.

One file per type or family; each ends in a tuple `TYPES` that `formats/registry.py` lists. The
code of a type is its specification: plain torch, written to be read, equal bit for bit to what
the engine stores.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from nybble.formats.calibration import LayerCalibration
from nybble.formats.lazy import torch
from nybble.formats.reads import ALL, Reads

LISTED_HEAD_SIZE = 128  # tables state bits for this head size where it matters


@dataclass(frozen=True)
class KVType(ABC):
    """One way to store K or V.

    Attributes:
        name: the name users write, for example "q4_0".
        layout: how the bits are spent, in words.
        source: where the layout is read from.
        engines: engines that accept the type for a KV cache.
        block: channels that share a scale; a head's size must be a multiple of it. 1 for plain
            floats, 0 where the whole head shares one.
        tokens: tokens that are stored together; 1 for all but per-channel types.
        sides: the sides it is made for, "KV", "K" or "V".
        reads: which keys a query still sees unquantized.
        rotation: the rotation put around it, which a setting can switch off; "none" where the
            codec has one built in or none at all (formats/rotation.py).
        first: first tokens kept in f16.
        query: type that the engine rounds a query to before it meets keys of this type, "" for
            none; no part of what is stored, but of every score.
        calibrated: whether it needs statistics of the model (formats/calibration.py).
        ggml_id: the enum value in ggml.h, or None for a type ggml does not have.
    """

    name: str
    layout: str
    source: str
    engines: tuple[str, ...] = ()
    block: int = 1
    tokens: int = 1
    sides: str = "KV"
    reads: Reads = ALL
    rotation: str = "none"
    first: int = 0
    query: str = ""
    calibrated: bool = False
    ggml_id: int | None = None

    @property
    def quantized(self) -> bool:
        """Whether codes share a scale; False for plain floats."""
        return True

    @abstractmethod
    def row_bytes(self, head_dim: int) -> int:
        """Bytes that one head of `tokens` tokens takes, scales included."""

    @abstractmethod
    def quantize(self, x: torch.Tensor) -> torch.Tensor:
        """Store vectors.

        Args:
            x: float32 [..., n, head_dim]; n a multiple of `tokens`.

        Returns:
            uint8 [..., n // tokens, row_bytes(head_dim)], the engine's bytes.
        """

    @abstractmethod
    def dequantize(self, data: torch.Tensor, head_dim: int) -> torch.Tensor:
        """Read vectors back: the inverse of `quantize`, float32 [..., n, head_dim]."""

    # A type may turn a head before it codes it. Whoever reads many tokens for one query need not
    # turn each of them back: it reads what is coded, with the query turned once, and turns the
    # weighted sum back once. `coded`, `query_in` and `sum_out` do that; `turn_in` is for writers.

    def turn_in(self, x: torch.Tensor) -> torch.Tensor:
        """What is coded, float32 [..., heads, n, head_dim]; `coded` reads it back."""
        return x

    def coded(self, data: torch.Tensor, head_dim: int) -> torch.Tensor:
        """Read what was coded, without turning it back: float32 like `dequantize`."""
        return self.dequantize(data, head_dim)

    def query_in(self, q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Turn queries so that their product with `coded` is that with `dequantize`.

        Args:
            q: float32 [..., heads, n, head_dim].

        Returns:
            Queries of the same shape, and what is to be added to every product of a query,
            [..., heads, n], or None for nothing.
        """
        return q, None

    def sum_out(self, y: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Turn sums of weighted `coded` values back into sums of weighted values.

        Args:
            y: float32 [..., heads, n, head_dim].
            weight: the sum of the weights, [..., heads, n, 1].
        """
        return y

    def of_side(self, side: str) -> KVType:
        """The type as it stores one side; most types store both alike."""
        return self

    def bind(self, stats: LayerCalibration, side: str, device: torch.device | str) -> KVType:
        """The type with a layer's statistics built in; most types need none."""
        return self

    @property
    def bits(self) -> float:
        """Bits an element at a head size of 128, scales included."""
        return self.bits_at(LISTED_HEAD_SIZE)

    def bits_at(self, head_dim: int) -> float:
        """Bits an element, scales included."""
        return self.row_bytes(head_dim) * 8 / (head_dim * self.tokens)

    def fits(self, head_dim: int) -> bool:
        """Whether vectors of this size can be stored."""
        return head_dim % max(self.block, 1) == 0

    def bytes_stored(self, n: int, head_dim: int) -> int:
        """Bytes for n tokens of one head; tokens short of a group of `tokens` stay in f16."""
        groups, rest = divmod(n, self.tokens)
        return groups * self.row_bytes(head_dim) + rest * 2 * head_dim

    def roundtrip(self, x: torch.Tensor) -> torch.Tensor:
        """What a reader of the cache gets: stored and read back, same shape, float32.

        Tokens short of a whole group of `tokens` come back as they are.
        """
        whole = x.shape[-2] // self.tokens * self.tokens
        stored = self.dequantize(self.quantize(x[..., :whole, :].float()), x.shape[-1])
        return stored if whole == x.shape[-2] else torch.cat([stored, x[..., whole:, :]], dim=-2)
