"""SGLang's allocation: equal to its own functions where they run, else worked by hand."""

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
    sliding,
)

from nybble.errors import NybbleError
from nybble.formats.setting import parse
from nybble.models.geometry import Geometry
from nybble.planning.memory.base import Load, Memory
from nybble.planning.memory.sglang import SGLang, _captures

RESULT = json.loads(
    (Path(__file__).parents[2] / "bench/results/plan_pools.json").read_text(encoding="utf-8")
)["sglang"]
MODEL = SGLang()
GIB = 1 << 30


def plan(model: Geometry, kv: str, **load: Any) -> Memory:
    chosen = parse(kv)
    MODEL.check(model, chosen)
    return MODEL.memory(model, chosen, Load(**load))


def test_result_is_of_this_version() -> None:
    assert RESULT["version"] == MODEL.version


@pytest.mark.parametrize("case", RESULT["cells"], ids=lambda c: "-".join(map(str, c.values())))
def test_bytes_of_a_token_equal_sglangs(case: dict[str, Any]) -> None:
    # DefaultPoolConfigurator._compute_cell_size; nvfp4 with the workspace of FlashInfer's prefill.
    memory = plan(BY_NAME[case["model"]], case["type"], context=999, cards=case["cards"])
    # 999 tokens and one page for padded ones.
    assert memory.of("cache", "scratch") == 1000 * case["bytes"] * case["cards"]


@pytest.mark.parametrize("case", RESULT["hybrid"], ids=lambda c: "-".join(map(str, c.values())))
def test_sliding_pools_equal_sglangs(case: dict[str, Any]) -> None:
    # HybridSWAPoolConfigurator.calculate_pool_sizes_from_max_tokens, ratio 0.8.
    model, cards = BY_NAME[case["model"]], case["cards"]
    memory = plan(model, case["type"], context=case["tokens"], cards=cards)
    full, narrow = (p for p in memory.parts if p.use == "cache")
    assert full.n_bytes == (case["full_tokens"] + 1) * case["full_token_bytes"] * cards
    assert narrow.n_bytes == (case["sliding_tokens"] + 1) * case["sliding_token_bytes"] * cards
    assert any("swa-full-tokens-ratio" in note for note in memory.notes)


def test_many_short_requests_need_a_larger_pool() -> None:
    # 8 x 100 tokens lie within the window: 800 sliding tokens, so 1,000 at a ratio of 0.8.
    full, narrow = (
        p for p in plan(GEMMA4, "f16", context=2000, sequences=1).parts if p.use == "cache"
    )
    assert (full.n_bytes, narrow.n_bytes) == (2001 * 81920, 1601 * 819200)
    full, narrow = (
        p for p in plan(GEMMA4, "f16", context=1025, sequences=8).parts if p.use == "cache"
    )
    # All windows full: 8 x 1,025 sliding tokens, 10,250 global ones.
    assert (full.n_bytes, narrow.n_bytes) == (10251 * 81920, 8201 * 819200)


def test_models_without_a_sliding_pool_keep_all_tokens() -> None:
    # is_hybrid_swa_model lists Gemma 4 and gpt-oss, not Gemma 3: 62 layers x 16 x 256 x 2 B.
    memory = plan(GEMMA3, "f16", context=8192, sequences=4)
    assert memory.of("cache") == (4 * 8192 + 1) * 62 * 16 * 256 * 2
    assert any("no sliding pool" in note for note in memory.notes)


def test_shared_layers_have_buffers() -> None:
    # model_config.get_hybrid_layer_ids takes all 42 layer types: 7 global, 35 sliding.
    memory = plan(GEMMA4_E4B, "f16", context=10000)
    full, narrow = (p for p in memory.parts if p.use == "cache")
    assert full.n_bytes == 10001 * 7 * 2 * 1024 * 2
    assert narrow.n_bytes == 8001 * 35 * 2 * 512 * 2
    assert any("another's cache" in note for note in memory.notes)


def test_all_sliding() -> None:
    model = geometry("gpt_oss", [sliding(8, 64, 128)] * 2)
    # No global layers, no ratio: windows and a page alone.
    assert plan(model, "f16", context=5000, sequences=4).of("cache") == (4 * 129 + 1) * 2 * 8 * 256


def test_states() -> None:
    # 36 layers of 24,576 x 2 B and 524,288 x 4 B (mamba2_state_dtype: float32 by default);
    # 3 slots a request and 1 (_calculate_mamba_ratio, radix cache on).
    slot = 36 * (24576 * 2 + 524288 * 4)
    short = plan(QWEN3_NEXT, "f16", context=1000, sequences=4)
    assert short.of("state") == (4 * 3 + 1) * slot
    # A long context: states get 0.9 of the bytes of K and V (_handle_max_mamba_cache).
    long = plan(QWEN3_NEXT, "f16", context=262144, sequences=4)
    cache = (4 * 262144 + 1) * 12 * 2 * 512 * 2
    assert long.of("cache") == cache
    assert long.of("state") == int(cache * 0.9) // slot * slot


def test_two_cards() -> None:
    for model, kv in ((LLAMA, "fp8_e4m3"), (GEMMA4, "f16"), (QWEN3_NEXT, "f16")):
        one, two = (plan(model, kv, context=9999, cards=n).of("cache") for n in (1, 2))
        assert one == two
    one, two = (plan(DEEPSEEK_V3, "f16", context=9999, cards=n).of("cache") for n in (1, 2))
    assert two == 2 * one
    one, sixteen = (plan(LLAMA, "f16", context=9999, cards=n).of("cache") for n in (1, 16))
    assert sixteen == 2 * one


def test_reserve_by_the_card() -> None:
    # memory_hook.handle_gpu_memory_settings: a 24 GiB card has chunks of 4,096 and graphs to 48:
    # 512 + 6,144 + 128 + 96 + 50 x 8 = 7,280 MiB of 24,576, rounded to 0.704.
    memory = plan(LLAMA, "f16", context=8192, card_bytes=24 * GIB)
    (part,) = [p for p in memory.parts if "mem_fraction" in p.name]
    assert "mem_fraction_static 0.704" in part.formula
    assert part.n_bytes == int(24576 * (1 - 0.704) * (1 << 20))
    assert not part.estimated
    # An 80 GiB card: 512 + 12,288 + 128 + 512 + 58 x 8 MiB; at least 10 GiB.
    (part,) = [
        p
        for p in plan(LLAMA, "f16", context=8192, card_bytes=80 * GIB).parts
        if "mem_fraction" in p.name
    ]
    assert f"mem_fraction_static {round((81920 - 13904) / 81920, 3)}" in part.formula
    (part,) = [p for p in plan(LLAMA, "f16", context=8192).parts if "mem_fraction" in p.name]
    assert part.estimated
    for largest, count in RESULT["prefill_graphs"].items():
        assert _captures(int(largest)) == count


def test_long_contexts_have_a_large_table() -> None:
    # 2,049 rows of 131,072 int32: 1.0 GiB.
    notes = plan(LLAMA, "f16", context=131072).notes
    assert any("1.0 GiB" in note and "--max-running-requests" in note for note in notes)
    assert not plan(LLAMA, "f16", context=8192).notes


@pytest.mark.parametrize(
    ("model", "kv", "said"),
    [
        (LLAMA, "q8_0", "one KV type for both sides"),
        (LLAMA, "fp8_e4m3/f16", "one KV type for both sides"),
        (LLAMA, "nvfp4+skip0", "one KV type for both sides"),
        (GEMMA4, "nvfp4", "SWAKVPool"),
        (GPT_OSS, "fp4_mx_block16", "SWAKVPool"),
        (DEEPSEEK_V3, "nvfp4", "MLA"),
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
