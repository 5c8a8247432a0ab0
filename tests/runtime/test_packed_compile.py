"""A compiled model keeps its graphs while the cache grows, whatever page it has come to."""

from __future__ import annotations

import pytest
import torch
from packed_runs import packed_model
from tiny_torch import build, config_of, text

from nybble.runtime.attention import attach
from nybble.runtime.cache import Cache


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_no_new_graph_for_a_new_token(kind: str) -> None:
    model = attach(build(config_of(kind)).stock)
    compiled = torch.compile(model.model, backend="eager")
    cache = Cache(model.config, "q8_0/q4_0", max_length=200)
    plain = Cache(model.config, "q8_0/q4_0", max_length=200)
    graphs = []
    with torch.no_grad():
        for at, token in enumerate(text(140)):
            ids = torch.tensor([[token]])
            places = torch.tensor([[at]])
            a = compiled(input_ids=ids, position_ids=places, past_key_values=cache)
            b = packed_model(kind).model(input_ids=ids, position_ids=places, past_key_values=plain)
            torch.testing.assert_close(
                a.last_hidden_state, b.last_hidden_state, atol=1e-4, rtol=1e-4
            )
            graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[-1] == graphs[20], "graphs were made again while tokens came"
