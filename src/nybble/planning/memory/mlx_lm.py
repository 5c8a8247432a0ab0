"""mlx-lm: caches that grow by 256 tokens, on Apple's unified memory.

Source: mlx-lm 0.32.2, `models/cache.py` (KVCache, QuantizedKVCache, RotatingKVCache) and
`generate.py` (maybe_quantize_kv_cache, prefill_step_size).
"""

from __future__ import annotations

from nybble.errors import NybbleError
from nybble.formats.setting import KVSetting
from nybble.models.geometry import Geometry, Layer
from nybble.planning.memory.base import Load, Memory, MemoryModel, Part
from nybble.planning.memory.rows import (
    activations_part,
    fits_heads,
    kv_part,
    latent_part,
    one_of,
    refuse_kinds,
    state_part,
    up,
    weights_part,
)

STEP = 256  # tokens a cache grows by
CHUNK = 2048  # tokens of prefill; prefill_step_size
START = 5000  # tokens; quantized_kv_start


class MlxLm(MemoryModel):
    """`mlx_lm.generate` and `mlx_lm.server` with --kv-bits."""

    engine = "mlx-lm"
    version = "0.32.2"
    source = "mlx-lm 0.32.2, models/cache.py and generate.py"
    settings = ("f16/f16", "mlx_8/mlx_8", "mlx_4/mlx_4")

    def check(self, geometry: Geometry, setting: KVSetting) -> None:
        """Refuse types that are not its own, and what its quantized cache does not implement.

        Raises:
            NybbleError: see above.
        """
        one_of(setting, self.engine, self.settings)
        if not setting.quantized:
            return
        refuse_kinds(geometry, self.engine, ("sliding",),
                     "RotatingKVCache.to_quantized is not implemented")  # fmt: skip
        refuse_kinds(geometry, self.engine, ("latent",), "latents are read raw")
        if any(layer.sinks for layer in geometry.layers):
            raise NybbleError(
                "mlx-lm does not run quantized caches with attention sinks",
                seen=f"{geometry.architecture} with {setting}", allowed="f16/f16",
                hint="nybble plan MODEL --engine llama.cpp",
            )  # fmt: skip
        fits_heads(geometry, setting, 64, self.engine)

    def memory(self, geometry: Geometry, setting: KVSetting, load: Load) -> Memory:
        """Global layers at the next 256, sliding ones at window and one prefill chunk."""
        f16 = KVSetting("f16", "f16")
        notes: list[str] = []
        stored = setting
        if setting.quantized and load.context < START:
            stored = f16
            notes.append(f"nothing is quantized before {START:,} tokens (--quantized-kv-start)")
        tokens = up(load.context, STEP) * load.sequences
        paged = geometry.of_kind("global")
        parts = weights_part(geometry)
        cache = kv_part(paged, stored, tokens, "global layers")
        parts += cache
        if stored.quantized:
            parts += _before(paged, load, sum(part.n_bytes for part in cache))
        parts += latent_part(geometry.of_kind("latent"), f16.k_type, f16.k_type, tokens)
        for window in sorted({layer.window or 0 for layer in geometry.of_kind("sliding")}):
            layers = [x for x in geometry.of_kind("sliding") if x.window == window]
            rows = min(up(load.context, STEP), window + CHUNK - 1)
            parts += kv_part(layers, f16, rows * load.sequences, f"sliding layers, {rows} rows")
        parts += state_part(geometry.of_kind("recurrent"), load.sequences, 2, 4)
        if paged:
            widest = max(paged, key=lambda x: x.k_width + x.v_width)
            copy = kv_part([widest], stored, tokens, "one layer")
            parts.append(Part("scratch", "the layer that grows, old and new",
                              sum(p.n_bytes for p in copy),
                              "K and V of the widest layer once more", estimated=True))  # fmt: skip
        rows = min(CHUNK, load.context)
        # Attention over a quantized cache is not fused: f16 scores, and float32 in the softmax.
        heads = max((layer.heads for layer in paged), default=0)
        scores = 6 * heads * rows * load.context if stored.quantized else 0
        parts.append(activations_part(geometry, rows, 1, scores))
        return Memory(tuple(parts), tuple(notes))


def _before(layers: tuple[Layer, ...], load: Load, after: int) -> list[Part]:
    """What the f16 cache took before it was quantized, beyond what is held later.

    A cache is converted after the first chunk that ends at START or later.
    """
    most = min(load.context, up(START, CHUNK))
    raw = kv_part(layers, KVSetting("f16", "f16"), up(most, STEP) * load.sequences, "global layers")
    n_bytes = sum(part.n_bytes for part in raw)
    if n_bytes <= after:
        return []
    return [Part("scratch", "the f16 cache before it is quantized", n_bytes - after,
                 f"{most:,} tokens x {load.sequences} sequences, {n_bytes:,} B - {after:,} B",
                 estimated=True)]  # fmt: skip
