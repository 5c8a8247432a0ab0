"""vLLM: one pool of blocks for all layers, cut to the share of the card it may use.

What a sequence reserves is vLLM's own count, the one behind "Maximum concurrency" in its log: a
sliding layer is counted with its window and all tokens in flight, which a decode alone does not
hold. Numbers are those of the CUDA defaults, with prefix caching and without speculation.

Source: vLLM 0.33.0, `v1/core/kv_cache_planning.py` (_max_memory_usage_bytes_from_groups),
`v1/core/kv_cache_utils.py` (get_max_concurrency_for_kv_cache_config), `config/cache.py`,
`config/vllm.py` (max_in_flight_tokens), `engine/arg_utils.py` (get_batch_defaults),
`v1/worker/gpu_worker.py` (determine_available_memory), supported_kv_cache_dtypes of the backends.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

from nybble.errors import NybbleError
from nybble.formats.around import PLAIN as AROUND_NOTHING
from nybble.formats.registry import ALIASES
from nybble.formats.setting import KVSetting
from nybble.models.geometry import Geometry
from nybble.planning.memory.base import Load, Memory, MemoryModel, Part
from nybble.planning.memory.cards import GIB, context_part, grows
from nybble.planning.memory.rows import activations_part, one_of, up, weights_part
from nybble.planning.memory.vllm_groups import Group, block_bytes, group
from nybble.planning.memory.vllm_specs import BLOCK, LATENT_BLOCK, SPARSE, layer_specs
from nybble.planning.memory.vllm_specs import turbo as is_turbo

UTILIZATION = 0.92  # CacheConfig.gpu_memory_utilization
BATCHES = 2  # in flight at once, with asynchronous scheduling
STATES = 2  # pages a sequence holds with prefix caching (mamba_cache_mode "align")
PLAIN = ("f16", "bf16", "fp8_e4m3", "int8_per_token_head", "fp8_per_token_head", "fp8_e5m2",
         "nvfp4", "nvfp4_4over6", "int4_per_token_head")  # fmt: skip


class VLLM(MemoryModel):
    """`vllm serve MODEL --kv-cache-dtype TYPE`."""

    engine = "vllm"
    version = "0.33.0"
    source = "vLLM 0.33.0, v1/core/kv_cache_planning.py and platforms/interface.py"
    settings = ("f16/f16", "int8_per_token_head/int8_per_token_head", "fp8_e4m3/fp8_e4m3",
                ALIASES["turboquant_k8v4"], "nvfp4/nvfp4",
                "int4_per_token_head/int4_per_token_head",
                ALIASES["turboquant_4bit_nc"])  # fmt: skip

    def check(self, geometry: Geometry, setting: KVSetting) -> None:
        """Refuse what no attention backend of vLLM accepts.

        TurboQuant with sliding windows is refused because it cannot be planned: it is open in
        vLLM (issues 40094, 41403).

        Raises:
            NybbleError: see above.
        """
        turbo = is_turbo(setting)
        if not turbo or replace(setting.around, skip=(), chunk=0) != AROUND_NOTHING:
            one_of(setting, self.engine, [*(f"{n}/{n}" for n in PLAIN), *self.settings])
        latent, sliding = geometry.of_kind("latent"), geometry.of_kind("sliding")
        if latent and (turbo or setting.k not in ("f16", "bf16", "fp8_e4m3")):
            raise _refusal("vLLM's MLA backends store latents in 16 bits or fp8_e4m3", setting,
                           "f16/f16, bf16/bf16, fp8_e4m3/fp8_e4m3")  # fmt: skip
        if turbo and sliding:
            raise _refusal("TurboQuant with sliding windows is not settled in vLLM (issues 40094, "
                           "41403), so it is not planned", setting,
                           "int4_per_token_head/int4_per_token_head")  # fmt: skip
        if setting.k.startswith("nvfp4"):
            for x in grows(geometry):
                if x.k_dim != x.v_dim or x.k_dim < 128 or x.sinks:
                    seen = f"head sizes {x.k_dim} and {x.v_dim}" + ", sinks" * x.sinks
                    what = ("vLLM's nvfp4 needs equal K and V head sizes, and on all cards but "
                            "SM100 128 or more and no attention sinks")  # fmt: skip
                    raise _refusal(what, seen, "fp8_e4m3/fp8_e4m3")
        for layer in grows(geometry):
            if not setting.k_type.fits(layer.k_dim) or not setting.v_type.fits(layer.v_dim or 8):
                raise _refusal("this type does not fit the model's head size",
                               f"{setting} with head size {layer.k_dim}", "f16/f16")  # fmt: skip

    def memory(self, geometry: Geometry, setting: KVSetting, load: Load) -> Memory:
        """Blocks of all sequences and the null block, buffers, and what utilisation leaves out.

        Raises:
            NybbleError: KV heads that cannot be split over the cards.
        """
        specs, notes = layer_specs(geometry, setting, load.cards)
        in_flight = BATCHES * batched_tokens(load)
        parts = weights_part(geometry)
        pool, padded = _pool(group(specs), load, in_flight)
        parts, notes = parts + pool, notes + padded
        if setting.k == "fp8_e4m3" and geometry.architecture in SPARSE:
            parts += _indexer(geometry, load)
        parts += _buffers(geometry, load)
        if load.card_bytes:
            kept = load.card_bytes - math.ceil(load.card_bytes * UTILIZATION)
            formula = f"{load.cards} x {load.card_bytes:,} B x (1 - {UTILIZATION})"
            parts.append(
                Part("reserve", "outside gpu_memory_utilization", kept * load.cards, formula)
            )
        if geometry.of_kind("sliding") and load.context > in_flight:
            notes.append(
                f"a sliding layer is counted with {in_flight:,} tokens in flight; lower "
                "--max-num-batched-tokens to reserve less"
            )
        if geometry.of_kind("recurrent"):
            notes.append("states are counted with prefix caching on; a FlashInfer prefill kernel "
                         "for Gated DeltaNet holds one page more a sequence")  # fmt: skip
        return Memory(tuple(parts), tuple(notes))


def batched_tokens(load: Load) -> int:
    """Tokens of one step, max_num_batched_tokens of the API server on such a card."""
    card = load.card_bytes or 0
    default = 16384 if card >= 160 * GIB else 8192 if card >= 70 * GIB else 2048
    return load.ubatch or default


def _pool(groups: list[Group], load: Load, in_flight: int) -> tuple[list[Part], list[str]]:
    """Blocks of all sequences by kind of layer, and what is lost to padding in words."""
    if not groups:
        return [], []
    size = block_bytes(groups)
    on_cards = f" on {load.cards} cards" if load.cards > 1 else ""
    parts, notes = [], []
    for (kind, window, block, page, content), n in Counter(_same(g) for g in groups).items():
        members = [g for g in groups if _same(g) == (kind, window, block, page, content)]
        layers = sum(len(g.specs) for g in members)
        blocks = members[0].blocks(load.context, in_flight, STATES)
        n_bytes = load.sequences * n * blocks * size * load.cards
        what = {"state": "recurrent states", "full": "global layers", "latent": "latent layers",
                "sliding": f"sliding layers, window {window}"}[kind]  # fmt: skip
        formula = f"{load.sequences} sequences x {n} groups x {blocks:,} blocks"
        formula += f" of {block} tokens" if block else ""
        formula += f" x {size:,} B a block{on_cards}; pages of {page:,} B"
        if content < page:
            formula += f", {content:,} B of them used"
            if kind != "state":
                notes.append(f"pages of {layers} {what} hold {content:,} B and take {page:,}: "
                             "vLLM makes all pages one size")  # fmt: skip
        parts.append(Part("state" if kind == "state" else "cache", f"{layers} {what}", n_bytes,
                          formula))  # fmt: skip
    parts.append(Part("cache", "null block", size * load.cards, f"{size:,} B{on_cards}"))
    return parts, notes


def _same(found: Group) -> tuple[str, int | None, int, int, int]:
    # Layers of one group may differ in page size (16-bit ones among quantized ones): the sums
    # tell groups apart as well as the pages do.
    spec = found.specs[0]
    pages = {s.page for s in found.specs}
    page = spec.page if len(pages) == 1 else max(pages)
    content = spec.content if len(pages) == 1 else page
    return spec.kind, spec.window, spec.block, page, content


def _indexer(geometry: Geometry, load: Load) -> list[Part]:
    layers, tokens = len(geometry.of_kind("latent")), up(load.context, LATENT_BLOCK)
    n_bytes = load.sequences * tokens * layers * 132 * load.cards
    formula = f"{load.sequences * tokens:,} tokens x {layers} layers x (128 B + 4 B of scale)"
    return [Part("cache", "keys of the sparse indexer", n_bytes, formula, estimated=True)]


def _buffers(geometry: Geometry, load: Load) -> list[Part]:
    """What vLLM measures with a trial run at start-up; here by rules of thumb."""
    rows = min(batched_tokens(load), max(load.context, BLOCK))
    seqs = 1024 if (load.card_bytes or 0) >= 70 * GIB else 256
    logits = seqs * geometry.vocabulary * 4
    graphs = GIB // 2
    return [
        activations_part(geometry, rows, load.cards),
        Part("compute", "logits of the trial run", logits,
             f"{seqs} sequences (max_num_seqs) x {geometry.vocabulary:,} x 4 B", estimated=True),
        Part("compute", "CUDA graphs", graphs * load.cards,
             f"{load.cards} x 0.5 GiB; vLLM measures it, and --enforce-eager does without",
             estimated=True),
        context_part(load),
    ]  # fmt: skip


def _refusal(what: str, seen: object, allowed: str) -> NybbleError:
    return NybbleError(what, seen=seen, allowed=allowed, hint=f"--kv {allowed.split(', ')[0]}")
