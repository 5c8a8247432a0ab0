"""SGLang: a pool of tokens that fills what mem_fraction_static leaves to it.

A plan counts the smallest pool that holds the load with the default ratios. Two of them are
generous: a model with a sliding pool gives sliding layers 0.8 as many tokens as global ones,
however short the window, and a hybrid model gives states 0.9 as many bytes as K and V.

Source: SGLang 0.5.23, `srt/model_executor/pool_configurator.py`, `srt/mem_cache/memory_pool.py`,
`srt/mem_cache/kv_cache_configurator.py` (_handle_max_mamba_cache, _calculate_mamba_ratio),
`srt/arg_groups/memory_hook.py` (handle_gpu_memory_settings), `srt/configs/model_config.py`
(is_hybrid_swa_model), `srt/layers/quantization/fp4_kv_cache_quant_method.py`.
"""

from __future__ import annotations

import math

from nybble.errors import NybbleError
from nybble.formats.setting import KVSetting
from nybble.models.geometry import Geometry, Layer
from nybble.planning.memory.base import Load, Memory, MemoryModel, Part
from nybble.planning.memory.cards import (
    GIB,
    context_part,
    grows,
    heads_on_card,
    symmetric,
    token_bytes,
)
from nybble.planning.memory.rows import up, weights_part

PAGE = 1  # tokens; FlashMLA has 64, TRT-LLM kernels of SM100 64, FA4 of SM100 128
SLIDING_RATIO = 0.8  # swa_full_tokens_ratio
STATE_RATIO = 0.9  # mamba_full_memory_ratio
STATES = 3  # slots a running request takes with the radix cache
MIB = 1 << 20
TABLE = GIB // 2  # bytes from which the table of requests is worth a note
# Models with a pool of their own for sliding layers; all others keep all tokens in every layer.
SLIDING_POOL = ("gpt_oss", "gpt-oss", "gemma4", "llama4", "mimo_v2", "step3p5", "granite_swa",
                "laguna", "mellum")  # fmt: skip
TYPES = ("f16", "bf16", "fp8_e4m3", "fp8_e5m2", "nvfp4", "fp4_mx_block16")
FP4 = ("nvfp4", "fp4_mx_block16")


class SGLang(MemoryModel):
    """`python -m sglang.launch_server --kv-cache-dtype TYPE`."""

    engine = "sglang"
    version = "0.5.23"
    source = "SGLang 0.5.23, srt/model_executor/pool_configurator.py and srt/mem_cache/"
    settings = ("f16/f16", "fp8_e4m3/fp8_e4m3", "nvfp4/nvfp4", "fp4_mx_block16/fp4_mx_block16")

    def check(self, geometry: Geometry, setting: KVSetting) -> None:
        """Refuse types without a flag, and FP4 where the pool has no scales for it.

        Raises:
            NybbleError: see above.
        """
        symmetric(setting, self.engine, TYPES, "--kv-cache-dtype")
        if setting.k not in FP4:
            return
        why = ""
        if sliding_pool(geometry):
            why = "its pool for sliding layers (SWAKVPool) holds no FP4 scales"
        elif geometry.of_kind("latent") and setting.k == "nvfp4":
            why = "its nvfp4 decodes with trtllm_mha only, which is no MLA backend"
        elif any(x.k_dim != x.v_dim and x.v_dim for x in grows(geometry)):
            why = "its FP4 pool has one head size for K and V"
        elif any(x.k_dim % 16 for x in grows(geometry)):
            why = "blocks of 16 do not divide the head size"
        if why:
            raise NybbleError(
                f"SGLang does not store this model in {setting.k}: {why}",
                seen=f"{setting} with {geometry.architecture}",
                allowed="fp8_e4m3/fp8_e4m3, f16/f16", hint="--kv fp8_e4m3",
            )  # fmt: skip

    def memory(self, geometry: Geometry, setting: KVSetting, load: Load) -> Memory:
        """The pools that just hold the load, and what mem_fraction_static keeps out of them.

        Raises:
            NybbleError: KV heads that cannot be split over the cards.
        """
        parts, notes = weights_part(geometry), []
        owned = _pool_layers(geometry)
        wide = [x for x in owned if x.kind != "sliding" or not sliding_pool(geometry)]
        narrow = [x for x in owned if x not in wide]
        tokens = load.sequences * up(load.context, PAGE)
        if narrow:
            window = max(x.window or 0 for x in narrow)
            # Fewer tokens than this no request is ever admitted with (validate_swa_pool_size).
            least = max(load.sequences * min(load.context, window + PAGE), window + PAGE + 1)
            if wide:
                tokens = max(tokens, math.ceil(least / SLIDING_RATIO))
                parts.append(_rows(wide, setting, load, tokens, "global layers"))
                ratio = min(SLIDING_RATIO, least / tokens)
                notes.append(
                    f"sliding layers get {SLIDING_RATIO} of the tokens of global ones; "
                    f"--swa-full-tokens-ratio {ratio:.2g} would do for the windows alone"
                )
            tokens = int(tokens * SLIDING_RATIO) if wide else least
            parts.append(_rows(narrow, setting, load, tokens, f"sliding layers, window {window}"))
        elif wide:
            parts.append(_rows(wide, setting, load, tokens, "layers"))
            if geometry.of_kind("sliding"):
                notes.append("SGLang has no sliding pool for this model: all layers keep all "
                             "tokens")  # fmt: skip
        if geometry.of_kind("shared") and owned:
            notes.append("layers that read another's cache have buffers all the same")
        if setting.k == "nvfp4":
            parts.append(_workspace(wide, load, tokens))
            notes.append("on SM100 the fp8 workspace is not needed; nvfp4 needs SM100 or SM120")
        parts += _states(geometry, load, sum(p.n_bytes for p in parts if p.use == "cache"))
        parts += [_reserve(geometry, load), context_part(load)]
        # KVCacheConfigurator.resolve_max_num_reqs and memory_pool.ReqToTokenPool.
        requests = max(min(load.sequences * 512, 4096), 2048)
        table = (min(requests, load.sequences * load.context // 2) + 1) * load.context * 4
        if table > TABLE:
            notes.append(f"of the reserve, {table / GIB:.1f} GiB a card are a table of "
                         f"{requests:,} requests x {load.context:,} tokens; "
                         "--max-running-requests makes it smaller")  # fmt: skip
        return Memory(tuple(parts), tuple(notes))


def sliding_pool(geometry: Geometry) -> bool:
    """Whether SGLang keeps sliding layers of this model in a pool of their own."""
    known = geometry.architecture.lower().startswith(SLIDING_POOL)
    return known and bool(geometry.of_kind("sliding"))


def _pool_layers(geometry: Geometry) -> list[Layer]:
    """Layers with buffers: also those that read another's cache, which are never written."""
    found = []
    for layer in geometry.layers:
        source = geometry.layers[layer.source] if layer.source is not None else layer
        if source.k_width:
            found.append(source)
    return found


def _row(layer: Layer, setting: KVSetting, cards: int) -> int:
    """Bytes of a token in one layer on one card; every card holds the whole latent."""
    if layer.kind == "latent":
        return setting.k_type.row_bytes(layer.k_dim)
    return token_bytes(layer, setting, cards, "SGLang")


def _rows(layers: list[Layer], setting: KVSetting, load: Load, tokens: int, what: str) -> Part:
    slots = up(tokens, PAGE) + PAGE  # one page takes what padded tokens write
    per_token = sum(_row(layer, setting, load.cards) for layer in layers)
    on = f" on {load.cards} cards" if load.cards > 1 else ""
    return Part("cache", f"{len(layers)} {what}", slots * per_token * load.cards,
                f"({slots - PAGE:,} + {PAGE}) tokens x {per_token:,} B of {len(layers)} layers"
                + on)  # fmt: skip


def _workspace(layers: list[Layer], load: Load, tokens: int) -> Part:
    """K and V of one layer in fp8, which FlashInfer's prefill reads; as large as the pool."""
    widest = max(layers, key=lambda x: x.k_width)
    heads = heads_on_card(widest.kv_heads, load.cards, "SGLang")
    n_bytes = (tokens + PAGE) * heads * (widest.k_dim + widest.v_dim) * load.cards
    return Part("scratch", "fp8 workspace of prefill", n_bytes,
                f"{tokens + PAGE:,} tokens x {heads} heads x {widest.k_dim + widest.v_dim} B, one "
                f"layer, {load.cards} cards")  # fmt: skip


def _states(geometry: Geometry, load: Load, cache: int) -> list[Part]:
    """Slots for the requests, and no fewer bytes than the share that states get."""
    states = [x.state for x in geometry.of_kind("recurrent") if x.state]
    if not states:
        return []
    # Convolutions in bfloat16, states in float32 unless the model's config says otherwise.
    slot = sum(s.conv * 2 + s.recurrent * 4 for s in states) // load.cards
    slots = load.sequences * STATES + 1
    share = int(cache * STATE_RATIO / load.cards) // slot
    count = max(slots, share)
    return [Part("state", "recurrent states", count * slot * load.cards,
                 f"{count} slots x {slot:,} B x {load.cards} cards: {STATES} for each of "
                 f"{load.sequences} sequences + 1, or {STATE_RATIO} of the {cache:,} B of cache "
                 "(--max-mamba-cache-size sets fewer)")]  # fmt: skip


def _reserve(geometry: Geometry, load: Load) -> Part:
    """What mem_fraction_static leaves out: activations and CUDA graphs, by SGLang's own rule."""
    card = load.card_bytes / MIB if load.card_bytes else None
    chunk, batch = _defaults(card, load.cards)
    chunk = load.ubatch or chunk
    graphs = batch * 2 + (1536 if geometry.of_kind("latent") else 8 * _captures(chunk))
    kept = 512 + max(chunk, 2048) * 1.5 + load.cards / 8 * 1024 + graphs
    formula = f"512 + {max(chunk, 2048):,} tokens x 1.5 + {load.cards} / 8 x 1,024 + {graphs:,}"
    formula += " of CUDA graphs MiB"
    if card is not None:
        kept = max(kept, 10240) if card > 60 * 1024 else kept
        fraction = round((card - kept) / card, 3)
        kept = card * (1 - fraction)
        formula += f"; mem_fraction_static {fraction:g} of {card:,.0f} MiB"
    n_bytes = int(kept * MIB) * load.cards
    return Part("reserve", "outside mem_fraction_static", n_bytes,
                formula + f", on each of {load.cards} cards", card is None)  # fmt: skip


def _defaults(card: float | None, cards: int) -> tuple[int, int]:
    """chunked_prefill_size and the largest batch of CUDA graphs, by the card's MiB."""
    if card is None:
        return 4096, 160
    for below, chunk, few, many in (
        (20, 2048, 8, 8), (35, 4096, 48, 160), (60, 4096, 32, 160), (160, 8192, 256, 512),
    ):  # fmt: skip
        if card < below * 1024:
            return chunk, few if cards < 4 else many
    return 16384, 512


def _captures(largest: int) -> int:
    """How many prefill graphs are captured: generate_prefill_cuda_graph_batch_sizes."""
    steps = ((4, 33, 4), (48, 257, 16), (288, 513, 32), (576, 1025, 64), (1280, 4097, 256),
             (4608, largest + 1, 512))  # fmt: skip
    return sum(size <= largest for step in steps for size in range(*step))
