"""nyb4 on the largest heads there are."""

from __future__ import annotations

import torch

from nybble.formats.calibration import LayerCalibration, LayerMoments
from nybble.formats.registry import kv_type


def test_large_heads_are_bound_on_two_threads() -> None:
    """Four heads of 512, Gemma 4 31B's: inverting them as one batch failed in MKL."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(4, 700, 512, generator=generator, dtype=torch.float64)
    moment = x.mT @ x / 700
    moments = LayerMoments(x.mean(1), moment, moment.flip(-1).flip(-2), x.mean(1), torch.ones(4))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        kind = kv_type("nyb4").of_side("K").bind(LayerCalibration.fit(moments), "K", "cpu")
    finally:
        torch.set_num_threads(threads)
    keys = x[:, :16].float()
    assert (kind.roundtrip(keys) - keys).norm() < 0.1 * keys.norm()
