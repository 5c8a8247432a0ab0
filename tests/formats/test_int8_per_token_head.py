"""int8_per_token_head against numbers worked out from vLLM's kernel."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nybble.formats.int8_per_token_head import TYPES

INT8 = TYPES[0]
heads = st.lists(st.floats(-1e4, 1e4, width=32), min_size=8, max_size=8)


def test_bytes_of_a_head() -> None:
    # _reshape_cache_per_token_head: scale = 15.875 / 127 = 1/8, so codes are 8 x, rounded half
    # away from zero: 127, -127 (0x81), 0.5 -> 1, -1.5 -> -2 (0xFE).
    data = INT8.quantize(torch.tensor([[15.875, -15.875, 0.0625, -0.1875]]))
    assert data.tolist() == [[0x7F, 0x81, 0x01, 0xFE, 0x00, 0x00, 0x00, 0x3E]]  # 1/8 = 0x3E000000
    assert INT8.dequantize(data, 4).tolist() == [[15.875, -15.875, 0.125, -0.25]]


def test_smallest_scale() -> None:
    # Below 127e-6 the scale stays at 1e-6: 4e-7 and 6e-7 are codes 0 and 1.
    back = INT8.roundtrip(torch.tensor([[4e-7, -6e-7, 2e-6, 0.0]]))
    torch.testing.assert_close(back, torch.tensor([[0.0, -1e-6, 2e-6, 0.0]]))


@given(heads)
@settings(deadline=None)
def test_error_is_half_a_step(head: list[float]) -> None:
    x = torch.tensor([head])
    back = INT8.roundtrip(x)
    step = max(x.abs().max().item() / 127, 1e-6)
    assert (back - x).abs().max().item() <= step * 0.5001
    torch.testing.assert_close(INT8.roundtrip(back), back)
