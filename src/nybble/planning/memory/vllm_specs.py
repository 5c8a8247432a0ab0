"""Pages of a layer in vLLM, before all are made one size (vllm_groups.py).

Source: vLLM 0.33.0, `model_executor/layers/attention/{attention,mla_attention}.py` and
`mamba/abstract.py` (get_kv_cache_spec), `platforms/interface.py` (_align_hybrid_block_size,
_align_heterogeneous_kv_block_size), `layers/quantization/turboquant/config.py`
(get_boundary_skip_layers), customize_spec of `v1/attention/backends/`.
"""

from __future__ import annotations

from nybble.formats.setting import KVSetting, parse
from nybble.models.geometry import Geometry, Layer
from nybble.planning.memory.cards import heads_on_card
from nybble.planning.memory.rows import up
from nybble.planning.memory.vllm_groups import Kind, Spec

BLOCK = 16  # tokens; CacheConfig.DEFAULT_BLOCK_SIZE
LATENT_BLOCK = 64  # FLASHMLA's; Triton and FlashAttention take 16, FlashInfer 32 or 64
# Tokens of a block where layer 0 stays in 16 bits: a page has to hold 16 tokens of such a layer
# and is measured with that layer's backend, which knows no packing and counts 1 B an element.
SKIP_BLOCK = 32
TURBO = ("turboquant_4bit_nc", "turboquant_k8v4")
BOUNDARY = 2  # layers that TurboQuant leaves in 16 bits at either end of a dense model
SPARSE = ("deepseek_v32", "glm_moe_dsa")  # latents of 656 bytes in fp8, and an indexer


def layer_specs(
    geometry: Geometry, setting: KVSetting, cards: int
) -> tuple[dict[int, Spec], list[str]]:
    """Pages of every layer that has some, on one card, before they are made one size.

    Layers that read another's cache have none.

    Raises:
        NybbleError: KV heads that cannot be split over the cards.
    """
    skip = _skipped(geometry, setting)
    raw = KVSetting("f16", "f16")
    kept = {i: x for i, x in enumerate(geometry.layers) if x.k_width}
    states = {i: x for i, x in enumerate(geometry.layers) if x.kind == "recurrent"}
    rows = {i: _row(geometry, x, raw if i in skip else setting, cards) for i, x in kept.items()}
    block = LATENT_BLOCK if geometry.of_kind("latent") else BLOCK
    notes: list[str] = []
    if skip:
        block = SKIP_BLOCK
        notes.append(f"layers {', '.join(map(str, sorted(skip)))} stay in 16 bits")
    elif turbo(setting) and states:
        notes.append("vLLM skips no layers of a hybrid model, whatever the setting says")
    state_bytes = {i: _state(geometry, x, cards) for i, x in states.items()}
    if states and rows:
        # The page of one attention layer has to hold a state; states are padded to it.
        # Latent pages are kept at multiples of 128 tokens, for their kernels.
        step = max(block, 128) if geometry.of_kind("latent") else block
        per_token = next(iter(rows.values()))
        block = up(-(-max(state_bytes.values()) // per_token), step)
    specs = {}
    for i, layer in enumerate(geometry.layers):
        if i in rows:
            kind: Kind = "sliding" if layer.window else "full"
            if layer.kind == "latent":
                kind = "latent"
            shape = (layer.kv_heads, layer.k_dim, layer.v_dim, i in skip)
            size = block * rows[i]
            specs[i] = Spec(kind, shape, block, size, size, layer.window)
        elif i in states:
            page = block * next(iter(rows.values())) if rows else state_bytes[i]
            specs[i] = Spec("state", (), 0, page, state_bytes[i])
    return specs, notes


def _row(geometry: Geometry, layer: Layer, setting: KVSetting, cards: int) -> int:
    """Bytes a token takes in a layer on one card."""
    if layer.kind == "latent":  # every card holds the whole latent
        if setting.k == "fp8_e4m3" and geometry.architecture in SPARSE:
            return 656  # fp8_ds_mla: 512 of latent, 4 scales of 4 B, 64 of RoPE key x 2 B
        return setting.k_type.row_bytes(layer.k_dim)
    slot = setting.k_type.row_bytes(layer.k_dim) + setting.v_type.row_bytes(layer.v_dim)
    return heads_on_card(layer.kv_heads, cards, "vLLM") * up(slot, 2)


def _state(geometry: Geometry, layer: Layer, cards: int) -> int:
    """Bytes of one state on one card: the model's dtype, unless its config asks for float32."""
    assert layer.state is not None
    wide = geometry.architecture.startswith(("qwen3_5", "qwen35", "kimi"))
    return (layer.state.conv * 2 + layer.state.recurrent * (4 if wide else 2)) // cards


def turbo(setting: KVSetting) -> bool:
    """Whether these are the types of one of TurboQuant's presets."""
    pairs = {(s.k, s.v) for s in (parse(name) for name in TURBO)}
    return (setting.k, setting.v) in pairs


def _skipped(geometry: Geometry, setting: KVSetting) -> set[int]:
    """Layers left in 16 bits; TurboQuant adds the boundary of a dense model by itself."""
    n = len(geometry.layers)
    if not turbo(setting) or geometry.of_kind("recurrent"):
        return set()
    edge = min(BOUNDARY, n // 2)
    asked = {i % n for i in setting.around.skip}
    return asked | set(range(edge)) | set(range(n - edge, n))
