"""ExLlamaV2's and V3's allocation, worked by hand from exllamav2 0.3.2 and exllamav3 1.6.5."""

from __future__ import annotations

from typing import Any

import pytest
from plan_shapes import (
    DEEPSEEK_V3,
    GEMMA3,
    GEMMA4,
    GEMMA4_E4B,
    GPT_OSS,
    LLAMA,
    QWEN3_NEXT,
    full,
    geometry,
)

from nybble.errors import NybbleError
from nybble.formats.setting import parse
from nybble.models.geometry import Geometry
from nybble.planning.memory.base import Load, Memory, MemoryModel
from nybble.planning.memory.exllamav2 import ExLlamaV2
from nybble.planning.memory.exllamav3 import ExLlamaV3

V2, V3 = ExLlamaV2(), ExLlamaV3()
F16 = 32 * 8 * 2 * 128 * 2  # B a token of Llama 3.1 8B


def plan(engine: MemoryModel, model: Geometry, kv: str, **load: Any) -> Memory:
    chosen = parse(kv)
    engine.check(model, chosen)
    return engine.memory(model, chosen, Load(**load))


def part(memory: Memory, name: str) -> int:
    return sum(p.n_bytes for p in memory.parts if name in p.name)


@pytest.mark.parametrize(
    ("kv", "k", "v"),
    # exllamav2 cache.py, shape_wk, shape_wv and shape_s: head_dim / weights a byte, and an FP16
    # scale for 32 elements. Q6 has 8 bits for K and 4 for V (ExLlamaV2Cache_Q6).
    [("f16", 256, 256), ("exl2_q8", 136, 136), ("exl2_q6", 136, 72), ("exl2_q4", 72, 72)],
)
def test_v2_rows(kv: str, k: int, v: int) -> None:
    assert plan(V2, LLAMA, kv, context=4096).of("cache") == 4096 * 32 * 8 * (k + v)
    # batch_size x max_seq_len: sequences do not share.
    assert plan(V2, LLAMA, kv, context=999, sequences=5).of("cache") == 4995 * 32 * 8 * (k + v)


def test_v2_lengths_are_allocated_as_asked() -> None:
    # 1 KV head of 64: ExLlamaV2Cache_Q rounds max_seq_len to 8 tokens (512 / 64), after the
    # shapes are made; what is allocated is not rounded.
    odd = geometry("x", [full(1, 64)] * 2)
    assert plan(V2, odd, "exl2_q4", context=1001).of("cache") == 1001 * 2 * 2 * 36


def test_v2_keeps_a_raw_layer_beside_a_quantized_cache() -> None:
    # ExLlamaV2Cache_Q.touch_device: K and V of shape_basic in FP16, on each device.
    memory = plan(V2, LLAMA, "exl2_q4", context=4096, sequences=2, cards=3)
    assert part(memory, "one layer") == 3 * 2 * 4096 * 2 * 1024 * 2
    assert part(plan(V2, LLAMA, "f16", context=4096), "one layer") == 0


def test_v2_sliding_layers_are_whole() -> None:
    memory = plan(V2, GEMMA3, "f16", context=4096)
    assert memory.of("cache") == 4096 * 62 * 16 * 256 * 2
    assert any("as much as global" in note for note in memory.notes)


@pytest.mark.parametrize(
    ("kv", "k", "v"),
    # exllamav3 cache/quant.py, storage_size: token_dim / 32 x bits words of 4 B, and as many FP16
    # scales: 4 x (4 x bits + 2) B of 128 elements.
    [("f16", 256, 256), ("exl3_8", 136, 136), ("exl3_6", 104, 104), ("exl3_5/exl3_4", 88, 72),
     ("exl3_4", 72, 72), ("exl3_3", 56, 56), ("exl3_2", 40, 40)],
)  # fmt: skip
def test_v3_rows(kv: str, k: int, v: int) -> None:
    assert plan(V3, LLAMA, kv, context=4096).of("cache") == 4096 * 32 * 8 * (k + v)


def test_v3_pages_belong_to_one_sequence() -> None:
    # constants.PAGE_SIZE 256; generator/job.py allocates whole pages for each sequence.
    assert plan(V3, LLAMA, "f16", context=300).of("cache") == 512 * F16
    assert plan(V3, LLAMA, "f16", context=300, sequences=10).of("cache") == 10 * 512 * F16


def test_v3_rings() -> None:
    # modules/sliding_attn.py, kv_state_size: window + 512 up to whole pages, where the window is
    # one fewer than the config's (architecture/gemma3.py): 1,023 + 512 gives 1,536 rows.
    row = 16 * 256 * 2
    assert plan(V3, GEMMA3, "f16", context=8192).of("cache") == (10 * 8192 + 52 * 1536) * row
    # A ring for each sequence (SWALayerState, max_batch_size), f16 whatever the types.
    memory = plan(V3, GEMMA3, "exl3_4", context=8192, sequences=3)
    assert memory.of("cache") == 3 * (10 * 8192 * 16 * 2 * 72 + 52 * 1536 * row)
    assert any("keep f16 rings" in note for note in memory.notes)
    # gpt-oss: 127 + 512 up to 768.
    assert part(plan(V3, GPT_OSS, "f16", context=8192), "sliding") == 12 * 768 * 8 * 128 * 2


def test_v3_latents() -> None:
    # cache/mla.py, storage_size: 512 / 32 x bits words and FP16 scales, the RoPE key in FP16.
    assert plan(V3, DEEPSEEK_V3, "f16", context=1024).of("cache") == 1024 * 61 * 576 * 2
    packed = plan(V3, DEEPSEEK_V3, "exl3_4", context=1024).of("cache")
    assert packed == 1024 * 61 * (16 * (4 * 4 + 2) + 64 * 2)


def test_v3_states() -> None:
    # modules/gated_delta_net.py, GDNLayerState: two FP16 rows a slot, a bfloat16 ring.
    memory = plan(V3, QWEN3_NEXT, "f16", context=1024, sequences=2)
    assert memory.of("state") == 2 * 36 * (24576 * 2 + 524288 * 2 * 2)
    assert next(p for p in memory.parts if p.use == "state").estimated


def test_v3_staging() -> None:
    # attention_fn/triton_paged.py, EXL3_QC_STAGING_PAGES: 256 pages of one layer in FP16.
    memory = plan(V3, LLAMA, "exl3_4", context=131072)
    assert part(memory, "staging") == 65536 * 2048 * 2
    assert part(plan(V3, LLAMA, "exl3_4", context=1000), "staging") == 1024 * 2048 * 2
    assert part(plan(V3, LLAMA, "f16", context=131072), "staging") == 0


@pytest.mark.parametrize(
    ("engine", "model", "kv", "said"),
    [
        (V2, LLAMA, "q8_0", "no such KV setting"),
        (V2, LLAMA, "exl2_q4/exl2_q8", "no such KV setting"),
        (V2, DEEPSEEK_V3, "f16", "latent layers"),
        (V2, QWEN3_NEXT, "f16", "recurrent layers"),
        (V2, GEMMA4_E4B, "f16", "shared layers"),
        (V3, LLAMA, "exl3_4/f16", "no such KV setting"),
        (V3, LLAMA, "exl2_q4", "no such KV setting"),
        (V3, geometry("x", [full(8, 80)]), "exl3_4", "blocks of 32"),
    ],
)
def test_refusals(engine: MemoryModel, model: Geometry, kv: str, said: str) -> None:
    with pytest.raises(NybbleError) as caught:
        engine.check(model, parse(kv))
    assert said in str(caught.value)
    assert caught.value.seen
    assert caught.value.allowed


def test_settings_are_accepted() -> None:
    for engine in (V2, V3):
        for name in engine.settings:
            engine.check(LLAMA, parse(name))
    V3.check(GEMMA4, parse("exl3_7/exl3_2"))
