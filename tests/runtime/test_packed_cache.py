"""`nybble.Cache` under everything that transformers' generate does with a cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from packed_runs import packed_model, run, tiny
from tiny_torch import KINDS, build, config_of, text
from transformers import DynamicCache

import nybble
from nybble.errors import NybbleError
from nybble.runtime.attention import attach
from nybble.runtime.cache import Cache, bytes_of

PADDED = torch.tensor([[0, 0, 0, 0, *text(19, 2)], text(23, 3)])
SEEN = (PADDED != 0).long()


def generate(model: Any, cache: Any, **changes: Any) -> Any:
    """Greedy answers of 14 tokens to two prompts, one of them padded."""
    settings = dict(
        attention_mask=SEEN, max_new_tokens=14, do_sample=False, eos_token_id=None,
        pad_token_id=0, return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    return model.generate(PADDED, past_key_values=cache, **settings | changes)


@pytest.fixture
def stock(request: pytest.FixtureRequest) -> Any:
    """The model of a kind, with transformers' own attention."""
    model = tiny(request.param).stock
    model.set_attn_implementation("eager")
    yield model
    attach(model)


@pytest.mark.parametrize("stock", KINDS, indirect=True)
def test_full_precision_gives_what_transformers_gives(stock: Any) -> None:
    expected = generate(stock, DynamicCache(config=stock.config))
    unpacked = generate(stock, Cache(stock.config, kv="f32/f32"))
    assert torch.equal(unpacked.sequences, expected.sequences)
    for a, b in zip(unpacked.logits, expected.logits, strict=True):
        assert torch.equal(a, b)
    fused = generate(attach(stock), Cache(stock.config, kv="f32/f32"))
    assert torch.equal(fused.sequences, expected.sequences)
    for a, b in zip(fused.logits, expected.logits, strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=0)


@pytest.mark.parametrize("stock", KINDS, indirect=True)
def test_fused_attention_reads_what_is_stored(stock: Any) -> None:
    # The same bytes, unpacked for transformers' attention, or read in place by ours.
    unpacked = generate(stock, Cache(stock.config, kv="q5_1/q4_0"), max_new_tokens=6)
    cache = Cache(stock.config, kv="q5_1/q4_0")
    fused = generate(attach(stock), cache, max_new_tokens=6)
    for a, b in zip(unpacked.logits, fused.logits, strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=0)
    assert cache.get_seq_length() == PADDED.shape[1] + 5


@pytest.mark.parametrize("kind", KINDS)
def test_beam_search_reorders(kind: str) -> None:
    model = packed_model(kind)
    beams = dict(num_beams=3, output_logits=False, return_dict_in_generate=False)
    expected = generate(model, DynamicCache(config=model.config), **beams)
    got = generate(model, Cache(model.config, kv="f32/f32"), **beams)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("kind", ["llama", "gemma3", "gemma4", "gpt-oss"])
def test_speculative_decoding_crops(kind: str) -> None:
    model = packed_model(kind)
    prompt = torch.tensor([text(12) * 2])
    plain = dict(max_new_tokens=16, do_sample=False, eos_token_id=None, pad_token_id=0)
    for setting in ("f32/f32", "q8_0/q5_1"):
        expected = model.generate(prompt, past_key_values=Cache(model.config, setting), **plain)
        got = model.generate(
            prompt, past_key_values=Cache(model.config, setting), prompt_lookup_num_tokens=4,
            max_matching_ngram_size=1, **plain,
        )  # fmt: skip
        assert torch.equal(got, expected)


@pytest.mark.parametrize("setting", ["q4_0/q4_0", "q4_0/q4_0+first2+recent5"])
@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_a_crop_leaves_no_trace(kind: str, setting: str) -> None:
    model, tokens = packed_model(kind), text(40)
    cache = Cache(model.config, setting)
    run(model, tokens[:20], cache, [20])
    cache.activate_past_recording()
    run(model, text(9, 7), cache, [9])
    cache.crop(-9)
    assert cache.get_seq_length() == 20
    got = run(model, tokens[20:], cache, [1] * 20)
    again = Cache(model.config, setting)
    run(model, tokens[:20], again, [20])
    expected = run(model, tokens[20:], again, [1] * 20)
    if "recent" in setting:  # what the cropped tokens pushed out of the window stays quantized
        assert (got[6:] - expected[6:]).norm() < 0.2 * expected[6:].norm()
    else:
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_a_crop_that_cannot_be_undone_is_refused() -> None:
    model = packed_model("gemma3")
    cache = Cache(model.config, "q8_0/q8_0")
    run(model, text(110), cache, [100] + [1] * 10)
    with pytest.raises(NybbleError, match="slides"):
        cache.crop(-9)
    with pytest.raises(NybbleError, match="negative"):
        cache.crop(5)


@pytest.mark.parametrize("kind", ["llama", "gemma3", "gemma4"])
def test_forks_share_pages_and_go_their_own_way(kind: str) -> None:
    model, prompt = packed_model(kind), text(150)
    cache = Cache(model.config, "q8_0/q4_0+first3")
    run(model, prompt, cache, [150])
    alone = cache.bytes_stored()
    forks = cache.fork(3)
    assert bytes_of([cache, *forks]) == alone
    ends = [text(5, seed) for seed in (11, 12, 13)]
    got = [run(model, end, fork, [2, 3]) for fork, end in zip(forks, ends, strict=True)]
    for end, states in zip(ends, got, strict=True):
        fresh = Cache(model.config, "q8_0/q4_0+first3")
        expected = run(model, prompt + end, fresh, [150, 2, 3])[150:]
        torch.testing.assert_close(states, expected, atol=1e-4, rtol=1e-4)
    assert cache.get_seq_length() == 150
    # Each wrote to one page of each side, and shares the others.
    assert bytes_of([cache, *forks]) < 3 * alone


def test_one_prefix_becomes_a_batch_without_a_copy() -> None:
    model, prompt = packed_model("llama"), text(130)
    cache = Cache(model.config, "q8_0/q8_0")
    run(model, prompt, cache, [130])
    alone = cache.bytes_stored()
    cache.batch_repeat_interleave(4)
    assert cache.bytes_stored() == alone
    ends = torch.tensor([text(3, seed) for seed in range(4)])
    with torch.inference_mode():
        got = model.model(input_ids=ends, past_key_values=cache).last_hidden_state
    for row, end in zip(got, ends.tolist(), strict=True):
        expected = run(model, prompt + end, Cache(model.config, "q8_0/q8_0"), [130, 3])[130:]
        torch.testing.assert_close(row, expected, atol=1e-4, rtol=1e-4)


def test_bytes_are_those_of_the_allocations() -> None:
    model = packed_model("llama")
    cache = Cache(model.config, "q4_0/q8_0")
    run(model, text(65), cache, [65])
    # 2 layers x 2 heads x 2 pages of 64 tokens x 64 channels, 18 and 34 bytes a block of 32.
    assert cache.bytes_stored() == 2 * 2 * 2 * 64 * (2 * 18 + 2 * 34)
    assert cache.bytes_per_token() == 2 * 2 * (2 * 18 + 2 * 34)
    run(model, text(63), cache, [63])
    assert cache.bytes_stored() == 2 * 2 * 2 * 64 * (2 * 18 + 2 * 34)


def test_a_sliding_layer_holds_a_window_and_a_page() -> None:
    model = packed_model("mistral")  # all layers slide
    cache = Cache(model.config, "q8_0/q8_0")
    run(model, text(400), cache, [1] * 400)
    assert cache.bytes_stored() <= 2 * 2 * 2 * 2 * 64 * 68 * 2


def test_a_full_cache_says_so() -> None:
    model = packed_model("gemma3")
    cache = Cache(model.config, "q8_0/q8_0", max_length=32)
    run(model, text(30), cache, [30])
    before = cache.bytes_stored()
    run(model, text(2), cache, [2])
    assert cache.bytes_stored() == before  # allocated from the start
    with pytest.raises(NybbleError, match="full"):
        run(model, text(1), cache, [1])


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_is_no_number_is_refused_by_layer(number: float) -> None:
    model = packed_model("llama")
    cache = Cache(model.config, "q8_0/q8_0")
    keys = torch.randn(1, 2, 3, 64)
    cache.update(keys, keys, 0)
    keys[0, 1, 2, 5] = number
    with pytest.raises(NybbleError, match="in the values of layer 1"):
        cache.update(keys.nan_to_num(0, 0, 0), keys, 1)
    assert cache.layers[1].length == 0


def test_two_models_do_not_share_a_cache() -> None:
    first, second = packed_model("llama"), attach(build(config_of("llama"), seed=5).stock)
    cache = Cache(first.config, "q8_0/q8_0")
    run(first, text(5), cache, [5])
    with pytest.raises(NybbleError, match="two models"):
        run(second, text(5), cache, [5])
    with pytest.raises(NybbleError, match="another model"):
        run(packed_model("qwen3"), text(5), Cache(first.config, "q8_0/q8_0"), [5])
        cache.update(torch.zeros(1, 1, 1, 64), torch.zeros(1, 1, 1, 64), 0)


def test_settings_that_no_cache_can_hold_are_refused() -> None:
    config = config_of("llama")
    for setting in ("kivi_k4/kivi_v4", "quanto_4/quanto_4"):
        with pytest.raises(NybbleError):
            run(packed_model("llama"), text(4), Cache(config, setting), [4])
    with pytest.raises(NybbleError, match="calibration"):
        Cache(config)
    with pytest.raises(NybbleError, match="unknown KV type"):
        Cache(config, "q4_9/q4_0")
    with pytest.raises(NybbleError, match="max_length"):
        Cache(config, "q4_0/q4_0", max_length=0)


def test_a_handle_refuses_to_be_computed_with() -> None:
    model = packed_model("llama")
    cache = Cache(model.config, "q8_0/q8_0")
    keys, _ = cache.update(torch.randn(1, 2, 3, 64), torch.randn(1, 2, 3, 64), 0)
    assert keys.shape == (1, 2, 3, 64) and keys.dtype == torch.float32
    with pytest.raises(NybbleError, match="before attention"):
        keys + 1


def test_the_public_names() -> None:
    assert nybble.Cache is Cache and nybble.attach is attach
