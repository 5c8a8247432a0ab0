"""llama.cpp: cells padded to 256, a shorter cache for sliding layers, buffers reserved at start.

Source: llama.cpp b11549 as the sdist of xllamacpp 2026.10.11549 carries it: `src/llama-model.cpp`
(create_memory), `src/llama-kv-cache*.cpp`, `src/llama-memory-recurrent.cpp`,
`src/llama-context.cpp` and `ggml/src/ggml-cuda/fattn.cu`.
"""

from __future__ import annotations

from nybble.errors import NybbleError
from nybble.formats.registry import KV_TYPES
from nybble.formats.setting import KVSetting, check_head_size
from nybble.models.geometry import Geometry
from nybble.planning.memory.base import Load, Memory, MemoryModel, Part
from nybble.planning.memory.llamacpp_cells import Cells, cells
from nybble.planning.memory.llamacpp_compute import compute_parts, f16_copy
from nybble.planning.memory.rows import kv_part, latent_part, state_part, weights_part

# --cache-type-k and --cache-type-v; kv_cache_types of common/arg.cpp.
TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
# Pairs that CUDA's kernels for single tokens read as they are in a default build.
COMPILED = ("f16/f16", "bf16/bf16", "q8_0/q8_0", "q4_0/q4_0")
CUDA = ("nvidia", "amd", "what-if")  # run ggml's CUDA kernels, AMD through HIP
NO_FLASH = ("grok",)  # flash attention is forced off, so V cannot be quantized


class LlamaCpp(MemoryModel):
    """`llama-server -np sequences -c context * sequences`, all layers on the cards.

    Attributes:
        unified: one pool of cells for all slots (`--kv-unified`), which is also what a server
            started without -np makes, with 4 slots; otherwise a stream for each slot.
    """

    engine = "llama.cpp"
    version = "b11549 (xllamacpp 2026.10.11549)"
    source = "llama.cpp b11549, src/llama-kv-cache*.cpp, src/llama-context.cpp"
    # iq4_nl is not among them: CUDA has no flash attention for it.
    settings: tuple[str, ...] = ("f16/f16", "q8_0/q8_0", "q8_0/q4_0", "q5_1/q5_1", "q4_0/q4_0")

    def __init__(self, *, unified: bool = False) -> None:
        self.unified = unified

    def check(self, geometry: Geometry, setting: KVSetting) -> None:
        """Refuse what `llama_init_from_model` refuses, and what no flag can say.

        Raises:
            NybbleError: types that are not ggml's, anything around them, a head size that blocks
                do not divide, two types in a cache of latents, a quantized V without flash
                attention.
        """
        if not setting.llamacpp:
            known = all(name in TYPES for name in setting.types)
            what = "protects or skips nothing" if known else "does not have this KV type"
            raise NybbleError(
                f"{self.engine} {what}", seen=str(setting), allowed=TYPES,
                hint=f"--kv {setting.k}/{setting.v}" if known else "--kv q8_0/q8_0",
            )  # fmt: skip
        kept = geometry.of_kind("global", "sliding", "latent")
        if geometry.of_kind("latent") and setting.k != setting.v:
            raise NybbleError(
                f"{self.engine} keeps latents, of which V is a part: both types must be one",
                seen=f"{geometry.architecture} with {setting}",
                allowed=[f"{name}/{name}" for name in TYPES],
                hint=f"--kv {setting.k}/{setting.k}",
            )
        if geometry.architecture in NO_FLASH and KV_TYPES[setting.v].quantized:
            raise NybbleError(
                f"{self.engine} quantizes V with flash attention only, which it does not use here",
                seen=f"{geometry.architecture} with {setting}", allowed=f"{setting.k}/f16",
                hint=f"--kv {setting.k}/f16",
            )  # fmt: skip
        check_head_size(setting, {x.k_dim for x in kept}, {x.v_dim for x in kept})

    def memory(self, geometry: Geometry, setting: KVSetting, load: Load) -> Memory:
        """Cells of all slots, states, and the buffers of one micro-batch.

        With `load.card_bytes` the model runs on cards: lookup tables and the logits' way back
        stay in the host's memory, unless that is the cards' too, and CUDA copies a layer's cache
        to f16. Without, all of it is counted, as where llama.cpp runs without cards.
        """
        caches = cells(geometry, load, unified=self.unified)
        parts = _weights(geometry, load)
        parts += _cache(caches, setting)
        parts += state_part(geometry.layers, load.sequences, 4, 4)
        parts += compute_parts(geometry, setting, load, caches)
        if load.card_bytes is None or load.unified:
            logits = 4 * load.sequences * geometry.vocabulary
            how = f"{load.sequences} slots x {geometry.vocabulary:,} x 4 B"
            parts.append(Part("compute", "logits", logits, how))
        if load.card_bytes is not None and load.vendor in CUDA:
            parts += f16_copy(geometry, setting, load, caches)
        return Memory(tuple(parts), tuple(_notes(geometry, setting, load)))


def _cache(caches: tuple[Cells, Cells], setting: KVSetting) -> list[Part]:
    parts: list[Part] = []
    for cache, what in zip(caches, ("global", "sliding"), strict=True):
        many = f" in each of {cache.streams} streams" if cache.streams > 1 else ""
        latent = tuple(layer for layer in cache.layers if layer.kind == "latent")
        plain = [layer for layer in cache.layers if layer.kind != "latent"]
        parts += kv_part(plain, setting, cache.total,
                         f"{len(plain)} {what} layers, {cache.each:,} cells{many}")  # fmt: skip
        parts += latent_part(latent, setting.k_type, setting.k_type, cache.total)
    return parts


def _weights(geometry: Geometry, load: Load) -> list[Part]:
    parts = weights_part(geometry)
    weights = geometry.weights
    if weights is None or load.card_bytes is None or load.unified or not weights.lookup_bytes:
        return parts
    # What no token reads: tables, less one that is the output matrix too. That one is made twice.
    unread = weights.n_bytes - weights.read_bytes
    if geometry.experts_used:
        # Experts not chosen hide it in the sum; models with experts have no other tables.
        unread = 0 if weights.tied else weights.lookup_bytes
    unread = min(unread, weights.lookup_bytes)
    part = parts[0]
    return [Part(part.use, part.name, part.n_bytes - unread,
                 f"{part.formula}, less {unread:,} B of tables that stay in the host's memory",
                 part.estimated)]  # fmt: skip


def _notes(geometry: Geometry, setting: KVSetting, load: Load) -> list[str]:
    notes = []
    weights = geometry.weights
    apart = load.card_bytes is not None and not load.unified
    if apart and weights is not None and weights.lookup_bytes:
        notes.append(f"llama.cpp keeps {weights.lookup_bytes:,} B of embedding tables in the "
                     "host's memory")  # fmt: skip
    cuda = load.vendor in CUDA
    if cuda and "iq4_nl" in setting.types:
        notes.append("CUDA has no flash attention for iq4_nl: attention runs on the CPU")
    elif cuda and setting.quantized and f"{setting.k}/{setting.v}" not in COMPILED:
        notes.append("a default CUDA build has no kernel for this pair of types and converts the "
                     "cache to f16 for every token (GGML_CUDA_FA_QUANTS)")  # fmt: skip
    if geometry.of_kind("sliding") and load.sequences == 1:
        notes.append("llama-server without -np makes 4 slots that share -c, and its sliding "
                     "layers hold 4 windows: start it with -np 1")  # fmt: skip
    return notes
