"""How the models of a config.json are built, one entry for each text model_type.

Source: the configuration and modeling files of transformers 5.23.0; the tests compare every entry
with the classes themselves. The defaults of fields are not here but in config_defaults.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

# Which layers keep what, where config.json has no layer_types:
#   global    all attend to everything
#   window    all slide where there is a sliding_window, none otherwise
#   upper     those from max_window_layers on slide, if use_sliding_window
#   period    every nth attends to everything, the others slide
#   chunks    layers with RoPE see chunks of attention_chunk_size, the others everything
#   interval  every nth attends to everything, the others keep a recurrent state
Rule = Literal["global", "window", "upper", "period", "chunks", "interval"]


@dataclass(frozen=True)
class Family:
    """The structure of one class of models.

    Attributes:
        rule: which layers keep what.
        period: n of the rules that have one.
        period_key: the key of config.json that replaces it.
        head_dim: "field" where the class takes one, "hidden" where it is always
            hidden_size / num_attention_heads.
        qk_norm: learned norms of queries and keys: one size for every head, or the whole width.
        bias: biases of q, k, v and o: of all or of q, k, v only; by the field attention_bias
            ("flag") or always.
        norms: norms of hidden_size in a block.
        gated: the query projection is twice as wide, for a gate of the output.
        latent: multi-head latent attention (MLA).
        linear: layers of linear attention (Gated DeltaNet) are possible.
        sinks: a learned number for each head.
        experts: field with the number of routed experts; empty for a dense model.
        used: field with the number of them that a token meets.
        dense: which blocks have no experts: the first first_k_dense_replace ("first"), those that
            decoder_sparse_step and mlp_only_layers leave out ("step"), those not in moe_layers
            ("listed"); "" for none.
        expert_size: field with the width of an expert.
        dense_size: field with the width of a feed-forward block without experts.
        shared: width of the expert every token passes: a field of its own ("own"),
            n_shared_experts * expert_size ("count"), expert_size ("one"); "" for none.
        gemma: what only Gemma 3n ("3n") and Gemma 4 ("4") have.
    """

    rule: Rule = "global"
    period: int = 0
    period_key: str = ""
    head_dim: Literal["field", "hidden"] = "field"
    qk_norm: Literal["", "head", "flag", "all"] = ""
    bias: Literal["", "flag", "flag qkv", "qkv"] = "flag"
    norms: int = 2
    gated: bool = False
    latent: bool = False
    linear: bool = False
    sinks: bool = False
    experts: str = ""
    used: str = "num_experts_per_tok"
    dense: Literal["", "first", "step", "listed"] = ""
    expert_size: str = "moe_intermediate_size"
    dense_size: str = "intermediate_size"
    shared: Literal["", "own", "count", "one"] = ""
    gemma: Literal["", "3n", "4"] = ""


_QWEN2 = Family("upper", bias="qkv")
_QWEN2_VL = Family("upper", bias="qkv", head_dim="hidden")
_QWEN3_MOE = Family(qk_norm="head", experts="num_experts", dense="step")
_DEEPSEEK = Family(latent=True, experts="n_routed_experts", dense="first", shared="count")
_GEMMA4 = Family("period", 6, qk_norm="head", norms=4, gemma="4")

FAMILIES: Mapping[str, Family] = MappingProxyType({
    "cohere2": Family("period", 4, "sliding_window_pattern", "hidden", norms=1),
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
    "gemma": Family(),
    "gemma2": Family("period", 2, norms=4),
    "gemma3_text": Family("period", 6, "sliding_window_pattern", qk_norm="head", norms=4),
    "gemma3n_text": Family("period", 5, qk_norm="head", norms=4, gemma="3n"),
    "gemma4_text": Family("period", 6, qk_norm="head", norms=4, experts="num_experts",
                          used="top_k_experts", gemma="4"),
    "gemma4_unified_text": _GEMMA4,
    "glm4": Family(bias="flag qkv", norms=4),
    "glm4_moe": Family(bias="flag qkv", qk_norm="flag", experts="n_routed_experts", dense="first",
                       shared="count"),
    "gpt_oss": Family("period", 2, sinks=True, experts="num_local_experts",
                      expert_size="intermediate_size"),
    "llama": Family(),
    "llama4_text": Family("chunks", experts="num_local_experts", dense="listed",
                          expert_size="intermediate_size", dense_size="intermediate_size_mlp",
                          shared="one"),
    "ministral3": Family("window", bias=""),
    "mistral": Family("window", bias=""),
    "mixtral": Family("window", bias="", experts="num_local_experts",
                      expert_size="intermediate_size"),
    "olmo2": Family(qk_norm="all"),
    "olmo3": Family("period", 4, qk_norm="all"),
    "phi3": Family("window", bias=""),
    "qwen2": _QWEN2,
    "qwen2_5_vl_text": _QWEN2_VL,
    "qwen2_vl_text": _QWEN2_VL,
    "qwen3": Family("upper", qk_norm="head"),
    "qwen3_5_moe_text": Family("interval", 4, "full_attention_interval", qk_norm="head",
                               gated=True, linear=True, experts="num_experts", shared="own"),
    "qwen3_5_text": Family("interval", 4, "full_attention_interval", qk_norm="head", gated=True,
                           linear=True),
    "qwen3_moe": Family("window", qk_norm="head", experts="num_experts", dense="step"),
    "qwen3_next": Family("interval", 4, "full_attention_interval", qk_norm="head", gated=True,
                         linear=True, experts="num_experts", dense="step", shared="own"),
    "qwen3_vl_moe_text": _QWEN3_MOE,
    "qwen3_vl_text": Family(qk_norm="head"),
})  # fmt: skip
