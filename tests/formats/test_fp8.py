"""fp8_e4m3 and fp8_e5m2 against the bit patterns of the two formats."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nybble.formats.fp8 import TYPES

E4M3, E5M2 = TYPES
INF, NAN = float("inf"), float("nan")

# e4m3: sign, 4 bits of exponent (bias 7), 3 of mantissa; 0x7E is 1.75 * 2^8, 0x7F is NaN.
# e5m2: sign, 5 bits of exponent (bias 15), 2 of mantissa; 0x7B is 1.75 * 2^15, 0x7C infinity.
E4M3_BYTES = [
    (1.0, 0x38),
    (-1.5, 0xBC),
    (1.0625, 0x38),  # tie of 1.0 and 1.125: even mantissa
    (1.1875, 0x3A),  # tie of 1.125 and 1.25
    (448.0, 0x7E),
    (464.0, 0x7E),  # would round to 480, which is NaN's place
    (1e9, 0x7E),
    (INF, 0x7E),
    (-INF, 0xFE),
    (2.0**-9, 0x01),  # smallest
    (2.0**-10, 0x00),  # tie of 0 and 2^-9
    (3 * 2.0**-10, 0x02),  # tie of 2^-9 and 2^-8
    (-0.0, 0x80),
]
E5M2_BYTES = [
    (1.0, 0x3C),
    (-1.5, 0xBE),
    (1.125, 0x3C),  # tie of 1.0 and 1.25
    (1.375, 0x3E),  # tie of 1.25 and 1.5
    (57344.0, 0x7B),
    (61440.0, 0x7B),  # tie of 57344 and 65536: saturated, not infinity
    (INF, 0x7B),
    (-INF, 0xFB),
    (2.0**-16, 0x01),
    (2.0**-17, 0x00),
]


@pytest.mark.parametrize(("value", "byte"), E4M3_BYTES)
def test_e4m3_bytes(value: float, byte: int) -> None:
    assert E4M3.quantize(torch.tensor([value])).tolist() == [byte]


@pytest.mark.parametrize(("value", "byte"), E5M2_BYTES)
def test_e5m2_bytes(value: float, byte: int) -> None:
    assert E5M2.quantize(torch.tensor([value])).tolist() == [byte]


def test_nan_stays_nan() -> None:
    for kind in TYPES:
        assert kind.roundtrip(torch.tensor([[NAN]])).isnan().all()


@given(st.floats(-448, 448, width=32))
@settings(deadline=None)
def test_e4m3_error(value: float) -> None:
    back = E4M3.roundtrip(torch.tensor([[value]]))
    # Half of a step of 1/8 of the power of two below, or half of the smallest step.
    assert abs(back.item() - value) <= max(abs(value) / 16, 2**-10)
    assert torch.equal(E4M3.roundtrip(back), back)


@given(st.floats(-57344, 57344, width=32))
@settings(deadline=None)
def test_e5m2_error(value: float) -> None:
    back = E5M2.roundtrip(torch.tensor([[value]]))
    assert abs(back.item() - value) <= max(abs(value) / 8, 2**-17)
    assert torch.equal(E5M2.roundtrip(back), back)
