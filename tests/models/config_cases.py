"""Small configs of every model_type, and what transformers makes of them."""

from __future__ import annotations

import random
from dataclasses import fields
from typing import Any

from transformers.cache_utils import get_layer_types_and_kwargs
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from nybble.models.config_fields import facts
from nybble.models.geometry import Geometry

TEXT = sorted(facts()["text"])
WRAPPERS = sorted(facts()["wrappers"])
NO_HEAD_DIM = ("qwen2_vl_text", "qwen2_5_vl_text", "cohere2", "deepseek_v2", "deepseek_v3")

SMALL = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 199, "max_position_embeddings": 512, "head_dim": 16,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "num_experts": 8,
    "num_local_experts": 8, "n_routed_experts": 8, "num_experts_per_tok": 2, "top_k_experts": 2,
    "moe_intermediate_size": 32, "shared_expert_intermediate_size": 48, "n_group": 1,
    "topk_group": 1, "kv_lora_rank": 24, "q_lora_rank": 20, "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8, "v_head_dim": 12, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 12,
    "vocab_size_per_layer_input": 150, "hidden_size_per_layer_input": 10, "laurel_rank": 5,
    "intermediate_size_mlp": 80, "global_head_dim": 32, "n_shared_experts": 2,
    "first_k_dense_replace": 1, "sliding_window": 32, "attention_chunk_size": 32,
    "num_kv_shared_layers": 0,
}  # fmt: skip
_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id", "n_group", "topk_group")


def declared(kind: str) -> set[str]:
    """Names of the fields of a text model's class, and the keys it takes besides."""
    known = {f.name for f in fields(CONFIG_MAPPING[kind])}
    known |= {"global_head_dim"} if kind.startswith("gemma4") else set()
    return known | (set() if kind in NO_HEAD_DIM else {"head_dim"})


def small(kind: str, **changed: Any) -> dict[str, Any]:
    """The values of a config.json of a small model."""
    known = declared(kind) - ({"head_dim"} if kind in NO_HEAD_DIM else set())
    return {k: v for k, v in SMALL.items() if k in known} | changed


def as_json(kind: str, values: dict[str, Any]) -> dict[str, Any]:
    """The config.json of these values."""
    return {"model_type": kind, **{k: v for k, v in values.items() if k not in _TOKENS}}


def drawn(kind: str, seed: int) -> dict[str, Any]:
    """Values of a model of a random size, its rules included, that the class takes."""
    draw = random.Random(f"{kind}-{seed}")
    known = declared(kind)
    n, heads = draw.randint(2, 11), draw.choice((4, 8))
    values = small(kind)
    options: dict[str, tuple[Any, ...]] = {
        "num_hidden_layers": (n,), "num_attention_heads": (heads,), "sliding_window": (8, 100),
        "num_key_value_heads": tuple(k for k in (1, 2, 4, 8) if k <= heads),
        "use_sliding_window": (True, False), "max_window_layers": (0, 1, n, n + 3),
        "attention_k_eq_v": (True, False), "use_double_wide_mlp": (True, False),
        "enable_moe_block": (True, False), "tie_word_embeddings": (True, False),
        "attention_bias": (True, False), "mlp_bias": (True, False), "use_qk_norm": (True, False),
        "decoder_sparse_step": (1, 2), "mlp_only_layers": ([], [0], [1, 2], None),
        "interleave_moe_layer_step": (1, 2), "no_rope_layer_interval": (2, 3),
        "first_k_dense_replace": (0, 1, n), "hidden_size_per_layer_input": (0, 12),
        "linear_conv_kernel_dim": (2, 4), "n_shared_experts": (1, 2), "q_lora_rank": (20,),
    }  # fmt: skip
    values |= {k: draw.choice(v) for k, v in options.items() if k in known}
    if kind == "gemma3n_text":
        values["hidden_size_per_layer_input"] = 12
    if kind in ("gemma3_text", "cohere2") and draw.random() < 0.6:
        values["sliding_window_pattern"] = draw.randint(1, 4)
    if kind.startswith("qwen3_5") or kind == "qwen3_next":
        values["full_attention_interval"] = draw.randint(1, min(n, 4))
    if kind.startswith("gemma4"):
        values["num_global_key_value_heads"] = draw.choice((None, 1, 2))
    if "sliding_window" in values and kind in ("mistral", "mixtral", "phi3", "ministral3"):
        values["sliding_window"] = draw.choice((None, 40))
    if "layer_types" in known and draw.random() < 0.4:
        values["layer_types"] = _types(kind, n, draw, values)
    if "num_kv_shared_layers" in known:
        values["num_kv_shared_layers"] = _shared(kind, values, draw)
    return values


def _types(kind: str, n: int, draw: random.Random, values: dict[str, Any]) -> list[str]:
    other = "sliding_attention"
    if kind.startswith("qwen3_5") or kind == "qwen3_next":
        other = "linear_attention"
    elif kind == "llama4_text":
        other = "chunked_attention"
    elif values.get("use_sliding_window") is False:
        return ["full_attention"] * n
    return [draw.choice(("full_attention", other)) for _ in range(n - 1)] + ["full_attention"]


def _shared(kind: str, values: dict[str, Any], draw: random.Random) -> int:
    """A number of sharing layers that leaves an owner of each type."""
    types = CONFIG_MAPPING[kind](**values).layer_types
    most = next((k for k in range(len(types) - 1, -1, -1)
                 if set(types[: len(types) - k]) == set(types)), 0)  # fmt: skip
    return draw.randint(0, most)


def seen(config: Any) -> list[tuple[Any, ...]]:
    """What transformers keeps in each layer: kind, window, KV heads and head size."""
    types, more = get_layer_types_and_kwargs(config)
    rows: list[tuple[Any, ...]] = []
    for i, (kind, extra) in enumerate(zip(types, more, strict=True)):
        layer = config.per_layer_config[i]
        if kind == "linear_attention":
            rows.append(("recurrent",))
        elif kind == "dummy":
            rows.append(("shared",))
        elif config.model_type.startswith("deepseek"):
            rows.append(("latent", None, 1, layer.kv_lora_rank + layer.qk_rope_head_dim))
        else:
            dim = getattr(layer, "head_dim", None) or layer.hidden_size // layer.num_attention_heads
            heads = layer.num_key_value_heads or layer.num_attention_heads
            kinds = {"full_attention": "global"}
            rows.append((kinds.get(kind, "sliding"), extra.get("sliding_window"), heads, dim))
    return rows


def kept(geometry: Geometry) -> list[tuple[Any, ...]]:
    """The same, of a geometry."""
    return [
        (x.kind,) if x.kind in ("recurrent", "shared") else (x.kind, x.window, x.kv_heads, x.k_dim)
        for x in geometry.layers
    ]
