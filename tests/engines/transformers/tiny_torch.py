"""Tiny random models of every kind of attention the hook meets, each built once a session.

Weights are drawn large, so attention is far from flat and a wrong key shows in the output.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf

from nybble.engines.transformers.attention import NAME, Lanes
from nybble.engines.transformers.model import TorchModel
from nybble.formats.codec import layer_stores
from nybble.formats.setting import parse

WINDOW = 8
KINDS = (
    "gemma3", "gemma4", "gemma4-shared", "gemma2", "llama", "mistral", "qwen3", "gpt-oss",
)  # fmt: skip
_SLIDING, _FULL = "sliding_attention", "full_attention"

_COMMON: dict[str, Any] = dict(
    vocab_size=128, hidden_size=64, intermediate_size=96, num_attention_heads=4,
    num_key_value_heads=2, head_dim=32, max_position_embeddings=512, num_hidden_layers=2,
    pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=True,
)  # fmt: skip
_GEMMA4 = dict(
    num_hidden_layers=6, layer_types=[_SLIDING, _SLIDING, _FULL] * 2, sliding_window=WINDOW,
    global_head_dim=64, final_logit_softcapping=2.0, vocab_size_per_layer_input=128,
)  # fmt: skip
_KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "gemma3": (hf.Gemma3TextConfig, dict(
        num_hidden_layers=3, layer_types=[_SLIDING, _FULL, _SLIDING], sliding_window=WINDOW,
        query_pre_attn_scalar=32)),
    "gemma4": (hf.Gemma4TextConfig, _GEMMA4 | dict(
        attention_k_eq_v=True, num_global_key_value_heads=1, hidden_size_per_layer_input=0)),
    "gemma4-shared": (hf.Gemma4TextConfig, _GEMMA4 | dict(
        num_kv_shared_layers=3, hidden_size_per_layer_input=16, use_double_wide_mlp=True)),
    "gemma2": (hf.Gemma2Config, dict(
        sliding_window=WINDOW, query_pre_attn_scalar=32, attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0)),
    "llama": (hf.LlamaConfig, dict(head_dim=64)),
    "mistral": (hf.MistralConfig, dict(
        head_dim=64, sliding_window=WINDOW, tie_word_embeddings=False)),
    "qwen3": (hf.Qwen3Config, dict(head_dim=64)),
    "gpt-oss": (hf.GptOssConfig, dict(
        sliding_window=WINDOW, layer_types=[_SLIDING, _FULL], num_local_experts=4,
        num_experts_per_tok=2, max_position_embeddings=131072, tie_word_embeddings=False)),
}  # fmt: skip


@dataclass(frozen=True)
class Tiny:
    """One model twice, with the same weights.

    Attributes:
        stock: as transformers makes it, with its own eager attention.
        ours: with nybble's attention.
        whole: the model inside `ours`.
    """

    stock: Any
    ours: TorchModel
    whole: Any

    @torch.inference_mode()
    def stock_hidden(self, tokens: Sequence[int]) -> torch.Tensor:
        """Last hidden states by transformers alone."""
        base = self.stock.base_model
        base = self.stock.model if base is self.stock else base  # Llama 4
        out: torch.Tensor = base(
            input_ids=torch.tensor([tokens]), use_cache=False
        ).last_hidden_state[0]
        return out

    @torch.inference_mode()
    def stock_logits(self, tokens: Sequence[int]) -> torch.Tensor:
        """Logits by transformers alone."""
        out: torch.Tensor = self.stock(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
        return out

    def lanes(self, *settings: str | None) -> Lanes:
        """Lanes of settings; None for one left as it is."""
        return Lanes([self.stores(s) if s else None for s in settings])

    def stores(self, setting: str) -> list[Any]:
        """K and V stores of every layer that owns keys."""
        return [layer_stores(parse(setting), layer) for layer in self.ours.layers]

    def hidden(self, tokens: Sequence[int], *settings: str | None) -> torch.Tensor:
        """Last hidden states under settings, one lane each."""
        return self.ours.hidden(tokens, self.lanes(*settings))


def config_of(kind: str, **changes: Any) -> Any:
    """Config of a kind, with `changes` on top."""
    make, own = _KINDS[kind]
    return make(**_COMMON | own | changes)


def randomize(model: Any, seed: int = 0) -> Any:
    """Draw every weight anew: matrices that keep a vector's length, and norms near one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.dim() < 2:
                p.copy_(1 + noise / 4 if "norm" in name else noise / 2)
            else:
                p.copy_(noise * (0.25 if "embed" in name else p.shape[-1] ** -0.5))
    return model.eval().requires_grad_(False)


def build(config: Any, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tiny:
    """A model of a config, twice."""
    stock = hf.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    stock = randomize(stock, seed).to(dtype)
    whole = copy.deepcopy(stock)
    whole.set_attn_implementation(NAME)
    return Tiny(stock, TorchModel(whole), whole)


@functools.cache
def tiny(kind: str) -> Tiny:
    """The float32 model of a kind."""
    return build(config_of(kind))


def text(n: int, seed: int = 1) -> list[int]:
    """Random tokens without the special ones."""
    generator = torch.Generator().manual_seed(seed)
    found: list[int] = torch.randint(3, 128, (n,), generator=generator).tolist()
    return found


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())
