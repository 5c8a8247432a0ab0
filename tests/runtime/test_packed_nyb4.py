"""nyb4, the default type: calibrated, with protected first tokens."""

from __future__ import annotations

import pytest
import torch
from packed_runs import packed_model, run, simulated, tiny
from tiny_torch import text

from nybble.errors import NybbleError
from nybble.formats.calibration import Calibration, LayerCalibration, LayerMoments
from nybble.runtime.cache import Cache

CHUNKS = (30, 1, 1, 1, 9, 1, 1)


def calibration_of(kind: str) -> Calibration:
    """Moments of a tiny model's own keys and queries."""
    seen: dict[int, list[tuple[torch.Tensor, ...]]] = {}

    def watch(module: torch.nn.Module, *qkv: torch.Tensor) -> None:
        seen.setdefault(int(module.layer_idx), []).append(qkv)  # type: ignore[arg-type]

    ours = tiny(kind).ours
    ours.watch(text(300, 4), watch)
    layers = {}
    for layer in ours.layers:
        q, k, v = (x[0].double() for x in seen[layer.index][0])
        groups = q.reshape(layer.heads, -1, q.shape[-1])
        centred = k - k.mean(1, keepdim=True)
        layers[layer.index] = LayerCalibration.fit(
            LayerMoments(
                k.mean(1), centred.mT @ centred / k.shape[1],
                groups.mT @ groups / groups.shape[1], v.mean(1),
                (v - v.mean(1, keepdim=True)).square().mean((1, 2)).sqrt(),
            )
        )  # fmt: skip
    return Calibration(layers)


@pytest.mark.parametrize("kind", ["llama", "gemma3", "gemma4", "gpt-oss"])
def test_the_default_reads_what_the_simulation_reads(kind: str) -> None:
    calibration, tokens = calibration_of(kind), text(sum(CHUNKS))
    expected = simulated(kind, tokens, "nyb4/nyb4", calibration)
    cache = Cache(packed_model(kind).config, calibration=calibration)
    got = run(packed_model(kind), tokens, cache, CHUNKS)
    drift = (expected - tiny(kind).stock_hidden(tokens)).norm()
    assert (got - expected).norm() < 0.2 * drift
    first = next(x for x in cache.packed if not x.is_sliding).strands[0]
    assert first.count == 4 and first.v.kind.name == "f16"


def test_a_latent_in_nyb4_is_stored_as_values_are() -> None:
    calibration = calibration_of("gemma4")
    model = packed_model("gemma4")
    cache = Cache(model, calibration=calibration, latent=True)
    run(model, text(40), cache, [40])
    (layer, *_) = [x for x in cache.packed if x.body.latent is not None]
    # 64 channels: 32 bytes of codes and 2 scales, without keys.
    assert layer.body.k is None and layer.body.v.layout.row_bytes == 34


def test_another_models_calibration_is_refused() -> None:
    cache = Cache(packed_model("gemma3").config, calibration=calibration_of("llama"))
    with pytest.raises(NybbleError, match="another model"):
        run(packed_model("gemma3"), text(9), cache, [9])
