"""What one answer took: tokens, seconds and bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Finish = Literal["stop", "length", "context", "cancelled"]


@dataclass(frozen=True)
class Report:
    """What one answer took.

    Attributes:
        prompt_tokens: tokens before the answer, those already in the cache included.
        cached_tokens: of these, how many were in the cache.
        new_tokens: of the answer; the token that ended it is not one of them.
        prefill_seconds: until the first token could be drawn.
        decode_seconds: from the first token on.
        decode_steps: passes in that time.
        finish: "stop" at an end token, "length" at the limit, "context" at the end of the
            context, "cancelled" by the caller.
        bytes_stored: of the cache, as allocated.
        bytes_16bit: what its tokens take at 16 bits.
        kernel: what reads the cache, in words.
        kv: the KV setting.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    decode_steps: int = 0
    finish: Finish = "cancelled"
    bytes_stored: int = 0
    bytes_16bit: int = 0
    kernel: str = ""
    kv: str = ""

    @property
    def prefill_rate(self) -> float:
        """Prompt tokens a second, of those that were not in the cache."""
        read = self.prompt_tokens - self.cached_tokens
        return read / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def decode_rate(self) -> float:
        """Answer tokens a second."""
        return self.decode_steps / self.decode_seconds if self.decode_seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON, the rates included."""
        return {**vars(self), "prefill_tokens_per_second": self.prefill_rate,
                "decode_tokens_per_second": self.decode_rate}  # fmt: skip
