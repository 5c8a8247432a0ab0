"""LMDeploy's allocation: equal to its own layout on the meta device, else worked by hand."""

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
    LLAMA,
    QWEN3_NEXT,
    full,
    geometry,
    sliding,
)

from nybble.errors import NybbleError
from nybble.formats.setting import parse
from nybble.models.geometry import Geometry
from nybble.planning.memory.base import Load, Memory
from nybble.planning.memory.lmdeploy import LMDeploy, block_bytes

RESULT = json.loads(
    (Path(__file__).parents[2] / "bench/results/plan_pools.json").read_text(encoding="utf-8")
)["lmdeploy"]
MODEL = LMDeploy()


def plan(model: Geometry, kv: str, **load: Any) -> Memory:
    chosen = parse(kv)
    MODEL.check(model, chosen)
    return MODEL.memory(model, chosen, Load(**load))


def cache(model: Geometry, kv: str, **load: Any) -> int:
    return plan(model, kv, **load).of("cache")


def test_result_is_of_this_version() -> None:
    assert RESULT["version"] == MODEL.version


@pytest.mark.parametrize("case", RESULT["blocks"], ids=lambda c: "-".join(map(str, c.values())))
def test_blocks_equal_lmdeploys(case: dict[str, Any]) -> None:
    # BlockCachePlan.logical_block_nbytes, of build_block_cache_plan.
    model, cards = BY_NAME[case["model"]], case["cards"]
    # 10 blocks of tokens and 1 reserved (config_builder.py, num_reserved_gpu_blocks).
    ours = cache(model, case["type"], context=10 * case["block"], cards=cards)
    assert ours == 11 * case["bytes"] * cards


def test_blocks_by_hand() -> None:
    # int4 of Llama: 64 tokens x 8 heads x 64 B a side, and 64 x 8 x (scale, zero) x 2 B a side.
    block = 32 * 2 * (64 * 8 * 64 + 64 * 8 * 4)
    assert cache(LLAMA, "lmdeploy_int4", context=8192) == (128 + 1) * block
    assert cache(LLAMA, "lmdeploy_int4", context=8193, sequences=4) == (4 * 129 + 1) * block
    # Bytes are those of the type's rows where payloads are multiples of 256 as they are.
    rows = parse("lmdeploy_int4").k_type.row_bytes(128)
    assert block == 32 * 64 * 8 * 2 * rows


def test_payloads_are_padded_to_256() -> None:
    # schema.CacheDesc: 16 tokens x 1 head x 2 numbers x 2 B = 64 B of scales, stored in 256.
    size, how = block_bytes(full(1, 64), parse("lmdeploy_int8"), 16, 1)
    assert size == 1024 + 1024 + 256 + 256
    assert how == "(1,024 + 1,024 + 256 + 256 B)"


def test_sliding_layers_keep_all_tokens() -> None:
    # configurations/gemma.py sets sliding_window to -1: 62 layers of all tokens.
    assert cache(GEMMA3, "f16", context=6400) == 101 * 64 * 62 * 16 * 256 * 2
    assert any("keep all tokens" in note for note in plan(GEMMA3, "f16", context=6400).notes)
    # A model with a window in every layer drops blocks (window_block_manager.py), after a chunk.
    model = geometry("mistral", [sliding(8, 128, 4096)] * 32)
    assert cache(model, "f16", context=65536) == (192 + 1) * 64 * 32 * 8 * 256 * 2
    assert cache(model, "f16", context=6400) == (100 + 1) * 64 * 32 * 8 * 256 * 2


def test_large_heads_have_blocks_of_32() -> None:
    # executor/base.py, _adjust_block_size: 100 tokens are 4 blocks, and 1 reserved.
    model = geometry("x", [full(1, 512)] * 2)
    assert cache(model, "f16", context=100) == 5 * 32 * 2 * 1024 * 2


def test_states_of_the_largest_batch() -> None:
    # executor/base.py, _get_state_cache_mem: max_batches + 2 slots, 128 on most cards.
    memory = plan(QWEN3_NEXT, "f16", context=8192, sequences=4)
    assert memory.of("state") == 130 * RESULT["qwen3_next_slot"]
    assert plan(QWEN3_NEXT, "f16", context=64, sequences=200).of("state") == (
        202 * RESULT["qwen3_next_slot"]
    )
    assert any("max-batch-size" in note for note in memory.notes)


def test_reserves() -> None:
    # executor/base.py, _get_runtime_size and _update_num_gpu_blocks: the cache is 0.8 of what is
    # free after (8,192 + 2 x 128) x vocabulary x 2 B.
    memory = plan(LLAMA, "f16", context=131072)
    runtime, left = [p for p in memory.parts if p.use == "reserve" and not p.estimated]
    assert runtime.n_bytes == (8192 + 256) * 128256 * 2
    assert left.n_bytes == round(memory.of("cache") / 4)


def test_two_cards() -> None:
    # configurations/builder.py, update_num_kv_heads: split, or copied beyond the heads.
    assert cache(LLAMA, "f16", context=6400, cards=2) == cache(LLAMA, "f16", context=6400)
    assert cache(LLAMA, "f16", context=6400, cards=16) == 2 * cache(LLAMA, "f16", context=6400)
    one, two = (cache(DEEPSEEK_V3, "f16", context=6400, cards=n) for n in (1, 2))
    assert two == 2 * one
    with pytest.raises(NybbleError, match="evenly"):
        plan(LLAMA, "f16", context=6400, cards=5)


@pytest.mark.parametrize(
    ("model", "kv", "said"),
    [
        (LLAMA, "q8_0", "one KV type for both sides"),
        (LLAMA, "lmdeploy_int8/lmdeploy_int4", "one KV type for both sides"),
        (GEMMA4, "f16", "one shape for all layers"),
        (GEMMA4_E4B, "f16", "one shape for all layers"),
        (DEEPSEEK_V3, "lmdeploy_int8", "MLA"),
        (DEEPSEEK_V3, "fp8_e4m3", "MLA"),
    ],
)
def test_refusals(model: Geometry, kv: str, said: str) -> None:
    with pytest.raises(NybbleError, match=said) as caught:
        MODEL.check(model, parse(kv))
    assert caught.value.seen
    assert caught.value.allowed
    assert caught.value.hint


def test_settings_are_accepted() -> None:
    for name in MODEL.settings:
        assert str(parse(name)) == name
        MODEL.check(LLAMA, parse(name))
