"""ExLlamaV3: whole pages of 256 tokens for each sequence, rings for sliding layers.

Source: exllamav3 1.6.5, `cache/fp16.py`, `cache/quant.py`, `cache/mla.py` (storage_size),
`modules/sliding_attn.py` (kv_state_size), `modules/gated_delta_net.py` (layer state) and
`modules/attention_fn/triton_paged.py` (EXL3_QC_STAGING_PAGES).
"""

from __future__ import annotations

from nybble.formats.setting import KVSetting
from nybble.models.geometry import Geometry, Layer
from nybble.planning.memory.base import Load, Memory, MemoryModel, Part
from nybble.planning.memory.rows import (
    activations_part,
    fits_heads,
    kv_part,
    latent_part,
    one_of,
    state_part,
    up,
    weights_part,
)

PAGE = 256  # tokens; constants.PAGE_SIZE
STAGED = 256 * PAGE  # tokens that prefill dequantizes at a time; EXL3_QC_STAGING_PAGES
OVERPROVISION = 2 * PAGE  # SlidingAttention's sliding_window_overp
BITS = range(2, 9)
CHUNK = 2048  # tokens; Generator's max_chunk_size


class ExLlamaV3(MemoryModel):
    """`Cache(max_num_tokens, max_batch_size)`, as TabbyAPI and the generator make it."""

    engine = "exllamav3"
    version = "1.6.5"
    source = "exllamav3 1.6.5, cache/ and modules/sliding_attn.py"
    settings = ("f16/f16", "exl3_8/exl3_8", "exl3_6/exl3_6", "exl3_5/exl3_4", "exl3_4/exl3_4",
                "exl3_3/exl3_3", "exl3_2/exl3_2")  # fmt: skip

    def check(self, geometry: Geometry, setting: KVSetting) -> None:
        """Refuse types that are not its own, and head sizes that are no multiple of 32.

        Raises:
            NybbleError: see above.
        """
        widths = [f"exl3_{bits}" for bits in BITS]
        known = ["f16/f16", *(f"{k}/{v}" for k in widths for v in widths)]
        if str(setting) not in known:
            one_of(setting, self.engine, ["f16/f16", "exl3_K/exl3_V with 2 to 8 bits each"],
                   "--kv exl3_8/exl3_8,exl3_4/exl3_4")  # fmt: skip
        fits_heads(geometry, setting, 32, self.engine)

    def memory(self, geometry: Geometry, setting: KVSetting, load: Load) -> Memory:
        """Pages for all sequences, one ring for each in sliding layers, staging for prefill."""
        tokens = up(load.context, PAGE) * load.sequences
        paged = geometry.of_kind("global")
        parts = weights_part(geometry)
        parts += kv_part(paged, setting, tokens, "global layers")
        f16 = KVSetting("f16", "f16")
        # The latent takes the K bits, the RoPE part of the key stays f16.
        parts += latent_part(geometry.of_kind("latent"), setting.k_type, f16.k_type, tokens)
        for window in sorted({layer.window or 0 for layer in geometry.of_kind("sliding")}):
            layers = [x for x in geometry.of_kind("sliding") if x.window == window]
            # The ring keeps the keys before the query's own, one fewer than the window.
            rows = up(window - 1 + OVERPROVISION, PAGE)
            parts += kv_part(layers, f16, rows * load.sequences, f"sliding layers, {rows} rows")
        # Two f16 states a sequence: a speculative pass writes the other one. The convolution
        # keeps and stages a column or two more than its past inputs.
        states = geometry.of_kind("recurrent")
        parts += state_part(states, load.sequences, 2, 4, estimated=True)
        if setting.quantized and paged:
            parts.append(_staging(paged, min(up(load.context, PAGE), STAGED), load.cards))
        parts.append(activations_part(geometry, min(CHUNK, load.context), load.cards))
        notes = []
        if setting.quantized and geometry.of_kind("sliding"):
            notes.append("sliding layers keep f16 rings, whatever the KV type")
        return Memory(tuple(parts), tuple(notes))


def _staging(layers: tuple[Layer, ...], tokens: int, cards: int) -> Part:
    widest = max(layers, key=lambda x: x.k_width + x.v_width)
    n_bytes = tokens * (widest.k_width + widest.v_width) * 2
    return Part("scratch", "f16 staging of prefill", n_bytes,
                f"{tokens:,} tokens (at most {STAGED:,}) x {widest.k_width + widest.v_width:,} "
                "elements of the widest layer x 2 B; EXL3_QC_STAGING=0 does without")  # fmt: skip
