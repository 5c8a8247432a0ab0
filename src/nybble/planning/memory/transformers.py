"""transformers: DynamicCache, and QuantizedCache where a model has nothing but global layers.

Source: transformers 5.23.0, `cache_utils.py` (DynamicLayer, DynamicSlidingWindowLayer,
QuantizedLayer).
"""

from __future__ import annotations

from nybble.formats.setting import KVSetting
from nybble.models.geometry import Geometry
from nybble.planning.memory.base import Load, Memory, MemoryModel, Part
from nybble.planning.memory.rows import (
    activations_part,
    fits_heads,
    kv_part,
    latent_part,
    one_of,
    refuse_kinds,
    state_part,
    weights_part,
)

RESIDUAL = 128  # tokens that stay raw; QuantizedLayer's residual_length


class Transformers(MemoryModel):
    """`model.generate`, the prompt in one forward pass, 16-bit activations."""

    engine = "transformers"
    version = "5.23.0"
    source = "transformers 5.23.0, cache_utils.py"
    settings = ("f16/f16", "hqq_8/hqq_8", "hqq_4/hqq_4", "quanto_4/quanto_4", "quanto_2/quanto_2")

    def check(self, geometry: Geometry, setting: KVSetting) -> None:
        """Refuse types that are not its own, and any layer but global ones when quantized.

        Raises:
            NybbleError: see above.
        """
        one_of(setting, self.engine, self.settings)
        if setting.quantized:
            refuse_kinds(geometry, self.engine, ("sliding", "recurrent", "shared", "latent"),
                         "QuantizedCache takes full attention only")  # fmt: skip
            fits_heads(geometry, setting, 64, self.engine)

    def memory(self, geometry: Geometry, setting: KVSetting, load: Load) -> Memory:
        """The cache when `context` tokens are in it, and the layer that is copied to grow."""
        f16 = KVSetting("f16", "f16")
        tokens = load.context * load.sequences
        paged = geometry.of_kind("global")
        # The last update quantized everything, or left up to RESIDUAL - 1 tokens raw; the raw ones
        # are counted whole, since how many there are depends on the prompt.
        parts = weights_part(geometry)
        parts += kv_part(paged, setting, tokens, "global layers")
        if setting.quantized:
            raw = min(RESIDUAL - 1, load.context) * load.sequences
            parts += kv_part(paged, f16, raw, f"the last {raw} tokens, raw", "scratch")
        parts += latent_part(geometry.of_kind("latent"), f16.k_type, f16.k_type, tokens)
        for window in sorted({layer.window or 0 for layer in geometry.of_kind("sliding")}):
            layers = [x for x in geometry.of_kind("sliding") if x.window == window]
            # The cache is a view of the last window - 1 tokens, and the storage behind it is what
            # the last pass put together: a window while decoding, the whole prompt before that.
            rows = min(load.context, window)
            parts += kv_part(layers, f16, rows * load.sequences, f"sliding layers, {rows} rows")
            behind = (load.context - rows) * load.sequences
            parts += kv_part(layers, f16, behind, "sliding layers: the prompt before the window, "
                             "until the next token", "scratch")  # fmt: skip
        parts += state_part(geometry.of_kind("recurrent"), load.sequences, 2, 4, estimated=True)
        every = [x for x in geometry.layers if x.k_width]
        if every:
            widest = max(every, key=lambda x: x.k_width + x.v_width)
            n_bytes = tokens * (widest.k_width + widest.v_width) * 2
            what = "dequantized" if setting.quantized else "concatenated"
            parts.append(Part("scratch", f"one layer, {what}", n_bytes,
                              f"{tokens:,} tokens x {widest.k_width + widest.v_width:,} elements "
                              "x 2 B", estimated=True))  # fmt: skip
        parts.append(activations_part(geometry, tokens, 1))
        return Memory(tuple(parts))
