"""How the next token is drawn from a model's logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from nybble.errors import NybbleError

MOST_TEMPERATURE = 2.0  # as OpenAI's API; a sampler above it draws noise


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
        temperature: 0 takes the likeliest token, so that the same command gives the same text.
        top_p: the smallest set of tokens with this probability is drawn from.
        top_k: at most so many; 0 for all.
        seed: of the draws; None for another one every time.

    Raises:
        NybbleError: a value out of its range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= MOST_TEMPERATURE:
            raise NybbleError("the temperature is out of range", seen=self.temperature,
                              allowed=f"0 to {MOST_TEMPERATURE:g}")  # fmt: skip
        if not 0 < self.top_p <= 1:
            raise NybbleError("top-p is out of range", seen=self.top_p, allowed="over 0, up to 1")
        if self.top_k < 0:
            raise NybbleError("top-k is out of range", seen=self.top_k, allowed="0 or more")
        if self.seed is not None and not 0 <= self.seed < 1 << 63:
            raise NybbleError("the seed is out of range", seen=self.seed, allowed="0 to 2^63 - 1")


class Sampler:
    """Draws tokens of one answer; its random numbers are its own, so answers do not disturb."""

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        from transformers.generation import logits_process as warpers

        self._greedy = sampling.temperature == 0
        self._warpers: list[Any] = []
        if self._greedy:
            return
        self._generator = torch.Generator(device)
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)
        self._warpers.append(warpers.TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k:
            self._warpers.append(warpers.TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            self._warpers.append(warpers.TopPLogitsWarper(sampling.top_p))

    def draw(self, logits: torch.Tensor) -> int:
        """A token id.

        Args:
            logits: of the last position, [vocabulary].

        Raises:
            NybbleError: a logit is not a number.
        """
        scores = logits.float()[None]
        if bool(torch.isnan(scores).any()):
            raise NybbleError(
                "the model gives logits that are not numbers",
                seen="NaN", hint="--dtype float32 tells overflow from damaged weights",
            )  # fmt: skip
        if self._greedy:
            return int(scores.argmax())
        for warper in self._warpers:
            scores = warper(None, scores)
        return int(torch.multinomial(scores.softmax(-1), 1, generator=self._generator))
