"""The read rule: which keys a query still sees unquantized.

Engines differ in this more than in their codecs. llama.cpp attends to what it has stored, always.
SGLang and vLLM's turboquant attend to the current chunk as it came out of the projection. KIVI
and transformers keep a recent window in 16 bits. A score that ignores the rule is wrong twice:
too bad for windows, and blind where a single chunk is all there is (docs/method.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nybble.formats.lazy import torch


@dataclass(frozen=True)
class Reads:
    """Keys from `first_raw(i)` on are raw for the query at position i.

    Attributes:
        rule: "all": every key is read as stored, the query's own included; "chunk": keys of the
            query's own chunk of `tokens` are raw; "recent": the last `tokens` keys are raw;
            "residual": keys are raw until `tokens` of them are full and are stored together.
        tokens: the length the rule speaks of; 0 for "all".
    """

    rule: Literal["all", "chunk", "recent", "residual"] = "all"
    tokens: int = 0

    def first_raw(self, queries: torch.Tensor) -> torch.Tensor:
        """First key that is raw for each query; int64, same shape as the positions given."""
        if self.rule == "all":
            return queries + 1
        if self.rule in ("chunk", "residual"):  # the query that fills it still sees it raw
            return queries // self.tokens * self.tokens
        return (queries + 1 - self.tokens).clamp(min=0)

    def at_decode(self) -> Reads:
        """The rule while tokens come one by one.

        A chunk is then the token itself, and engines with this rule store it before they attend
        (vLLM's turboquant, SGLang, mlx-lm), so nothing is raw.
        """
        return Reads() if self.rule == "chunk" else self


ALL = Reads()
CHUNK = Reads("chunk", 512)  # tokens of a prefill chunk unless the setting says otherwise
