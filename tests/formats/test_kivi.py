"""The KIVI types; vectors worked out from jy-yuan/KIVI, quant/new_pack.py."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

torch = pytest.importorskip("torch")

from nybble.formats.kivi import TYPES, Kivi  # noqa: E402
from nybble.formats.reads import Reads  # noqa: E402

K4, V4, K2, V2 = TYPES

# 0, 0.5, ..., 15, 15: scale 1 = 0x3C00, minimum 0; ties to even: 0 0 1 2 2 2 3 4 4 4 5 6 ...
HALVES = torch.arange(32).clamp(max=30) / 2
HALVES_4 = "00212243446566878 8a9aacbccedeeff".replace(" ", "")
# 0 .. 31: scale 31 / 3 = 10.33, in fp16 1323 / 128 = 10.3359 = 0x492B. 5 / 10.3359 = 0.48 is the
# last 0, 15 (1.45) the last 1, 25 (2.42) the last 2.
RAMP = torch.arange(32.0)
RAMP_2 = "00505555" + "aaaafaff"


def stored(kind: Kivi, x: torch.Tensor) -> str:
    return bytes(kind.quantize(x).flatten().tolist()).hex()


def test_names() -> None:
    assert [t.name for t in TYPES] == ["kivi_k4", "kivi_v4", "kivi_k2", "kivi_v2"]
    assert all(not t.engines for t in TYPES)


def test_values_by_token() -> None:
    assert stored(V4, HALVES[None]) == HALVES_4 + "003c" + "0000"
    assert stored(V2, RAMP[None]) == RAMP_2 + "2b49" + "0000"
    # Two groups, the second three lower: codes, then both scales, then both minima (-3 = 0xC200).
    two = torch.cat([HALVES, HALVES - 3])[None]
    assert stored(V4, two) == HALVES_4 * 2 + "003c" * 2 + "0000" + "00c2"


def test_keys_by_channel() -> None:
    # Channel 0 ramps over the tokens; channel 1 is 5 = 0x4500 throughout, scale 0.
    x = torch.stack([HALVES, torch.full((32,), 5.0)], -1)
    assert stored(K4, x) == HALVES_4 + "00" * 16 + "003c" + "0000" + "0000" + "0045"
    assert torch.equal(K4.roundtrip(x)[:, 1], x[:, 1])
    x = torch.stack([torch.full((32,), 5.0), RAMP], -1)
    assert stored(K2, x) == "00" * 8 + RAMP_2 + "0000" + "2b49" + "0045" + "0000"


def test_read_back_in_float32() -> None:
    # 3 * 10.3359375 = 31.0078125, which fp16 would round to 31.
    assert V2.roundtrip(RAMP[None])[0, 31] == 31.0078125


def test_keys_are_values_turned() -> None:
    x = torch.randn(2, 64, 32, generator=torch.Generator().manual_seed(6))
    turned = x.unflatten(-2, (2, 32)).transpose(-1, -2)
    want = V4.roundtrip(turned).transpose(-1, -2).flatten(-3, -2)
    assert torch.equal(K4.roundtrip(x), want)


def test_tokens_short_of_a_group_stay() -> None:
    x = torch.randn(2, 40, 48, generator=torch.Generator().manual_seed(7))
    assert torch.equal(K4.roundtrip(x)[:, 32:], x[:, 32:])
    assert K4.bytes_stored(40, 48) == 48 * (16 + 4) + 8 * 48 * 2


def test_windows() -> None:
    assert K4.reads == K2.reads == Reads("residual", 128)
    # A query sees the 128 values that are kept and its own.
    assert V4.reads.first_raw(torch.tensor([0, 128, 129, 500])).tolist() == [0, 0, 1, 372]


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float16, (32, 32), elements=st.floats(-3000, 3000, width=16)), st.sampled_from(TYPES)
)
def test_error(values: np.ndarray, kind: Kivi) -> None:
    x = torch.from_numpy(values).float()
    axis = -2 if kind.sides == "K" else -1
    back = kind.roundtrip(x)
    span = x.amax(axis, keepdim=True) - x.amin(axis, keepdim=True)
    slack = (span + x.abs().amax(axis, keepdim=True)) * 2.0**-9 + 2e-6  # roundings to fp16
    assert ((back - x).abs() <= span / (2**kind.width - 1) / 2 + slack).all()
