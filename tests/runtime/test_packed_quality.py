"""What a packed cache reads is what the simulation of its setting reads, token by token."""

from __future__ import annotations

import pytest
import torch
from packed_runs import packed_model, run, simulated, tiny
from tiny_torch import KINDS, text

import nybble.runtime.layer as packed_layer
from nybble.formats.codec import Codec
from nybble.formats.registry import kv_type
from nybble.runtime.cache import Cache
from nybble.runtime.layout import layout
from nybble.runtime.side import Side

SETTINGS = (
    "q8_0/q4_0", "q4_0/q4_0-norot", "q5_1/iq4_nl+first3", "q4_0/q5_1+recent5",
    "iq4_nl/q4_0+recent11",
    "int4_per_token_head/int8_per_token_head+first2", "q5_0/q4_1+skip0+search",
)  # fmt: skip
CHUNKS = (10, 1, 1, 1, 7, 1, 1, 20, 1)


def exact_side(side: str, dim: int) -> Side:
    """Raw tokens in float32, as the simulation has recent ones."""
    kind = kv_type("f32")
    return Side(Codec(kind, kind.reads), dim, layout(kind, side, dim))


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_model_reads_what_the_simulation_reads(
    kind: str, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "recent" in setting:
        monkeypatch.setattr(packed_layer, "raw_side", exact_side)
    tokens = text(sum(CHUNKS))
    expected = simulated(kind, tokens, setting)
    cache = Cache(packed_model(kind).config, kv=setting)
    got = run(packed_model(kind), tokens, cache, CHUNKS)
    plain = tiny(kind).stock_hidden(tokens)
    drift = (expected - plain).norm()
    if kind == "mistral" and "recent11" in setting:  # its window is shorter: nothing is quantized
        torch.testing.assert_close(got, plain, atol=1e-4, rtol=1e-4)
        return
    assert drift > 1e-3 * plain.norm(), "the setting leaves no trace, so nothing is compared"
    # Sums in another order move a few values over the edge between two codes.
    assert (got - expected).norm() < 0.2 * drift
    assert (got - expected).norm(dim=-1).median() < 0.02 * drift


def test_recent_tokens_are_kept_in_16_bits() -> None:
    tokens = text(sum(CHUNKS))
    expected = simulated("llama", tokens, "q4_0/q4_0+recent5")
    cache = Cache(packed_model("llama").config, kv="q4_0/q4_0+recent5")
    got = run(packed_model("llama"), tokens, cache, CHUNKS)
    plain = tiny("llama").stock_hidden(tokens)
    assert (got - expected).norm() < 0.2 * (expected - plain).norm()
    recent = cache.packed[0].strands[-1]
    assert recent.is_recent and recent.k is not None and recent.k.kind.name == "f16"
