"""What a step reads and computes, worked by hand for models whose shapes are published."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_shapes import DEEPSEEK_V3, GEMMA4, GEMMA4_E4B, LLAMA, QWEN3_NEXT, full, geometry, sliding

from nybble.errors import NybbleError
from nybble.formats.setting import parse
from nybble.models.geometry import Geometry, Weights
from nybble.planning.roofline import (
    Experts,
    attention_flops,
    cache_bytes,
    decode_work,
    prefill_work,
    token_bytes,
    weight_bytes,
    weights_of,
)

F16, Q8, Q4 = parse("f16"), parse("q8_0"), parse("q4_0")
# Llama 3.1 8B: 8,030,261,248 parameters, of which 128,256 x 4,096 embed the input and are looked
# up, not multiplied.
EMBEDDED = 128256 * 4096
ACTIVE = 8_030_261_248 - EMBEDDED
LLAMA_8B = replace(
    LLAMA, weights=Weights(2 * 8_030_261_248, 8_030_261_248, 2 * ACTIVE, ACTIVE, "published")
)


@pytest.mark.parametrize(
    ("setting", "context", "n_bytes"),
    [
        # 32 layers x 8 heads x 2 sides x 128 x 2 B = 131,072 B a token.
        ("f16", 1, 131072),
        ("f16", 8192, 2**30),
        ("f16", 131072, 16 * 2**30),
        # 34 B and 18 B for 32 elements: 136 and 72 B a head and side.
        ("q8_0", 8192, 8192 * 32 * 8 * 2 * 136),
        ("q4_0", 131072, 131072 * 32 * 8 * 2 * 72),
        ("q8_0/q4_0", 1000, 1000 * 32 * 8 * (136 + 72)),
        # The first and the last layer in 16 bits.
        ("q4_0/q4_0+skip0.-1", 1000, 1000 * 8 * 2 * (30 * 72 + 2 * 256)),
        # One KV head of layer 3 in 8 bits.
        ("q4_0/q4_0+at3h5:q8_0/q8_0", 1000, 1000 * 2 * ((32 * 8 - 1) * 72 + 136)),
        ("f16", 0, 0),
    ],
)
def test_llama_reads(setting: str, context: int, n_bytes: int) -> None:
    assert cache_bytes(LLAMA, parse(setting), context) == n_bytes


@pytest.mark.parametrize(
    ("context", "n_bytes"),
    [
        # 50 sliding layers x 16 heads x 2 x 256 x 2 B, 10 global ones x 4 heads x 2 x 512 x 2 B.
        (500, 500 * (50 * 16384 + 10 * 8192)),
        (1024, 1024 * (50 * 16384 + 10 * 8192)),
        (32768, 1024 * 50 * 16384 + 32768 * 10 * 8192),
        (262144, 1024 * 50 * 16384 + 262144 * 10 * 8192),
    ],
)
def test_gemma4_reads(context: int, n_bytes: int) -> None:
    assert cache_bytes(GEMMA4, F16, context) == n_bytes


def test_a_shared_layer_reads_its_source_again() -> None:
    # E4B: 35 sliding layers of 2 heads x 256 and 7 global ones of 2 x 512; 24 of them have caches
    # of their own, all 42 read one.
    expected = 512 * 35 * 2 * 512 * 2 + 4000 * 7 * 2 * 1024 * 2
    assert cache_bytes(GEMMA4_E4B, F16, 4000) == expected
    # A setting counts layers: +skip22 keeps the source in 16 bits, and what reads it.
    sources = [x.source for x in GEMMA4_E4B.layers]
    assert sources.count(22) == 15
    skipped = cache_bytes(GEMMA4_E4B, parse("q4_0/q4_0+skip22"), 4000)
    assert skipped - cache_bytes(GEMMA4_E4B, Q4, 4000) == 16 * 512 * 2 * 2 * (512 - 144)


def test_latents_and_states() -> None:
    # DeepSeek V3: (512 + 64) x 2 B a token and layer, read once for keys and values.
    assert cache_bytes(DEEPSEEK_V3, F16, 4096) == 4096 * 61 * 576 * 2
    # Qwen3-Next: 12 layers of 2 heads x 256; 36 states of 24,576 + 524,288 elements, FP32, read
    # and written.
    states = 36 * (24576 + 524288) * 4 * 2
    assert cache_bytes(QWEN3_NEXT, F16, 0) == states
    assert cache_bytes(QWEN3_NEXT, F16, 1000) == states + 1000 * 12 * 2 * 2 * 256 * 2
    assert token_bytes(QWEN3_NEXT, Q8, 0) == 0


def test_attention_by_hand() -> None:
    # Llama: 2 x 32 heads x (128 + 128) for each pair; a new token sees 8,192 others and itself.
    assert attention_flops(LLAMA, 1, 8192) == 32 * 16384 * 8193
    assert attention_flops(LLAMA, 512, 0) == 32 * 16384 * (512 * 513 / 2)
    # Gemma 4: 32 heads in both kinds; a sliding layer sees 1,024 with the token itself.
    at_32k = 50 * 2 * 32 * 512 * 1024 + 10 * 2 * 32 * 1024 * 32769
    assert attention_flops(GEMMA4, 1, 32768) == at_32k
    # DeepSeek: 128 heads, keys of 576 and values of 512 in the latent.
    assert attention_flops(DEEPSEEK_V3, 1, 99) == 61 * 2 * 128 * (576 + 512) * 100
    # 6 operations for each of 524,288 elements of 36 states.
    assert attention_flops(QWEN3_NEXT, 1, 0) == 36 * 6 * 524288 + 12 * 2 * 32 * 512


def test_a_shared_layer_attends_with_its_own_queries() -> None:
    # 8 heads in the 18 shared layers, 32 in the others of this shape (plan_shapes.py).
    sliding_pairs, global_pairs = 512, 4001
    own = 2 * 32 * (20 * 512 * sliding_pairs + 4 * 1024 * global_pairs)
    shared = 2 * 8 * (15 * 512 * sliding_pairs + 3 * 1024 * global_pairs)
    assert attention_flops(GEMMA4_E4B, 1, 4000) == own + shared


@given(st.integers(1, 40), st.integers(0, 60), st.integers(1, 30))
def test_pairs_equal_a_count(tokens: int, depth: int, window: int) -> None:
    model = geometry("x", [sliding(2, 8, window), full(2, 8)])
    seen = [min(depth + i + 1, window) + depth + i + 1 for i in range(tokens)]
    assert attention_flops(model, tokens, depth) == 2 * 32 * 16 * sum(seen)


def test_decode_step() -> None:
    work = decode_work(LLAMA_8B, F16, 8192, 4)
    assert work.weights == 2 * ACTIVE  # once for all four
    assert work.cache == 4 * 2**30
    assert work.linear == 4 * 2 * ACTIVE
    assert work.attention == 4 * 32 * 16384 * 8193


def test_prefill() -> None:
    # 1,000 tokens are 4 batches of up to 256; the output matrix is applied to the last token.
    work = prefill_work(LLAMA_8B, Q8, 1000, 24, 256)
    assert work.weights == 4 * 2 * ACTIVE
    assert work.linear == 2 * ((ACTIVE - EMBEDDED) * 1000 + EMBEDDED)
    assert work.attention == 32 * 16384 * (1000 * 24 + 1000 * 1001 / 2)
    # Caches of 24, 274, 524 and 774 tokens are read, 399 in the mean.
    assert work.cache == 4 * 399 * 32 * 8 * 2 * 136
    # In one batch nothing but what was there before is read.
    assert prefill_work(LLAMA_8B, Q8, 1000, 24, 1000).cache == 24 * 32 * 8 * 2 * 136


# A layer of 4 experts of 1,000 B, of which a token passes one, and 500 B that all tokens pass.
MIXTURE = replace(LLAMA, weights=Weights(4700, 4700, 1500, 1500, "published"))


def test_experts_by_hand() -> None:
    known = Experts(4, 1, 4000)
    assert weight_bytes(MIXTURE, 1, known) == 1500
    # Two tokens leave an expert out with (3/4)^2: 500 + 4,000 x 7/16.
    assert weight_bytes(MIXTURE, 2, known) == pytest.approx(2250)
    assert weight_bytes(MIXTURE, 1e6, known) == pytest.approx(4500)
    # 16 tokens that count as 16^0.5 = 4.
    assert weight_bytes(MIXTURE, 16, known, 0.5) == weight_bytes(MIXTURE, 4, known)
    # What one token leaves unread, the 200 B of embedding included, is taken for the experts'.
    assert weight_bytes(MIXTURE, 1e6, Experts(4, 1)) == pytest.approx(4700)
    assert weight_bytes(MIXTURE, 64) == 1500
    assert weight_bytes(MIXTURE, 9, Experts(4, 4, 4000)) == 1500


@given(st.integers(1, 64), st.integers(1, 64), st.floats(0.5, 1), st.integers(1, 500))
def test_experts_read(chosen: int, more: int, power: float, tokens: int) -> None:
    experts = Experts(chosen + more, chosen, 3000)
    one, many, next_ = (weight_bytes(MIXTURE, n, experts, power) for n in (1, tokens, tokens + 1))
    assert 1500 == one <= many <= next_ <= 1500 + 3000 * more / (chosen + more) + 1e-6
    assert weight_bytes(MIXTURE, tokens, experts, power) <= weight_bytes(MIXTURE, tokens, experts)


@pytest.mark.parametrize(("total", "chosen"), [(4, 0), (4, 5), (0, 0), (4, -1)])
def test_wrong_experts_are_refused(total: int, chosen: int) -> None:
    with pytest.raises(NybbleError, match="at most all experts"):
        Experts(total, chosen)


def test_speed_needs_weights() -> None:
    for call in (
        lambda g: decode_work(g, F16, 10),
        lambda g: prefill_work(g, F16, 10, 0, 512),
        weights_of,
    ):
        with pytest.raises(NybbleError, match="size of the weights") as caught:
            call(GEMMA4)
        assert caught.value.seen == GEMMA4.name


@pytest.mark.parametrize(("context", "sequences"), [(-1, 1), (10, 0), (10, -2)])
def test_wrong_counts_are_refused(context: int, sequences: int) -> None:
    with pytest.raises(NybbleError):
        decode_work(LLAMA_8B, F16, context, sequences)


@pytest.mark.parametrize(("tokens", "depth", "batch"), [(0, 0, 1), (1, -1, 1), (1, 0, 0)])
def test_wrong_prompts_are_refused(tokens: int, depth: int, batch: int) -> None:
    with pytest.raises(NybbleError):
        prefill_work(LLAMA_8B, F16, tokens, depth, batch)


def test_more_of_anything_reads_no_less() -> None:
    def read(model: Geometry, setting: str, context: int) -> float:
        return cache_bytes(model, parse(setting), context)

    for model in (LLAMA, GEMMA4, GEMMA4_E4B, DEEPSEEK_V3, QWEN3_NEXT):
        by_context = [read(model, "f16", n) for n in (0, 1, 1023, 1024, 1025, 100_000)]
        assert by_context == sorted(by_context)
        by_bits = [read(model, s, 5000) for s in ("q4_0", "q8_0/q4_0", "q8_0", "f16")]
        assert by_bits == sorted(by_bits)
        assert by_bits[0] < by_bits[-1]
