"""What the scorer needs of a tokenizer, whichever engine it comes from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Vocabulary:
    """What the scorer needs of a tokenizer: sizes and the special ids (-1: none)."""

    n_tokens: int
    bos: int
    eos: int
    add_bos: bool
    bos_text: str
    eos_text: str
