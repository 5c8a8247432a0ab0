"""Runs of tiny models through the packed cache, and what the simulation says they should give."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "engines" / "transformers"))

from tiny_torch import Tiny, tiny  # noqa: E402

from nybble.engines.transformers.attention import Lanes  # noqa: E402
from nybble.formats.calibration import Calibration  # noqa: E402
from nybble.formats.codec import SideStore, layer_stores  # noqa: E402
from nybble.formats.setting import parse  # noqa: E402
from nybble.runtime.attention import attach  # noqa: E402
from nybble.runtime.cache import Cache  # noqa: E402

__all__ = ["Tiny", "packed_model", "run", "simulated", "tiny"]


def packed_model(kind: str) -> Any:
    """The stock model of a kind, attached; shared by all tests of a session."""
    model = tiny(kind).stock
    return attach(model)


def _exact(store: SideStore) -> SideStore:
    """A store without llama.cpp's rounding of queries, which the runtime does not do."""
    return SideStore(tuple((head, replace(codec, query=None)) for head, codec in store.codecs))


def simulated(
    kind: str, tokens: Sequence[int], setting: str, calibration: Calibration | None = None
) -> torch.Tensor:
    """Last hidden states [tokens, hidden] of one pass that reads through the setting's codecs."""
    ours = tiny(kind).ours
    stores = [
        tuple(
            map(
                _exact,
                layer_stores(
                    parse(setting), layer, calibration=calibration, gguf=ours.gguf_order,
                    decode=True,
                ),
            )
        )
        for layer in ours.layers
    ]  # fmt: skip
    return ours.hidden(tokens, Lanes([stores]))[0]  # type: ignore[list-item]


@torch.inference_mode()
def run(model: Any, tokens: Sequence[int], cache: Cache, chunks: Sequence[int]) -> torch.Tensor:
    """Last hidden states [tokens, hidden] of tokens that come in chunks."""
    assert sum(chunks) == len(tokens)
    out, at = [], 0
    for n in chunks:
        ids = torch.tensor([tokens[at : at + n]])
        out.append(model.model(input_ids=ids, past_key_values=cache).last_hidden_state[0])
        at += n
    return torch.cat(out)
