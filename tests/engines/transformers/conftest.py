"""Tiny random models of every kind of attention the hook meets, each built once.

Weights are drawn large, so attention is far from flat and a wrong key shows in the output.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from nybble.engines.transformers.model import TorchModel

WINDOW = 8
KINDS = (
    "gemma3", "gemma4", "gemma4-shared", "gemma2", "llama", "mistral", "qwen3", "gpt-oss",
)  # fmt: skip
_SLIDING, _FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True)
class Tiny:
    """One model twice, with the same weights.

    Attributes:
        stock: as transformers makes it, with its own eager attention.
        ours: with nybble's attention.
    """

    stock: Any
    ours: TorchModel


def config_of(kind: str, **changes: Any) -> Any:
    """Config of a kind; `changes` on top."""
    import transformers as hf

    common: dict[str, Any] = dict(
        vocab_size=128, hidden_size=64, intermediate_size=96, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=512, num_hidden_layers=2,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=True,
    )  # fmt: skip
    gemma4 = dict(
        num_hidden_layers=6, layer_types=[_SLIDING, _SLIDING, _FULL] * 2, sliding_window=WINDOW,
        global_head_dim=64, final_logit_softcapping=2.0, vocab_size_per_layer_input=128,
    )  # fmt: skip
    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "gemma3": (hf.Gemma3TextConfig, dict(
            num_hidden_layers=3, layer_types=[_SLIDING, _FULL, _SLIDING], sliding_window=WINDOW,
            query_pre_attn_scalar=32)),
        "gemma4": (hf.Gemma4TextConfig, gemma4 | dict(
            attention_k_eq_v=True, num_global_key_value_heads=1, hidden_size_per_layer_input=0)),
        "gemma4-shared": (hf.Gemma4TextConfig, gemma4 | dict(
            num_kv_shared_layers=3, hidden_size_per_layer_input=16, use_double_wide_mlp=True)),
        "gemma2": (hf.Gemma2Config, dict(
            sliding_window=WINDOW, query_pre_attn_scalar=32, attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0)),
        "llama": (hf.LlamaConfig, dict(head_dim=64)),
        "mistral": (hf.MistralConfig, dict(sliding_window=WINDOW, tie_word_embeddings=False)),
        "qwen3": (hf.Qwen3Config, dict(head_dim=64)),
        "gpt-oss": (hf.GptOssConfig, dict(
            sliding_window=WINDOW, layer_types=[_SLIDING, _FULL], num_local_experts=4,
            num_experts_per_tok=2, max_position_embeddings=131072, tie_word_embeddings=False)),
    }  # fmt: skip
    make, own = kinds[kind]
    return make(**common | own | changes)


def randomize(model: Any, seed: int = 0) -> Any:
    """Draw every weight anew: matrices that keep a vector's length, norms and sinks apart."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.dim() < 2:
                p.copy_(1 + noise / 4 if "norm" in name else noise / 2)
            elif "embed" in name:
                p.copy_(noise)
            else:
                p.copy_(noise * p.shape[-1] ** -0.5)
    return model.eval()


def make_tiny(config: Any, *, dtype: str = "float32", seed: int = 0) -> Tiny:
    """A model of a config, twice."""
    import torch
    import transformers as hf

    from nybble.engines.transformers.model import NAME, TorchModel

    with torch.random.fork_rng():
        stock = hf.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    stock = randomize(stock, seed).to(getattr(torch, dtype))
    ours = copy.deepcopy(stock)
    ours.set_attn_implementation(NAME)
    return Tiny(stock, TorchModel(ours))


@pytest.fixture(scope="session")
def tiny() -> Callable[[str], Tiny]:
    """The tiny model of a kind in float32, built once."""
    made: dict[str, Tiny] = {}

    def get(kind: str) -> Tiny:
        if kind not in made:
            made[kind] = make_tiny(config_of(kind))
        return made[kind]

    return get


@pytest.fixture(scope="session")
def make() -> Callable[..., Tiny]:
    """`make_tiny(config_of(kind, **changes), dtype)`."""

    def build(kind: str, dtype: str = "float32", **changes: Any) -> Tiny:
        return make_tiny(config_of(kind, **changes), dtype=dtype)

    return build
