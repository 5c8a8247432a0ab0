"""mlx-lm's allocation, worked by hand from mlx-lm 0.32.2; MLX runs on Apple's machines only."""

from __future__ import annotations

from typing import Any

import pytest
from plan_shapes import DEEPSEEK_V3, GEMMA3, GEMMA4, GPT_OSS, LLAMA, QWEN3_NEXT, full, geometry

from nybble.errors import NybbleError
from nybble.formats.setting import parse
from nybble.models.geometry import Geometry
from nybble.planning.memory.base import Load, Memory
from nybble.planning.memory.mlx_lm import MlxLm

MODEL = MlxLm()
F16 = 32 * 8 * 2 * 128 * 2  # B a token of Llama 3.1 8B


def plan(model: Geometry, kv: str, **load: Any) -> Memory:
    chosen = parse(kv)
    MODEL.check(model, chosen)
    return MODEL.memory(model, chosen, Load(**load))


def part(memory: Memory, name: str) -> int:
    return sum(p.n_bytes for p in memory.parts if name in p.name)


@pytest.mark.parametrize(
    ("context", "rows"),
    # models/cache.py, KVCache.update_and_fetch: grows by step = 256.
    [(1, 256), (256, 256), (257, 512), (5000, 5120), (131072, 131072)],
)
def test_raw_caches_grow_by_256(context: int, rows: int) -> None:
    memory = plan(LLAMA, "f16", context=context)
    assert memory.of("cache") == rows * F16
    assert plan(LLAMA, "f16", context=context, sequences=3).of("cache") == 3 * rows * F16


def test_quantized_rows() -> None:
    # QuantizedKVCache.update_and_fetch, init_quant: dim / (32 / bits) words of 4 B, and scales
    # and biases of dim / 64 each, in the model's 16 bits: 64 + 8 B and 128 + 8 B of 128 elements.
    for kv, row in (("mlx_4", 72), ("mlx_8", 136)):
        assert plan(LLAMA, kv, context=8192).of("cache") == 8192 * 32 * 8 * 2 * row


def test_nothing_is_quantized_before_5000_tokens() -> None:
    # generate.py, maybe_quantize_kv_cache: c.offset >= quantized_kv_start, 5,000 by default.
    early = plan(LLAMA, "mlx_4", context=4999)
    assert early.of("cache") == 5120 * F16
    assert any("quantized-kv-start" in note for note in early.notes)
    late = plan(LLAMA, "mlx_4", context=5000)
    assert late.of("cache") == 5120 * 32 * 8 * 2 * 72
    assert not late.notes


@pytest.mark.parametrize(
    ("context", "before"),
    # generate_step: chunks of 2,048 tokens and a conversion behind each; the first that ends at
    # 5,000 or later ends at 6,144, or with the prompt.
    [(4999, None), (5000, 5120), (5500, 5632), (6144, 6144), (10_000, 6144)],
)
def test_the_raw_cache_comes_first(context: int, before: int | None) -> None:
    memory = plan(LLAMA, "mlx_4", context=context)
    raw = part(memory, "before it is quantized")
    if before is None:
        assert raw == 0
    else:
        assert memory.of("cache") + raw == before * F16


def test_later_the_quantized_cache_is_the_larger_one() -> None:
    # 85 x 256 tokens x 4.5 bits are fewer than 6,144 x 16, 86 x 256 are more.
    assert part(plan(LLAMA, "mlx_4", context=85 * 256), "before it is quantized") > 0
    assert part(plan(LLAMA, "mlx_4", context=85 * 256 + 1), "before it is quantized") == 0


def test_windows() -> None:
    # RotatingKVCache._update_concat: max_size - 1 + 2,048 rows at the end of a chunk; Gemma 3 27B
    # has 52 layers of 16 heads x 256 elements, 10 global ones of the same.
    row = 16 * 256 * 2
    assert plan(GEMMA3, "f16", context=8192).of("cache") == (10 * 8192 + 52 * 3071) * row
    assert plan(GEMMA3, "f16", context=1000).of("cache") == (10 + 52) * 1024 * row
    four = plan(GEMMA3, "f16", context=8192, sequences=4).of("cache")
    assert four == 4 * (10 * 8192 + 52 * 3071) * row


def test_latents_and_states() -> None:
    assert plan(DEEPSEEK_V3, "f16", context=1024).of("cache") == 1024 * 61 * 576 * 2
    memory = plan(QWEN3_NEXT, "f16", context=1024, sequences=2)
    assert memory.of("state") == 2 * 36 * (24576 * 2 + 524288 * 4)
    assert memory.of("cache") == 2 * 1024 * 12 * 2 * 512 * 2


def test_scores_of_a_quantized_cache_are_not_fused() -> None:
    raw, packed = (plan(LLAMA, kv, context=16384) for kv in ("f16", "mlx_4"))
    # 32 heads x 2,048 new tokens x 16,384 cached ones, in 2 and 4 B.
    assert part(packed, "activations") - part(raw, "activations") == 6 * 32 * 2048 * 16384


@pytest.mark.parametrize(
    ("model", "kv", "said"),
    [
        (LLAMA, "q8_0", "no such KV setting"),
        (LLAMA, "mlx_4/mlx_8", "no such KV setting"),
        (GEMMA3, "mlx_4", "RotatingKVCache"),  # to_quantized raises NotImplementedError
        (GEMMA4, "mlx_8", "RotatingKVCache"),
        (DEEPSEEK_V3, "mlx_8", "read raw"),
        (geometry("x", [full(8, 64, sinks=True)]), "mlx_4", "attention sinks"),
        (geometry("x", [full(8, 80)]), "mlx_4", "blocks of 64"),
    ],
)
def test_refusals(model: Geometry, kv: str, said: str) -> None:
    with pytest.raises(NybbleError, match=said) as caught:
        MODEL.check(model, parse(kv))
    assert caught.value.seen
    assert caught.value.allowed


def test_settings_are_accepted() -> None:
    for name in MODEL.settings:
        MODEL.check(LLAMA, parse(name))
    for model in (GEMMA3, GEMMA4, GPT_OSS, DEEPSEEK_V3, QWEN3_NEXT):
        MODEL.check(model, parse("f16"))
