"""Which models the fold knows, and by which rule each takes its scale.

A new family is one line, if one of the two rules holds for it:

- norms: queries and keys pass a norm with a learned gain for every channel, shared by the heads
  of a layer. The gain of K is divided by e, that of Q multiplied.
- rows: nothing stands between projection and RoPE. Rows of W_k (and its bias) are divided by e,
  rows of W_q multiplied; every KV head has an e of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from nybble.errors import NybbleError, nearest


@dataclass(frozen=True)
class Family:
    """One architecture and its rule.

    Attributes:
        name: what users call it.
        form: the rule, see above.
        offset: what the class in transformers adds to a stored gain; GGUFs hold the sum.
        interleaved: whether its GGUFs hold RoPE's pairs side by side.
    """

    name: str
    form: Literal["norms", "rows"]
    offset: float = 0.0
    interleaved: bool = False


_GEMMA3 = Family("Gemma 3", "norms", offset=1.0)
_GEMMA4 = Family("Gemma 4", "norms")
_QWEN3 = Family("Qwen3", "norms")
_LLAMA = Family("Llama, Mistral, SmolLM2", "rows", interleaved=True)
_QWEN2 = Family("Qwen2", "rows")

# general.architecture of a GGUF.
GGUF: Mapping[str, Family] = MappingProxyType({
    "gemma3": _GEMMA3, "gemma4": _GEMMA4, "qwen3": _QWEN3, "qwen3moe": _QWEN3,
    "llama": _LLAMA, "mistral3": _LLAMA, "qwen2": _QWEN2,
})  # fmt: skip
# model_type of a config.json, of the text part where there are several.
FOLDER: Mapping[str, Family] = MappingProxyType({
    "gemma3_text": _GEMMA3, "gemma4_text": _GEMMA4, "qwen3": _QWEN3, "qwen3_moe": _QWEN3,
    "llama": _LLAMA, "mistral": _LLAMA, "qwen2": _QWEN2,
})  # fmt: skip


def family(architecture: str, known: Mapping[str, Family]) -> Family:
    """The family of a GGUF's architecture or a config's model_type.

    Raises:
        NybbleError: none of the rules was checked for it.
    """
    if architecture not in known:
        near = nearest(architecture, known)
        raise NybbleError(
            "nybble has no rule to harden this architecture",
            seen=ascii(architecture[:60]) + (f", which is not {near}" if near else ""),
            allowed=", ".join(known),
            hint="nybble measure MODEL --kv nyb4 shows what the runtime's own format does for it",
        )
    return known[architecture]
