"""nvfp4 against numbers worked out from FlashInfer's and vLLM's store kernels."""

from __future__ import annotations

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nybble.formats.nvfp4 import TYPES, e2m1_codes, e2m1_values

NVFP4, FOUR_OVER_SIX = TYPES
blocks = st.lists(st.floats(-2000, 2000, width=32), min_size=16, max_size=16)


def test_every_code() -> None:
    codes = torch.arange(16, dtype=torch.uint8)
    values = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert e2m1_values(codes).tolist() == values + [-v for v in values]
    assert torch.equal(e2m1_codes(e2m1_values(codes)), codes)


def test_bytes_of_a_block() -> None:
    # nvfp4_append_quantize_block: scale 6 / 6 = 1 (e4m3 0x38). Boundaries belong to the even
    # code: 0.25 -> 0, 0.75 -> 2, 1.25 -> 2, 1.75 -> 4, 2.5 -> 4, 3.5 -> 6, 5 -> 6; -0.2 is -0.
    block = [6, -6, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, -0.2, 0.26, 0.74, 1.3, 4.9, 5.1, 0]
    data = NVFP4.quantize(torch.tensor([block]))
    assert data.tolist() == [[0xF7, 0x20, 0x42, 0x64, 0x86, 0x11, 0x63, 0x07, 0x38]]
    back = [6, -6, 0, 1, 1, 2, 2, 4, 4, 0, 0.5, 0.5, 1.5, 4, 6, 0]
    assert NVFP4.dequantize(data, 16).tolist() == [back]


def test_scales_follow_the_codes() -> None:
    # Two blocks: 8 bytes of codes each, then both scales: 12 / 6 = 2 (0x40), 0.75 / 6 = 1/8 (0x20).
    data = NVFP4.quantize(torch.tensor([[12.0] * 16 + [0.75] * 16]))
    assert data.tolist() == [[0x77] * 16 + [0x40, 0x20]]


def test_codes_use_the_rounded_scale() -> None:
    # 4 / 6 = 0.667 rounds to 0.6875 (1.375 / 2, 0x33); 4 / 0.6875 = 5.8 is code 6.
    data = NVFP4.quantize(torch.tensor([[4.0] + [0.0] * 15]))
    assert data[0, -1].item() == 0x33
    assert NVFP4.dequantize(data, 16)[0, 0].item() == 6 * 0.6875


def test_range_without_a_tensor_scale() -> None:
    # The largest scale is 448; the smallest 2^-9, half of which rounds to 0.
    assert NVFP4.roundtrip(torch.full((1, 16), 1e6)).max().item() == 448 * 6
    assert (NVFP4.roundtrip(torch.full((1, 16), 6 * 2.0**-10)) == 0).all()
    assert (NVFP4.roundtrip(torch.full((1, 16), 6 * 2.0**-9)) == 6 * 2.0**-9).all()


def test_four_over_six_takes_the_better_scale() -> None:
    # With 4 as the largest code the scale is 1 and all is exact; with 6 it is 0.6875.
    exact = torch.tensor([[4.0, 3, 2, 1, 0.5, 1.5, -4, -3] + [0.0] * 8])
    data = FOUR_OVER_SIX.quantize(exact)
    assert data[0, -1].item() == 0x38
    assert torch.equal(FOUR_OVER_SIX.dequantize(data, 16), exact)
    # 6, 4 and 0.5 are exact with 6 and not with 4: same bytes as nvfp4. Ties stay with 6.
    for block in ([6.0, 4, 0.5] + [0.0] * 13, [0.0] * 16):
        x = torch.tensor([block])
        assert torch.equal(FOUR_OVER_SIX.quantize(x), NVFP4.quantize(x))


@given(blocks)
@settings(deadline=None)
def test_error_of_a_block(block: list[float]) -> None:
    x = torch.tensor([block])
    largest = x.abs().max().item()
    assume(largest > 0.1)
    back = NVFP4.roundtrip(x)
    scale = (x.abs().max() / 6).to(torch.float8_e4m3fn).float().item()
    # Half of the widest gap (4 to 6), or what a scale rounded down cuts off.
    assert (back - x).abs().max().item() <= max(scale, largest - 6 * scale) * 1.0001
    assert torch.equal(NVFP4.roundtrip(back), back)
    better = (FOUR_OVER_SIX.roundtrip(x) - x).square().sum()
    assert better.item() <= (back - x).square().sum().item() * 1.0001
