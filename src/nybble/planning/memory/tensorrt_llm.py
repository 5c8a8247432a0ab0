"""TensorRT-LLM: blocks of 32 tokens, 0.9 of what is free after the model.

The weakest source of all engines: the package was not at hand, so this follows one version of the
PyTorch backend's Python files. The C++ manager that allocates the pools was not read.

Source: NVIDIA/TensorRT-LLM at 001541b, `tensorrt_llm/_torch/pyexecutor/resource_manager.py`
(KVCacheManager.__init__, get_cache_bytes_per_token, calculate_max_num_blocks) and the page
llm-api/reference/KvCacheConfig.html of 1.3.0rc27.
"""

from __future__ import annotations

from nybble.errors import NybbleError
from nybble.formats.setting import KVSetting
from nybble.models.geometry import Geometry, Layer
from nybble.planning.memory.base import Load, Memory, MemoryModel, Part
from nybble.planning.memory.cards import context_part, grows, symmetric
from nybble.planning.memory.rows import activations_part, state_part, weights_part

BLOCK = 32  # tokens; KvCacheConfig.tokens_per_block
FREE = 0.9  # KvCacheConfig.free_gpu_memory_fraction
MAX_TOKENS = 8192  # of one pass; max_num_tokens
TYPES = ("f16", "bf16", "fp8_e4m3", "nvfp4")


class TensorRTLLM(MemoryModel):
    """`trtllm-serve MODEL` with `KvCacheConfig(dtype=...)`, PyTorch backend."""

    engine = "tensorrt-llm"
    version = "1.3.0rc27"
    source = "NVIDIA/TensorRT-LLM at 001541b, pyexecutor/resource_manager.py"
    settings = ("f16/f16", "fp8_e4m3/fp8_e4m3", "nvfp4/nvfp4")

    def check(self, geometry: Geometry, setting: KVSetting) -> None:
        """Refuse types other than 16 bits, fp8 and nvfp4.

        Raises:
            NybbleError: see above; nvfp4 also for latents and odd head sizes.
        """
        symmetric(setting, self.engine, TYPES, "KvCacheConfig.dtype")
        for layer in grows(geometry):
            if setting.k == "nvfp4" and (layer.kind == "latent" or layer.k_dim % 16):
                raise NybbleError(
                    "TensorRT-LLM's nvfp4 cache stores K and V in blocks of 16 elements",
                    seen=f"{layer.kind} layers of head size {layer.k_dim}",
                    allowed="fp8_e4m3/fp8_e4m3, f16/f16", hint="--kv fp8_e4m3",
                )  # fmt: skip

    def memory(self, geometry: Geometry, setting: KVSetting, load: Load) -> Memory:
        """Blocks of all sequences, the tenth that stays free, and buffers."""
        parts = weights_part(geometry)
        layers = grows(geometry)
        per_token = sum(_token(layer, setting, load.cards) for layer in layers)
        blocks = load.sequences * -(-load.context // BLOCK)
        cache = blocks * BLOCK * per_token * load.cards
        on = f" on {load.cards} cards" if load.cards > 1 else ""
        parts.append(Part("cache", f"{len(layers)} layers", cache,
                          f"{load.sequences} sequences x {blocks // load.sequences:,} blocks of "
                          f"{BLOCK} tokens x {per_token:,} B{on}"))  # fmt: skip
        states = state_part(geometry.of_kind("recurrent"), load.sequences, 2, 2, estimated=True)
        parts += states
        used = cache + sum(part.n_bytes for part in states)
        left = round(used / FREE) - used
        parts.append(Part("reserve", "outside free_gpu_memory_fraction", left,
                          f"{used:,} B of cache and states / {FREE} - {used:,}"))  # fmt: skip
        rows = min(load.ubatch or MAX_TOKENS, max(load.context, BLOCK))
        parts.append(activations_part(geometry, rows, load.cards))
        parts.append(context_part(load))
        return Memory(tuple(parts), tuple(_notes(geometry, setting)))


def _token(layer: Layer, setting: KVSetting, cards: int) -> int:
    """Bytes of a token in one layer on one card; heads are rounded up to whole ones."""
    heads = 1 if layer.kind == "latent" else -(-layer.kv_heads // cards)
    k = setting.k_type.row_bytes(layer.k_dim)
    return heads * (k + (setting.v_type.row_bytes(layer.v_dim) if layer.v_dim else 0))


def _notes(geometry: Geometry, setting: KVSetting) -> list[str]:
    notes = ["not verified: read from one version of the Python files, never run; what the C++ "
             "pools add is not known"]  # fmt: skip
    if setting.k == "nvfp4":
        notes.append("nvfp4 needs a checkpoint quantized offline by ModelOpt, and Blackwell")
    if geometry.of_kind("sliding"):
        notes.append("sliding layers keep all tokens unless max_attention_window is set; how the "
                     "pools of several windows share the memory was not read")  # fmt: skip
    if len({x.k_dim for x in grows(geometry)}) > 1:
        notes.append("several head sizes need KV cache manager V2, which was not read")
    if geometry.of_kind("shared"):
        notes.append("not verified: that layers which read another's cache have none")
    if geometry.of_kind("recurrent"):
        notes.append("not verified: states of 16 bits, one for each sequence")
    return notes
