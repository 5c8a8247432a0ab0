"""`nybble.Cache` as one prompt and its branches: a branch is a fork, which shares packed pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from nybble.engines.llamacpp.branches import Part
from nybble.runtime.cache import Cache
from nybble.runtime.generate import CHUNK
from nybble.scoring.tasks.asking import Logits


class Forks:
    """A Tree (tasks/asking.py) over a model of transformers; every branch is read by itself.

    Args:
        model: a loaded causal language model with `nybble.attach`.
        make: an empty cache of the setting that is asked.
    """

    def __init__(self, model: Any, make: Callable[[], Cache]) -> None:
        self._model, self._make = model, make
        self._device: torch.device = next(model.parameters()).device
        self._keeps = bool(model._supports_logits_to_keep())
        self._prompt = make()
        self._branches: list[Cache] = []

    def prompt(self, tokens: Sequence[int]) -> Iterator[int]:
        """Read a prompt into an empty cache; yields tokens done."""
        self._prompt, self._branches = self._make(), []
        self._prompt.reserve(len(tokens))
        for start in range(0, len(tokens), CHUNK):
            part = tokens[start : start + CHUNK]
            self._forward(self._prompt, part, 1)
            yield len(part)

    def split(self, n: int) -> None:
        """Make n branches of the prompt."""
        self._branches = self._prompt.fork(n)

    def fork(self, branch: int, n: int) -> int:
        """Make n more branches, copies of one; returns the first."""
        first = len(self._branches)
        self._branches += self._branches[branch].fork(n)
        return first

    def cut(self, n: int) -> None:
        """End the branches from number n on."""
        del self._branches[n:]

    def go_on(self, parts: Sequence[Part]) -> list[Logits]:
        """Let branches read on; returns the logits wanted of each, [wanted, n_vocab]."""
        return [self._forward(self._branches[p.branch], p.tokens, p.wanted) for p in parts]

    @torch.inference_mode()
    def _forward(self, cache: Cache, ids: Sequence[int], wanted: int) -> Logits:
        given = torch.tensor([list(ids)], dtype=torch.long, device=self._device)
        keep = {"logits_to_keep": wanted} if self._keeps else {}
        out = self._model(input_ids=given, past_key_values=cache, use_cache=True, **keep)
        found: Logits = out.logits[0, -wanted:].float().cpu().numpy().astype(np.float32, copy=False)
        return found
