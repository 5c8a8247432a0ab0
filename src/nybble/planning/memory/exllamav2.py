"""ExLlamaV2: every sequence at full length, and one layer's worth of f16 beside a quantized cache.

Source: exllamav2 0.3.2, `cache.py` (ExLlamaV2CacheBase, ExLlamaV2Cache_Q.touch_device). Shapes are
made before ExLlamaV2Cache_Q rounds max_seq_len to whole blocks, so that costs no bytes.
"""

from __future__ import annotations

from nybble.formats.setting import KVSetting
from nybble.models.geometry import Geometry
from nybble.planning.memory.base import Load, Memory, MemoryModel, Part
from nybble.planning.memory.rows import (
    activations_part,
    fits_heads,
    kv_part,
    one_of,
    refuse_kinds,
    weights_part,
)

CHUNK = 2048  # tokens of prefill; config.max_input_len


class ExLlamaV2(MemoryModel):
    """`ExLlamaV2Cache(batch_size, max_seq_len)` and its Q4, Q6 and Q8 forms."""

    engine = "exllamav2"
    version = "0.3.2"
    source = "exllamav2 0.3.2, cache.py"
    settings = ("f16/f16", "exl2_q8/exl2_q8", "exl2_q8/exl2_q4", "exl2_q4/exl2_q4")

    def check(self, geometry: Geometry, setting: KVSetting) -> None:
        """Refuse types that are not its own, heads that are no multiple of 32, newer layers.

        Raises:
            NybbleError: see above.
        """
        one_of(setting, self.engine, self.settings)
        refuse_kinds(geometry, self.engine, ("latent", "recurrent", "shared"),
                     "its cache is keys and values of the same size in all layers")  # fmt: skip
        fits_heads(geometry, setting, 32, self.engine)

    def memory(self, geometry: Geometry, setting: KVSetting, load: Load) -> Memory:
        """All layers at full length, sliding ones too."""
        layers = geometry.of_kind("global", "sliding")
        tokens = load.context * load.sequences
        parts = weights_part(geometry)
        parts += kv_part(layers, setting, tokens, "all layers")
        if setting.quantized:
            widest = max(layer.k_width + layer.v_width for layer in layers)
            parts.append(Part("scratch", "f16 K and V of one layer",
                              tokens * widest * 2 * load.cards,
                              f"{tokens:,} tokens x {widest:,} elements x 2 B on each "
                              "card"))  # fmt: skip
        parts.append(activations_part(geometry, min(CHUNK, load.context), load.cards))
        notes: tuple[str, ...] = ()
        if geometry.of_kind("sliding"):
            notes = ("sliding layers take as much as global ones here",)
        return Memory(tuple(parts), notes)
