"""How many cells llama.cpp's caches have, and which rotation matrices go with them.

Source: llama.cpp b11549, `src/llama-context.cpp` (n_ctx, n_ctx_seq), `src/llama-kv-cache-iswa.cpp`
(size_swa) and `src/llama-kv-cache.cpp` (n_rot_k, n_rot_v).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nybble.formats.setting import KVSetting
from nybble.models.geometry import Geometry, Layer
from nybble.planning.memory.base import Load
from nybble.planning.memory.rows import up

PAD = 256  # cells
BATCH = 2048  # tokens; llama-server's -b
UBATCH = 512  # tokens; llama-server's -ub


@dataclass(frozen=True)
class Cells:
    """The cells of one kind of layer.

    Attributes:
        layers: layers that keep K or V of their own in them.
        each: cells of one stream.
        streams: one for each slot, or one that all slots share.
        why: the arithmetic, for people.
    """

    layers: tuple[Layer, ...]
    each: int
    streams: int
    why: str

    @property
    def total(self) -> int:
        """Cells of all streams of one layer."""
        return self.each * self.streams


def rows(load: Load) -> int:
    """Tokens of one micro-batch: n_ubatch, at most n_batch, at most n_ctx."""
    ubatch = load.ubatch or UBATCH
    return min(ubatch, max(BATCH, ubatch), load.context * load.sequences)


def cells(geometry: Geometry, load: Load, *, unified: bool) -> tuple[Cells, Cells]:
    """Cells of the layers that keep everything, and of those that slide.

    Args:
        geometry: of the model.
        load: `-np sequences -c context * sequences`.
        unified: `--kv-unified`: one pool of cells for all slots rather than a stream for each.
    """
    slots, step = load.sequences, rows(load)
    streams = 1 if unified else slots
    full = up(load.context * slots // streams, PAD)
    why = f"{load.context * slots // streams:,} tokens padded to {PAD}"
    sliding = geometry.of_kind("sliding")
    window = max((layer.window or 0 for layer in sliding), default=0) * (slots if unified else 1)
    slid = up(min(full, window + step), PAD)
    shorter = f"window of {window:,} + micro-batch of {step:,}, padded to {PAD}"
    return (
        Cells(geometry.of_kind("global", "latent"), full, streams, why),
        Cells(sliding, slid, streams, shorter if slid < full else why),
    )


def rotations(caches: Iterable[Cells], setting: KVSetting) -> list[int]:
    """Widths of the Hadamard matrices that a pass gets as inputs, float32 each.

    A quantized side is rotated where all layers of its cache have one head size and 64 divides
    it: keys by the largest power of two from 64 on that divides it, values by 64.
    """
    found: list[int] = []
    for cache in caches:
        for side, kind in (("K", setting.k_type), ("V", setting.v_type)):
            sizes = {x.k_dim if side == "K" else x.v_dim for x in cache.layers}
            size = sizes.pop() if len(sizes) == 1 else 0
            if not size or size % 64 or not kind.quantized or not setting.rotation:
                continue
            # The lowest bit set is the largest power of two that divides it.
            found.append(size & -size if side == "K" else 64)
    return found
