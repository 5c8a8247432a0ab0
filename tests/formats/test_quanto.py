"""quanto_2 and quanto_4 against optimum-quanto 0.2.7 through transformers 5.23.0."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

torch = pytest.importorskip("torch")

from nybble.formats.quanto import TYPES, Quanto  # noqa: E402
from nybble.formats.reads import Reads  # noqa: E402

QUANTO_4, QUANTO_2 = TYPES

_I = torch.arange(128)
TOKENS = ((_I * 37 % 128 - 50) / 16, (_I * _I * 29 % 128 - 60) / 32 * (1 + _I % 3))
# QuantoQuantizedLayer(nbits=b).update(x, x) with x = a token, float16 [1, 1, 1, 128]: the packed
# data, the scales and the shifts of its two groups.
ENGINE = {
    (0, 4): "70c4195da2e73b80c5196ea3f74c81d52a6eb3f84c91d52a6eb3084c91d62a7fb4085d92e63b7fc4195da2"
    "e73b80c5196da2e73b80c5196ea3f74c81d52a6eb3 33382b38 40420042",
    (1, 4): "25359f35a98b46247867aa77994677cb037877cb8acaaa9e88996346a989cabb50a9ed8999346398889e99"
    "ed8aaa677825fd7757a97799567836248b99139f56 cd39403a a045a045",
    (0, 2): "04090207080d0608090207090d06080d0207090e06080d0207090206080d0207090207080d060709020708"
    "0d0608090207080d0608090207090d06080d020709 40413541 40420042",
    (1, 2): "01050b050a0a050106050a050a05050a0106050a0a0a0a0b0a0a05050a0a0a0a040a0f0a0a05050a0a0b0a"
    "0f0a0a0506010f05050a050a050605010a0a010b05 4043d043 a045a045",
}


@pytest.mark.parametrize("token", [0, 1])
def test_bytes_of_4_bits_are_the_engines(token: int) -> None:
    got = bytes(QUANTO_4.quantize(TOKENS[token][None])[0].tolist()).hex()
    assert got == ENGINE[token, 4].replace(" ", "")


@pytest.mark.parametrize("token", [0, 1])
def test_codes_of_2_bits_are_the_engines(token: int) -> None:
    # Two groups do not fill the four places of a byte: quanto leaves the upper half empty and
    # takes 64 bytes; a real cache has groups enough. Place i of a byte holds group i there,
    # channels from 32 i on here.
    packed, *scales = ENGINE[token, 2].split()
    engine = torch.tensor(list(bytes.fromhex(packed)))
    codes = torch.cat([engine & 3, engine >> 2 & 3])
    want = codes[:32] | codes[32:64] << 2 | codes[64:96] << 4 | codes[96:] << 6
    got = QUANTO_2.quantize(TOKENS[token][None])[0]
    assert got[:32].tolist() == want.tolist()
    assert bytes(got[32:].tolist()).hex() == "".join(scales)


def test_read_back_as_the_engine_does() -> None:
    back = QUANTO_4.roundtrip(torch.stack(TOKENS))
    assert back[0, :4].tolist() == [-3.125, -1.025390625, 1.59765625, 3.69921875]
    assert back[1, -2:].tolist() == [1.40625, -1.71875]


def test_by_hand() -> None:
    # min -1, max 14: scale 1 = 0x3C00, shift 1; -0.5 + 1 = 0.5 -> 0 and 1.5 -> 2, ties to even.
    x = torch.tensor([-1.0, 14.0, -0.5, 0.5] + [0.0] * 60)
    data = bytes(QUANTO_4.quantize(x[None])[0].tolist())
    # Byte j holds channel j and, in its high half, channel 32 + j.
    assert data.hex() == "101f1012" + "11" * 28 + "003c" + "003c"


def test_window() -> None:
    assert all(t.reads == Reads("residual", 128) for t in TYPES)


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float16, (3, 128), elements=st.floats(-3000, 3000, width=16)), st.sampled_from(TYPES)
)
def test_error_and_second_time(values: np.ndarray, kind: Quanto) -> None:
    x = torch.from_numpy(values).float().unflatten(-1, (2, 64))
    back = kind.roundtrip(x.flatten(-2)).unflatten(-1, (2, 64))
    span = x.amax(-1, keepdim=True) - x.amin(-1, keepdim=True)
    slack = (span + x.abs().amax(-1, keepdim=True)) * 2.0**-8 + 2e-6  # five roundings to fp16
    assert ((back - x).abs() <= span / (2**kind.width - 1) / 2 + slack).all()
    again = kind.roundtrip(back.flatten(-2)).unflatten(-1, (2, 64))
    assert ((again - back).abs() <= slack).all()
