"""LMDeploy's PyTorch engine: blocks of one shape in all layers, 0.8 of what is free.

A block is one tensor shape for every layer, so sliding layers keep all tokens where a model mixes
them with global ones, and models whose layers differ in heads or head size do not run.

Source: LMDeploy 0.18.0, `pytorch/engine/cache_engine/{schema,layout}.py` (CacheDesc,
PackedBlockCacheLayout), `pytorch/engine/executor/base.py` (_adjust_block_size, _get_runtime_size,
_get_state_cache_mem), `pytorch/engine/config_builder.py`, `pytorch/configurations/`.
"""

from __future__ import annotations

from nybble.errors import NybbleError
from nybble.formats.setting import KVSetting
from nybble.models.geometry import Geometry, Layer
from nybble.planning.memory.base import Load, Memory, MemoryModel, Part
from nybble.planning.memory.cards import context_part, grows, heads_on_card, symmetric
from nybble.planning.memory.rows import activations_part, up, weights_part

BLOCK = 64  # tokens; PytorchEngineConfig.block_size
LARGE_HEAD = 512  # from this head size on blocks have 32 tokens
ALIGN = 256  # bytes of every payload of a block; CacheDesc.alignment
ENTRIES = 0.8  # cache_max_entry_count
PREFILL = 8192  # tokens; max_prefill_token_num
BATCH = 128  # max_batch_size on cards that are not A100, H100 or H200
KERNEL = 4  # columns the convolution of Qwen3-Next keeps, one more than past inputs
WIDTHS = {"f16": 2.0, "bf16": 2.0, "fp8_e4m3": 1.0, "fp8_e5m2": 1.0, "lmdeploy_int8": 1.0,
          "lmdeploy_int4": 0.5}  # fmt: skip


class LMDeploy(MemoryModel):
    """`lmdeploy serve api_server MODEL --backend pytorch --quant-policy N`."""

    engine = "lmdeploy"
    version = "0.18.0"
    source = "LMDeploy 0.18.0, pytorch/engine/cache_engine/ and pytorch/engine/executor/base.py"
    settings = ("f16/f16", "lmdeploy_int8/lmdeploy_int8", "fp8_e4m3/fp8_e4m3",
                "lmdeploy_int4/lmdeploy_int4")  # fmt: skip

    def check(self, geometry: Geometry, setting: KVSetting) -> None:
        """Refuse models without one shape for all layers, and types without a policy.

        Raises:
            NybbleError: see above; also Gemma 4, which LMDeploy has no model for.
        """
        symmetric(setting, self.engine, tuple(WIDTHS), "--quant-policy")
        shapes = {(x.kv_heads, x.k_dim, x.v_dim) for x in grows(geometry)}
        if len(shapes) > 1 or geometry.of_kind("shared"):
            seen = ", ".join(f"{h} heads x {k} / {v}" for h, k, v in sorted(shapes))
            raise NybbleError(
                "LMDeploy's cache has one shape for all layers, which this model has not",
                seen=f"{geometry.architecture}: {seen}", allowed="models with equal layers",
                hint="nybble plan MODEL --engine vllm",
            )  # fmt: skip
        if geometry.of_kind("latent") and WIDTHS[setting.k] < 2:
            raise NybbleError(
                "LMDeploy's MLA attention reads latents of 16 bits only",  # attention/mla.py
                seen=setting, allowed="f16/f16, bf16/bf16", hint="--kv f16",
            )  # fmt: skip

    def memory(self, geometry: Geometry, setting: KVSetting, load: Load) -> Memory:
        """Blocks of all sequences and one reserved, states of the largest batch, buffers.

        Raises:
            NybbleError: KV heads that cannot be split over the cards.
        """
        parts, notes = weights_part(geometry), []
        layers = grows(geometry)
        cache = 0
        if layers:
            block = BLOCK
            if layers[0].k_dim >= LARGE_HEAD and not geometry.of_kind("latent"):
                block = BLOCK // 2
            size, how = block_bytes(layers[0], setting, block, load.cards)
            tokens = _held(geometry, load)
            blocks = load.sequences * -(-tokens // block) + 1
            cache = blocks * size * len(layers) * load.cards
            formula = (
                f"({load.sequences} sequences x {-(-tokens // block):,} blocks of {block} tokens "
                f"+ 1 reserved) x {len(layers)} layers x {how}"
            )
            formula += f" on {load.cards} cards" if load.cards > 1 else ""
            parts.append(Part("cache", f"{len(layers)} layers", cache, formula))
            if geometry.of_kind("sliding") and tokens == load.context:
                notes.append("sliding layers keep all tokens: LMDeploy's blocks have no windows "
                             "of their own")  # fmt: skip
        parts += _states(geometry, load)
        runtime = (PREFILL + BATCH * 2) * geometry.vocabulary * 2 * load.cards
        formula = (
            f"({PREFILL:,} tokens + 2 x {BATCH} batches) x {geometry.vocabulary:,} x 2 B x "
            f"{load.cards} cards, held free before the cache is sized"
        )
        parts.append(Part("reserve", "runtime buffers", runtime, formula))
        # The cache is 0.8 of what is left then; the other 0.2 holds activations and the rest.
        left = round(cache / ENTRIES) - cache
        parts.append(Part("reserve", "outside cache_max_entry_count", left,
                          f"{cache:,} B of cache / {ENTRIES} - {cache:,}"))  # fmt: skip
        short = activations_part(geometry, min(PREFILL, load.context), load.cards)
        if short.n_bytes > runtime + left:
            over = short.n_bytes - runtime - left
            parts.append(Part("compute", "activations beyond the reserves", over,
                              f"{short.formula} - what is held free", estimated=True))  # fmt: skip
        parts.append(context_part(load))
        notes.append("this is the PyTorch engine; TurboMind is not planned")
        if geometry.of_kind("recurrent"):
            notes.append(f"states are held for {BATCH} sequences; --max-batch-size holds fewer")
        return Memory(tuple(parts), tuple(notes))


def block_bytes(layer: Layer, setting: KVSetting, block: int, cards: int) -> tuple[int, str]:
    """Bytes of a block of one layer on one card, and how they come about.

    Codes of K and V, then scale and zero point of each token and head for integers, in the
    model's 16-bit dtype. Each of the payloads is padded to 256 bytes.
    """
    heads = 1 if layer.kind == "latent" else heads_on_card(layer.kv_heads, cards, "LMDeploy")
    width = WIDTHS[setting.k]
    sizes = [int(block * heads * dim * width) for dim in (layer.k_dim, layer.v_dim) if dim]
    if setting.k.startswith("lmdeploy_int"):
        sizes += [block * heads * 2 * 2] * 2
    padded = [up(size, ALIGN) for size in sizes]
    return sum(padded), f"({' + '.join(f'{size:,}' for size in padded)} B)"


def _held(geometry: Geometry, load: Load) -> int:
    """Tokens of one sequence whose blocks are kept."""
    layers = grows(geometry)
    windows = {x.window for x in layers}
    # configurations/gemma.py and gpt_oss.py switch the window off; other models have it on for
    # all layers (paging/block_manager/window_block_manager.py), so it must be that of all.
    if len(windows) == 1 and None not in windows:
        window = next(iter(windows)) or 0
        return min(load.context, window + PREFILL)
    return load.context


def _states(geometry: Geometry, load: Load) -> list[Part]:
    states = [x.state for x in geometry.of_kind("recurrent") if x.state]
    if not states:
        return []
    # configurations/qwen3_next.py: both in bfloat16, and as many columns as the kernel has.
    conv = sum(s.conv // (KERNEL - 1) * KERNEL for s in states) // load.cards
    recurrent = sum(s.recurrent for s in states) // load.cards
    slot = up(conv * 2, ALIGN) + up(recurrent * 2, ALIGN)
    slots = max(BATCH, load.sequences) + 2  # one for the system, one to roll prefill
    return [Part("state", "recurrent states", slots * slot * load.cards,
                 f"({slots - 2} sequences + 2) x {slot:,} B of {len(states)} layers"
                 + (f" on {load.cards} cards" if load.cards > 1 else ""))]  # fmt: skip
