"""Write src/nybble/models/config_defaults.json: the defaults of transformers' config classes.

A config.json leaves out what its class knows; nybble reads it without transformers, so these
facts ship with it. Run it after a new transformers, look at the change, and run tests/models.

    python bench/config_defaults.py
"""

from __future__ import annotations

import json
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

PATH = Path(__file__).parents[1] / "src/nybble/models/config_defaults.json"
# The text models that nybble.models.config_families describes.
TEXT = (
    "cohere2", "deepseek_v2", "deepseek_v3", "gemma", "gemma2", "gemma3_text", "gemma3n_text",
    "gemma4_text", "gemma4_unified_text", "glm4", "glm4_moe", "gpt_oss", "llama", "llama4_text",
    "ministral3", "mistral", "mixtral", "olmo2", "olmo3", "phi3", "qwen2", "qwen2_5_vl_text",
    "qwen2_vl_text", "qwen3", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_moe", "qwen3_next",
    "qwen3_vl_moe_text", "qwen3_vl_text",
)  # fmt: skip
# Multimodal models around them whose class takes its text_config as it is.
WRAPPERS = (
    "aya_vision", "cohere2_vision", "gemma3", "gemma3n", "gemma4", "gemma4_unified", "idefics3",
    "internvl", "kimi_k25", "llama4", "llava", "llava_next", "llava_onevision", "mistral3", "ovis2",
    "paligemma", "qwen2_5_vl", "qwen2_audio", "qwen2_vl", "qwen3_5", "qwen3_5_moe", "qwen3_vl",
    "qwen3_vl_moe", "smolvlm", "voxtral",
)  # fmt: skip
# Fields that change neither the cache nor the number of weights.
LEFT_OUT = (
    "_dropout", "_pdrop", "_token_id", "_eps", "initializer_range", "router_", "_softcapping",
    "hidden_act", "altup_active", "altup_coef_clip", "altup_correct_scale", "attn_", "floor_scale",
    "logit_scale", "norm_topk", "original_max", "pretraining_tp", "query_pre", "rope_parameters",
    "rope_interleave", "routed_scaling", "swiglu", "topk_", "use_cache", "n_group",
    "activation_sparsity",
)  # fmt: skip


def kind(field: Any) -> str:
    """A short name for a field's type: int, bool, ints, any; with ? where null is allowed."""
    text = field.type if isinstance(field.type, str) else str(field.type).replace("<class ", "")
    parts = [p.strip(" '>") for p in text.split("|")]
    lists = any(p.startswith("list") for p in parts)
    name = "ints" if lists else next((p for p in ("bool", "int") if p in parts), "any")
    return name + ("?" if "None" in parts or "NoneType" in parts else "")


def text_facts(model_type: str) -> dict[str, Any]:
    """What the class of a text model says of itself."""
    cls = CONFIG_MAPPING[model_type]
    own = {f.name: f for f in fields(cls)}
    base = {f.name for f in fields(PreTrainedConfig)}
    wanted = {
        name: [kind(f), None if f.default is MISSING else f.default]
        for name, f in sorted(own.items())
        if name not in base and not any(part in name for part in LEFT_OUT)
    }
    checks = cls.validate_architecture is not PreTrainedConfig.validate_architecture
    return {"fields": wanted, "same": cls.attribute_map, "hidden_is_whole_heads": checks}


def wrapper_facts(model_type: str) -> dict[str, Any]:
    """Where the text part of a multimodal model takes its class and its defaults from."""
    cls = CONFIG_MAPPING[model_type]
    spec = cls.sub_configs_defaults["text_config"]
    known = text_facts(spec.model_type)["fields"]
    own = {f.name: f.default for f in fields(cls)}
    return {
        "text": spec.model_type,
        # The class is the one that text_config names; else it is always `text`.
        "any": not issubclass(spec.config_class, PreTrainedConfig),
        # The values where there is no text_config at all.
        "without": {k: v for k, v in spec.init_kwargs.items() if k in known},
        "tie_word_embeddings": own.get("tie_word_embeddings", True),
    }


def facts() -> dict[str, Any]:
    """Everything the file holds."""
    return {
        "transformers": transformers.__version__,
        "text": {name: text_facts(name) for name in TEXT},
        "wrappers": {name: wrapper_facts(name) for name in WRAPPERS},
    }


def render() -> str:
    """The file's text, a line for each model."""
    found = facts()
    lines = [f'{{"transformers": {json.dumps(found["transformers"])},']
    for key, end in (("text", "},"), ("wrappers", "}}")):
        rows = [f" {json.dumps(k)}: {json.dumps(v)}" for k, v in found[key].items()]
        lines += [f"{json.dumps(key)}: {{", ",\n".join(rows), end]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PATH.write_text(render(), encoding="utf-8")
