"""Which layers of a GGUF keep what, architecture by architecture, as llama.cpp decides it.

An architecture stands in exactly one of the tables below, or it is not known here. Source: the
`load_arch_hparams` functions of llama.cpp's `src/models/` and `llama_model::create_memory` in
`src/llama-model.cpp`, build b11549.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal


@dataclass(frozen=True)
class Window:
    """Where the window of sliding layers comes from.

    Attributes:
        needed: the file must name it; otherwise a file without one has no sliding layers, or
            those of `default`.
        default: tokens where the file names none.
        forced: tokens whatever the file names, as long as it does not name 0.
        listed: the file must list which layers slide: there is no period.
        layers: only models of this many layers slide; 0 for all.
    """

    needed: bool = False
    default: int | None = None
    forced: int | None = None
    listed: bool = False
    layers: int = 0


_OPTIONAL, _NEEDED, _LISTED = Window(), Window(needed=True), Window(needed=True, listed=True)

SLIDING: Mapping[str, Window] = MappingProxyType({
    "gemma2": Window(default=4096), "gemma3": _OPTIONAL, "gemma3n": _NEEDED, "gemma4": _LISTED,
    "gpt-oss": _NEEDED, "llama4": Window(default=8192, forced=8192), "cohere2": _NEEDED,
    "cohere2moe": _NEEDED, "olmo2": _OPTIONAL, "plamo3": _OPTIONAL, "afmoe": _OPTIONAL,
    "mellum": _OPTIONAL, "laguna": _OPTIONAL, "muse-glimmer": _NEEDED, "exaone-moe": _NEEDED,
    "exaone4": Window(default=4096, layers=64), "smallthinker": Window(forced=4096),
    "granite_swa": _LISTED, "maple": _LISTED, "mimo2": _LISTED, "spark2_5": _LISTED,
    "step35": _LISTED,
})  # fmt: skip

# How recurrent layers are told: "no kv heads" in head_count_kv; "interval" is every layer but
# each nth (or the file's own list); "no kv heads and no ffn" leaves layers that only have a
# feed-forward block; "all" has both kinds of memory in every layer.
Recurrent = Literal["no kv heads", "interval", "no kv heads and no ffn", "all"]

RECURRENT: Mapping[str, Recurrent] = MappingProxyType({
    **dict.fromkeys(("jamba", "plamo2", "granitehybrid", "lfm2", "lfm2moe", "kimi-linear",
                     "bailingmoe3"), "no kv heads"),
    **dict.fromkeys(("qwen3next", "qwen35", "qwen35moe", "minimax-01"), "interval"),
    **dict.fromkeys(("nemotron_h", "nemotron_h_moe"), "no kv heads and no ffn"),
    "falcon-h1": "all",
})  # fmt: skip
INTERVALS = MappingProxyType({"minimax-01": 8})  # full_attention_interval; 4 for the others

LATENT = ("deepseek2", "mistral4", "kimi-linear", "bailingmoe3")

GLOBAL = (
    "llama", "deci", "falcon", "grok", "gpt2", "gptneox", "mpt", "baichuan", "starcoder", "refact",
    "bloom", "stablelm", "qwen", "qwen2", "qwen2moe", "qwen2vl", "qwen3", "qwen3moe", "qwen3vl",
    "qwen3vlmoe", "phi2", "phi3", "phimoe", "plamo", "codeshell", "orion", "internlm2", "minicpm",
    "minicpm3", "gemma", "starcoder2", "xverse", "command-r", "dbrx", "olmo", "olmoe", "openelm",
    "arctic", "deepseek", "chatglm", "glm4", "glm4moe", "bitnet", "jais", "jais2", "nemotron",
    "exaone", "granite", "granitemoe", "chameleon", "plm", "bailingmoe", "bailingmoe2", "dots1",
    "arcee", "ernie4_5", "ernie4_5-moe", "hunyuan-moe", "hunyuan-dense", "hunyuan_vl", "hy_v3",
    "smollm3", "seed_oss", "grovemoe", "apertus", "minimax-m2", "cogvlm", "pangu-embedded",
    "mistral3", "paddleocr", "maincoder", "deepseek2-ocr",
)  # fmt: skip

# Known to keep something that a geometry cannot say, or to keep no cache at all.
REFUSED = MappingProxyType({
    **dict.fromkeys(("deepseek32", "glm-dsa", "glm5-next", "hy_v4", "dots3note", "minimax-m3",
                     "qwen4exp"), "it keeps keys of an indexer besides its cache"),
    "deepseek4": "it keeps several compressed caches",
    "kimi-k3": "its cache was not checked", "nanbeige": "it runs its layers several times",
    "graniteswitch": "it keeps the cache of a router layer",
    **dict.fromkeys(("mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"),
                    "a recurrent model, which keeps no KV cache"),
})  # fmt: skip

KNOWN = tuple(sorted({*GLOBAL, *LATENT, *SLIDING, *RECURRENT}))
