"""Energies of a model's keys and queries under transformers (formats/energies.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from nybble.engines.transformers.model import TorchModel
from nybble.formats.energies import SKIP, Energies, EnergySums, text_hash, texts_to_read


def observe(
    model: TorchModel,
    texts: Sequence[npt.NDArray[np.int32]],
    on_tokens: Callable[[int], None] = lambda tokens: None,
) -> Energies:
    """One pass over each text; nothing but sums is kept.

    Args:
        model: the model.
        texts: token ids [n] of each text.
        on_tokens: told the tokens of every text that is done.

    Raises:
        EngineError: too little text, or keys or queries that are not finite.
    """
    sums = EnergySums()

    def watch(module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        owner = model.owner(module)
        if int(module.layer_idx) == owner:
            sums.add_keys(owner, key[0, :, SKIP:].float().cpu().numpy())
        sums.add_queries(owner, query[0, :, SKIP:].float().cpu().numpy(), key.shape[1])

    kept = texts_to_read(texts)
    for text in kept:
        model.watch(text.tolist(), watch)
        on_tokens(len(text))
    tokens = sum(map(len, kept)) - SKIP * len(kept)
    return Energies(sums.means(), False, tokens, text_hash(texts), "transformers")
