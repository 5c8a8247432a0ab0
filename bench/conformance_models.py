"""Shapes of the models in the conformance file, written by hand from their published configs."""

from __future__ import annotations

from typing import Any


def _kv(
    kind: str, heads: int, kv_heads: int, dim: int, window: int | None = None
) -> dict[str, Any]:
    found = {"kind": kind, "heads": heads, "kv_heads": kv_heads, "k_dim": dim, "v_dim": dim}
    return found if window is None else {**found, "window": window}


def _state(conv: int, recurrent: int) -> dict[str, Any]:
    return {"kind": "recurrent", "conv": conv, "recurrent": recurrent}


def _gemma4(layers: int, period: int = 6) -> list[str]:
    kinds = ["sliding_attention"] * (period - 1) + ["full_attention"]
    return kinds * (layers // period)


LATENT = {"kind": "latent", "heads": 128, "kv_heads": 1, "k_dim": 576, "v_dim": 0, "rope_dim": 64}
# Gated DeltaNet: 16 K and 32 V heads of 128, a convolution that keeps 3 past inputs.
DELTA = _state((2 * 16 * 128 + 32 * 128) * 3, 32 * 128 * 128)
NOBODYS = "no published model: a shape that takes another path"

MODELS: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": {
        "architecture": "llama",
        "config": {
            "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
            "vocab_size": 128256, "max_position_embeddings": 131072,
        },
        "shapes": {"g": _kv("global", 32, 8, 128)},
        "order": "g" * 32,
    },
    "gemma-3-27b": {
        "architecture": "gemma3_text",
        "config": {
            "model_type": "gemma3_text", "hidden_size": 5376, "intermediate_size": 21504,
            "num_hidden_layers": 62, "num_attention_heads": 32, "num_key_value_heads": 16,
            "head_dim": 128, "sliding_window": 1024, "vocab_size": 262208,
            "max_position_embeddings": 131072,
        },
        "shapes": {"s": _kv("sliding", 32, 16, 128, 1024), "g": _kv("global", 32, 16, 128)},
        "order": "sssssg" * 10 + "ss",
    },
    "gemma-4-31b": {
        "architecture": "gemma4_text",
        "config": {
            "model_type": "gemma4_text", "hidden_size": 5376, "intermediate_size": 21504,
            "num_hidden_layers": 60, "num_attention_heads": 32, "num_key_value_heads": 16,
            "num_global_key_value_heads": 4, "head_dim": 256, "global_head_dim": 512,
            "attention_k_eq_v": True, "num_kv_shared_layers": 0, "sliding_window": 1024,
            "layer_types": _gemma4(60), "vocab_size": 262144, "max_position_embeddings": 262144,
        },
        "shapes": {"s": _kv("sliding", 32, 16, 256, 1024), "g": _kv("global", 32, 4, 512)},
        "order": "sssssg" * 10,
    },
    "gemma-4-e4b": {
        "architecture": "gemma4_text",
        "config": {
            "model_type": "gemma4_text", "hidden_size": 2560, "intermediate_size": 10240,
            "num_hidden_layers": 42, "num_attention_heads": 8, "num_key_value_heads": 2,
            "head_dim": 256, "global_head_dim": 512, "attention_k_eq_v": False,
            "num_kv_shared_layers": 18, "sliding_window": 512, "layer_types": _gemma4(42),
            "vocab_size": 262144, "max_position_embeddings": 131072,
        },
        "shapes": {
            "s": _kv("sliding", 8, 2, 256, 512), "g": _kv("global", 8, 2, 512),
            "t": {"kind": "shared", "heads": 8, "source": 22},
            "h": {"kind": "shared", "heads": 8, "source": 23},
        },
        "order": "sssssg" * 4 + "ttttth" * 3,
    },
    "gpt-oss-20b": {
        "architecture": "gpt_oss",
        "config": {
            "model_type": "gpt_oss", "hidden_size": 2880, "intermediate_size": 2880,
            "num_hidden_layers": 24, "num_attention_heads": 64, "num_key_value_heads": 8,
            "head_dim": 64, "sliding_window": 128, "num_local_experts": 32,
            "num_experts_per_tok": 4, "vocab_size": 201088, "max_position_embeddings": 131072,
        },
        "shapes": {
            "s": {**_kv("sliding", 64, 8, 64, 128), "sinks": True},
            "g": {**_kv("global", 64, 8, 64), "sinks": True},
        },
        "order": "sg" * 12,
    },
    "qwen3-next-80b": {
        "architecture": "qwen3_next",
        "config": {
            "model_type": "qwen3_next", "hidden_size": 2048, "intermediate_size": 5120,
            "num_hidden_layers": 48, "num_attention_heads": 16, "num_key_value_heads": 2,
            "head_dim": 256, "full_attention_interval": 4, "linear_conv_kernel_dim": 4,
            "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_num_key_heads": 16,
            "linear_num_value_heads": 32, "vocab_size": 151936, "max_position_embeddings": 262144,
        },
        "shapes": {"r": DELTA, "g": _kv("global", 16, 2, 256)},
        "order": "rrrg" * 12,
    },
    "deepseek-v3": {
        "architecture": "deepseek_v3",
        "config": {
            "model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432,
            "num_hidden_layers": 61, "num_attention_heads": 128, "num_key_value_heads": 128,
            "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64, "v_head_dim": 128, "vocab_size": 129280,
            "max_position_embeddings": 163840,
        },
        "shapes": {"l": LATENT},
        "order": "l" * 61,
    },
    "qwen3.5-like": {
        "architecture": "qwen3_5_text", "config": None, "note": NOBODYS,
        "shapes": {"r": DELTA, "g": _kv("global", 32, 4, 256)},
        "order": "rrrg" * 8,
    },
    "kimi-linear-like": {
        "architecture": "kimi_linear", "config": None, "note": NOBODYS,
        "shapes": {"r": _state(3 * 4096 * 3, 32 * 128 * 128), "l": LATENT},
        "order": "rrrl" * 7,
    },
    "nearly-even": {
        "architecture": "x", "config": None, "note": NOBODYS,
        "shapes": {"s": _kv("sliding", 32, 8, 64, 128), "g": _kv("global", 32, 8, 64)},
        "order": "sg" * 12 + "g",
    },
    "two-windows": {
        "architecture": "x", "config": None, "note": NOBODYS,
        "shapes": {
            "s": _kv("sliding", 32, 4, 128, 512), "w": _kv("sliding", 32, 4, 128, 4096),
            "g": _kv("global", 32, 4, 128),
        },
        "order": "ssswwg" * 5,
    },
}  # fmt: skip
