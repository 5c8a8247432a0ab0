"""Layers that keep values alone: exactness, bytes, padding, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from packed_runs import packed_model, run, tiny
from test_packed_cache import PADDED, generate
from tiny_torch import WINDOW, randomize, text
from transformers import DynamicCache

from nybble.errors import NybbleError
from nybble.runtime.attention import attach
from nybble.runtime.cache import Cache


def real_layers(dtype: torch.dtype) -> Any:
    """Gemma 4 31B's global layers: 32 heads, 4 KV heads of 512, 128 rotated; two layers."""
    config = hf.Gemma4TextConfig(
        vocab_size=128, hidden_size=256, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=32, num_key_value_heads=16, num_global_key_value_heads=4, head_dim=256,
        global_head_dim=512, attention_k_eq_v=True, num_kv_shared_layers=0, sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"], max_position_embeddings=262144,
        hidden_size_per_layer_input=0, vocab_size_per_layer_input=128, pad_token_id=0,
        rope_parameters={
            "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25,
                               "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}},
    )  # fmt: skip
    model = hf.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    return randomize(model).to(dtype)


@pytest.mark.parametrize(
    ("dtype", "setting", "rounding"),
    [(torch.float32, "f32/f32", 2e-6), (torch.float32, "f16/f16", 1e-3),
     (torch.bfloat16, "bf16/bf16", 3e-2)],
)  # fmt: skip
def test_real_shapes_lose_nothing_but_rounding(
    dtype: torch.dtype, setting: str, rounding: float
) -> None:
    model, tokens = real_layers(dtype), text(150)
    expected = run(model, tokens, DynamicCache(config=model.config), [140, *[1] * 10]).float()
    cache = Cache(attach(model), setting, latent=True)
    got = run(model, tokens, cache, [140, *[1] * 10]).float()
    assert (got - expected).norm() < rounding * expected.norm()
    assert str(cache.setting) == f"{setting}+latent"


def test_padding_is_found_and_generation_is_unchanged() -> None:
    model = tiny("gemma4").stock
    model.set_attn_implementation("eager")
    expected = generate(model, DynamicCache(config=model.config))
    for unpacked in (True, False):
        model.set_attn_implementation("eager") if unpacked else attach(model)
        cache = Cache(model, "f32/f32", latent=True)
        got = generate(model, cache)
        assert torch.equal(got.sequences, expected.sequences)
        for a, b in zip(got.logits, expected.logits, strict=True):
            torch.testing.assert_close(a, b, atol=2e-3, rtol=0)
        shifts = [x.body.latent.shift.tolist() for x in cache.packed if x.body.latent]
        assert shifts == [[4, 0]] * 2, PADDED


def test_bytes_of_the_31b() -> None:
    # 10 global layers x 4 KV heads x 512 values (reference/gemma4.md 1.3).
    for setting, apart, latent in (("q8_0/q8_0", 43_520, 21_760), ("q4_0/q4_0", 23_040, 11_520)):
        for wanted, expected in ((False, apart), (True, latent)):
            model = real_layers(torch.float32)
            cache = Cache(attach(model), setting, latent=wanted)
            run(model, text(64), cache, [64])
            assert 10 * cache.bytes_per_token() == expected


def test_beams_forks_and_crops_keep_their_positions() -> None:
    model = packed_model("gemma4")
    beams = dict(num_beams=3, output_logits=False, return_dict_in_generate=False)
    expected = generate(model, Cache(model, "f32/f32"), **beams)
    got = generate(model, Cache(model, "f32/f32", latent=True), **beams)
    assert torch.equal(got, expected)
    cache = Cache(model, "f32/f32", latent=True)
    tokens = text(40)
    run(model, tokens[:30], cache, [30])
    (fork,) = cache.fork()
    fork.activate_past_recording()
    run(model, text(5, 9), fork, [5])
    fork.crop(-5)
    a = run(model, tokens[30:], fork, [10])
    b = run(model, tokens[30:], cache, [10])
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_keys_that_do_not_follow_are_refused() -> None:
    model = packed_model("gemma4")
    cache = Cache(model, "f32/f32", latent=True)
    index = next(x.plan.index for x in cache.packed if x.plan.latent is not None)
    values = torch.randn(1, 1, 3, 64)
    with pytest.raises(NybbleError, match=f"the keys of layer {index} are not"):
        cache.update(torch.randn(1, 1, 3, 64), values, index)
    # Positions that jump are no left padding.
    ids, places = torch.tensor([text(6)]), torch.tensor([[0, 1, 2, 9, 10, 11]])
    with pytest.raises(NybbleError, match="are not what its values make"), torch.no_grad():
        model.model(input_ids=ids, position_ids=places, past_key_values=cache)


def test_models_without_such_layers_are_refused() -> None:
    with pytest.raises(NybbleError, match="no layers whose keys follow"):
        Cache(packed_model("llama"), "q4_0/q4_0", latent=True)
    with pytest.raises(NybbleError, match="key norm"):
        Cache(packed_model("gemma4").config, "q4_0/q4_0+latent")
