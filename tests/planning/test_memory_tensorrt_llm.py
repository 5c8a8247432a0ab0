"""TensorRT-LLM's allocation, worked by hand from resource_manager.py; nothing of it was run."""

from __future__ import annotations

from typing import Any

import pytest
from plan_shapes import DEEPSEEK_V3, GEMMA3, GEMMA4, GEMMA4_E4B, LLAMA, QWEN3_NEXT

from nybble.errors import NybbleError
from nybble.formats.setting import parse
from nybble.models.geometry import Geometry
from nybble.planning.memory.base import Load, Memory
from nybble.planning.memory.tensorrt_llm import TensorRTLLM

MODEL = TensorRTLLM()


def plan(model: Geometry, kv: str, **load: Any) -> Memory:
    chosen = parse(kv)
    MODEL.check(model, chosen)
    return MODEL.memory(model, chosen, Load(**load))


def cache(model: Geometry, kv: str, **load: Any) -> int:
    return plan(model, kv, **load).of("cache")


def test_llama_by_hand() -> None:
    # get_cache_bytes_per_token: 2 x 32 layers x 8 heads x 128 elements; nvfp4 has 1/2 B for each
    # and 1/16 B of scales (calculate_scaling_factor_size_bytes). Blocks of 32 tokens.
    elements = 2 * 32 * 8 * 128
    assert cache(LLAMA, "f16", context=131072) == 131072 * elements * 2
    assert cache(LLAMA, "fp8_e4m3", context=1000) == 32 * 32 * elements
    assert cache(LLAMA, "nvfp4", context=1000, sequences=4) == 4 * 1024 * elements * 9 // 16


def test_windows_are_not_cut_by_default() -> None:
    # KVCacheManager.__init__: max_attention_window None is max_seq_len for all layers.
    memory = plan(GEMMA3, "f16", context=32768)
    assert memory.of("cache") == 32768 * 62 * 16 * 256 * 2
    assert any("max_attention_window" in note for note in memory.notes)
    gemma4 = plan(GEMMA4, "f16", context=32768)
    assert gemma4.of("cache") == 32768 * (50 * 16 * 512 + 10 * 4 * 1024) * 2
    assert any("manager V2" in note for note in gemma4.notes)
    assert cache(GEMMA4_E4B, "f16", context=32) == 32 * (20 * 2 * 512 + 4 * 2 * 1024) * 2


def test_latents_and_cards() -> None:
    # SELFKONLY: kv_factor 1, 576 elements, one head on every card.
    assert cache(DEEPSEEK_V3, "fp8_e4m3", context=64) == 64 * 61 * 576
    assert cache(DEEPSEEK_V3, "fp8_e4m3", context=64, cards=2) == 2 * 64 * 61 * 576
    # Heads are rounded up: (8 + 2) // 3 = 3 on each of three cards.
    assert cache(LLAMA, "f16", context=64, cards=2) == cache(LLAMA, "f16", context=64)
    assert cache(LLAMA, "f16", context=64, cards=3) == cache(LLAMA, "f16", context=64) * 9 // 8


def test_share_of_free_memory() -> None:
    # calculate_max_num_blocks: 0.9 of what is free.
    memory = plan(LLAMA, "f16", context=131072)
    left = next(p for p in memory.parts if "free_gpu_memory_fraction" in p.name)
    assert left.n_bytes == round(memory.of("cache") / 0.9) - memory.of("cache")
    hybrid = plan(QWEN3_NEXT, "f16", context=8192, sequences=4)
    assert all(p.estimated for p in hybrid.parts if p.use == "state")


def test_what_is_not_verified_is_said() -> None:
    for model in (LLAMA, GEMMA4_E4B, QWEN3_NEXT):
        assert any("not verified" in note for note in plan(model, "f16", context=64).notes)
    assert any("ModelOpt" in note for note in plan(LLAMA, "nvfp4", context=64).notes)


@pytest.mark.parametrize(
    ("model", "kv", "said"),
    [
        (LLAMA, "q8_0", "one KV type for both sides"),
        (LLAMA, "fp8_e4m3/nvfp4", "one KV type for both sides"),
        (DEEPSEEK_V3, "nvfp4", "blocks of 16"),
    ],
)
def test_refusals(model: Geometry, kv: str, said: str) -> None:
    with pytest.raises(NybbleError, match=said) as caught:
        MODEL.check(model, parse(kv))
    assert caught.value.seen
    assert caught.value.allowed


def test_settings_are_accepted() -> None:
    for name in MODEL.settings:
        assert str(parse(name)) == name
        MODEL.check(LLAMA, parse(name))
