"""fp4_mx_block16 against numbers worked out from SGLang's FP4MXBlock16KVQuantizeUtil."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nybble.formats.fp4_mx_block16 import TYPES

MX = TYPES[0]
blocks = st.lists(st.floats(-1e6, 1e6, width=32), min_size=16, max_size=16)


def test_bytes_of_a_block() -> None:
    # 5 / 6 lies below 1: 2^0, byte 127. Boundaries belong to the code above: 0.25 -> 0.5,
    # 0.75 -> 1, ... 5 -> 6; -0.2 keeps its sign, -0.0 does not.
    block = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, -5, -0.2, -0.0, 0.24, -0.25, 4.9, 3.4, 2.4, 0]
    data = MX.quantize(torch.tensor([block]))
    assert data.tolist() == [[0x21, 0x43, 0x65, 0xF7, 0x08, 0x90, 0x56, 0x04, 127]]
    back = [0.5, 1, 1.5, 2, 3, 4, 6, -6, 0, 0, 0, -0.5, 4, 3, 2, 0]
    assert MX.dequantize(data, 16).tolist() == [back]


def test_scale_is_rounded_up() -> None:
    # 6 needs 2^0, 6.5 needs 2^1 (3.25 is code 3), 0.75 = 6 / 8 needs 2^-3.
    x = torch.tensor([[6.0] * 16 + [6.5] * 16 + [0.75] * 16])
    data = MX.quantize(x)
    assert data[0, 24:].tolist() == [127, 128, 124]
    assert MX.dequantize(data, 48)[0, ::16].tolist() == [6.0, 6.0, 0.75]


def test_smallest_scale() -> None:
    # max(largest / 6, 1e-10): log2 of 1e-10 is -33.2, so zeros carry byte 127 - 33.
    assert MX.quantize(torch.zeros(1, 16)).tolist() == [[0] * 8 + [94]]


@given(blocks)
@settings(deadline=None)
def test_error_of_a_block(block: list[float]) -> None:
    x = torch.tensor([block])
    back = MX.roundtrip(x)
    largest = x.abs().max().item()
    # The scale lies between largest / 6 and its double; half of the gap from 4 to 6 is one scale.
    assert (back - x).abs().max().item() <= max(largest / 3, 1e-9)
    assert torch.equal(MX.roundtrip(back), back)
