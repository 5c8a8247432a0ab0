"""How many bytes a KV setting takes for this model, as llama.cpp itself would allocate it.

The model is opened in llama.cpp's own dry run (metadata only, nothing allocated) and two
contexts are asked for: one long, with full sliding caches, gives the exact number of elements
a cell holds; one at the context in question gives the cells. Bytes then follow exactly, where
the log only has two decimals of a MiB.
"""

from __future__ import annotations

from dataclasses import dataclass

from nybble.engines.llamacpp.cachelog import SubCache
from nybble.engines.llamacpp.model import Model
from nybble.formats import KVSetting, make

_PROBE_CELLS = 32_768  # 0.005 MiB of rounding / 32,768 cells is under a tenth of an element


@dataclass(frozen=True)
class CacheBytes:
    """Bytes of one KV setting at one context length.

    Attributes:
        context: tokens of context.
        total: bytes allocated, all layers.
        per_token: bytes one more token adds once sliding windows are full (global layers).
        bits: stored bits an element over the whole cache, scales included.
    """

    context: int
    total: int
    per_token: float
    bits: float


@dataclass(frozen=True)
class CacheLayout:
    """Elements a cell holds in the global and the sliding layers, K and V."""

    elements: tuple[tuple[str, int, int], ...]

    def size(self, setting: KVSetting, context: int, cells: dict[str, int]) -> CacheBytes:
        """Bytes for a setting, given the cells of each kind of layer."""
        total = bits = elements = per_token = 0.0
        for kind, k, v in self.elements:
            cell_bits = k * setting.k_type.bits + v * setting.v_type.bits
            total += cells[kind] * cell_bits / 8
            bits += cell_bits
            elements += k + v
            if kind == "global":
                per_token += cell_bits / 8
        return CacheBytes(context, round(total), per_token, bits / elements)


class CacheProbe:
    """Answers size questions for one model opened without its weights.

    Args:
        model: a Model opened with no_alloc=True.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._cells: dict[int, dict[str, int]] = {}
        applied = self._probe(_PROBE_CELLS, swa_full=True)
        self.layout = CacheLayout(
            tuple(
                (
                    sub.kind,
                    round(sub.k_mib * 2**20 / 2 / sub.cells),
                    round(sub.v_mib * 2**20 / 2 / sub.cells),
                )
                for sub in applied
            )
        )

    def size(self, setting: KVSetting, context: int) -> CacheBytes:
        """Bytes of `setting` at `context` tokens, one sequence, sliding caches at window size."""
        if context not in self._cells:
            subs = self._probe(context, swa_full=False)
            self._cells[context] = {sub.kind: sub.cells for sub in subs}
        return self.layout.size(setting, context, self._cells[context])

    def _probe(self, context: int, *, swa_full: bool) -> tuple[SubCache, ...]:
        lane = self._model.context(
            make("f16", "f16"), context, rows=1, threads=1, swa_full=swa_full
        )
        try:
            return lane.applied.subcaches
        finally:
            lane.close()
