"""lmdeploy_int4 and lmdeploy_int8 against numbers worked out from LMDeploy's fill_kv_cache.py."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nybble.formats.lmdeploy import TYPES, LMDeployInt

INT4, INT8 = TYPES
heads = st.lists(st.floats(-1e3, 1e3, width=32), min_size=8, max_size=8)


def test_int4_bytes() -> None:
    # scale (10 + 5) / 15 = 1 (fp16 0x3C00), zero 5 (0x4500); codes 0, 15, 5, 2.5 + 5 + 0.5 = 8.
    # The first half of the head is in the low nibbles.
    data = INT4.quantize(torch.tensor([[-5.0, 10.0, 0.0, 2.5]]))
    assert data.tolist() == [[0x50, 0x8F, 0x00, 0x3C, 0x00, 0x45]]
    assert INT4.dequantize(data, 4).tolist() == [[-5.0, 10.0, 0.0, 3.0]]


def test_int8_bytes() -> None:
    # scale (254 + 1) / 255 = 1, zero 1; codes 0, 255, 1, 0.5 + 1 + 0.5 = 2.
    data = INT8.quantize(torch.tensor([[-1.0, 254.0, 0.0, 0.5]]))
    assert data.tolist() == [[0x00, 0xFF, 0x01, 0x02, 0x00, 0x3C, 0x00, 0x3C]]
    assert INT8.dequantize(data, 4).tolist() == [[-1.0, 254.0, 0.0, 1.0]]


def test_codes_are_made_before_the_scale_is_rounded() -> None:
    # scale 1 / 15 is 0.06666 in fp16 (0x2C44); 9.4 and 9.6 steps are codes 9 and 10.
    data = INT4.quantize(torch.tensor([[0.0, 1.0, 9.4 / 15, 9.6 / 15]]))
    assert data.tolist() == [[0x90, 0xAF, 0x44, 0x2C, 0x00, 0x00]]


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_equal_values_read_back_as_zeros(kind: LMDeployInt) -> None:
    # The kernel divides 0 by 0 here.
    assert (kind.roundtrip(torch.full((1, 8), 3.0)) == 0).all()


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
@given(heads)
@settings(deadline=None)
def test_error(kind: LMDeployInt, head: list[float]) -> None:
    x = torch.tensor([head])
    top = 2**kind.width - 1
    step = (x.max() - x.min()).item() / top
    assume(step > 1e-3)  # an fp16 scale with all its bits
    zero = abs(x.min().item() / step)
    assume(zero < 60000)
    back = kind.roundtrip(x)
    # Half a step, and the rounding of scale and zero point to 11 bits each.
    bound = step * (0.5 + (top + 2 * zero) * 2**-11) * 1.001
    assert (back - x).abs().max().item() <= bound
