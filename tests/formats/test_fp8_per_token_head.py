"""fp8_per_token_head against numbers worked out from vLLM's kernel."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nybble.formats.fp8_per_token_head import TYPES

FP8 = TYPES[0]
heads = st.lists(st.floats(-1e4, 1e4, width=32), min_size=8, max_size=8)


def test_bytes_of_a_head() -> None:
    # scale = 14 / 448 = 1/32; 14 -> 448 (0x7E), -7 -> -224 = -1.75 * 2^7 (0xF6),
    # 1.0625 / 32 -> 1.0625, a tie that goes to 1.0 (0x38).
    data = FP8.quantize(torch.tensor([[14.0, -7.0, 1.0625 / 32, 0.0]]))
    assert data.tolist() == [[0x7E, 0xF6, 0x38, 0x00, 0x00, 0x00, 0x00, 0x3D]]
    assert FP8.dequantize(data, 4).tolist() == [[14.0, -7.0, 1 / 32, 0.0]]


@given(heads)
@settings(deadline=None)
def test_error_follows_the_value(head: list[float]) -> None:
    x = torch.tensor([head])
    back = FP8.roundtrip(x)
    scale = max(x.abs().max().item() / 448, 1e-6)
    bound = torch.maximum(x.abs() / 16, torch.tensor(scale * 2**-10)) * 1.0001
    assert ((back - x).abs() <= bound).all()
    torch.testing.assert_close(FP8.roundtrip(back), back)
