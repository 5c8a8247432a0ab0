"""exl2_q4 and exl2_q8; vectors worked out from ExLlamaV2 0.3.2, cuda/cache_q.cuh."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

torch = pytest.importorskip("torch")

from nybble.formats.codes import butterfly  # noqa: E402
from nybble.formats.exl2 import TYPES, ExLlamaV2  # noqa: E402

Q4, Q8 = TYPES


def stored(kind: ExLlamaV2, x: torch.Tensor) -> str:
    return bytes(kind.quantize(x[None])[0].tolist()).hex()


def turned(x: torch.Tensor) -> torch.Tensor:
    """Scale groups of the normalised transform over even and over odd channels, float64."""
    pairs = x.double().unflatten(-1, (2, 32, 2)).transpose(-1, -2)
    w = butterfly(pairs).transpose(-1, -2) * 32**-0.5
    return w.flatten(-3).unflatten(-1, (4, 32))


def test_ones() -> None:
    # The transform of 32 ones is 32, 0, 0, ...: lane 0 of the even and of the odd channels, so
    # channels 0 and 1 of the result. 32 / 32 * 8 + 8 = 16 is cut to 15, zeros have code 8;
    # scale 32 / 8 = 4.0 = 0x4400. The second 32 are 0 / 0, code 0, with scale 0.
    x = torch.ones(64)
    assert stored(Q4, x) == "ff" + "88" * 15 + "00" * 16 + "0044" + "0000"
    assert stored(Q8, x) == "ffff" + "80" * 30 + "00" * 32 + "0034" + "0000"  # 32 / 128 = 0.25
    assert (Q4.roundtrip(x[None]) == (15 - 8) * 4 / 32).all()
    assert (Q8.roundtrip(x[None]) == (255 - 128) * 0.25 / 32).all()


def test_minus_ones_are_exact() -> None:
    x = torch.full((1, 64), -1.0)  # -8 * 4 / 32: only the positive end is cut
    assert torch.equal(Q4.roundtrip(x), x) and torch.equal(Q8.roundtrip(x), x)


def test_one_channel() -> None:
    # Channel 0 alone: 1 in all 32 even channels, 0 in the odd; 1 / 8 = 0x3000, 1 / 128 = 0x2000.
    x = torch.eye(64)[0]
    assert stored(Q4, x) == "8f" * 32 + "0030" * 2
    assert stored(Q8, x) == "ff80" * 32 + "0020" * 2
    assert torch.equal(Q4.roundtrip(x[None])[0], x * 0.875)


def test_ties_go_to_the_even_code() -> None:
    # Even channels whose transform is 16, 1, 3, 0, ...: channel 2 t holds
    # (16 + 1 * (-1)^t + 3 * (-1)^(t >> 1)) / 32. 1 / 16 * 8 + 8 = 8.5 -> 8, 3 / 16 -> 9.5 -> 10.
    t = torch.arange(32)
    w = (16 + (1 - 2 * (t & 1)) + 3 * (1 - 2 * (t >> 1 & 1))) / 32
    even = torch.stack([w, torch.zeros(32)], -1).flatten()
    odd = torch.stack([torch.zeros(32), w], -1).flatten()
    assert stored(Q4, even) == "8f888a" + "88" * 13 + "00" * 16 + "0040" + "0000"
    assert stored(Q4, odd) == "f888a8" + "88" * 13 + "00" * 16 + "0040" + "0000"


def test_one_nan_among_numbers_is_passed_over() -> None:
    # The even half of the transform is all NaN, code 0; __hmax keeps the numbers of the odd half.
    x = torch.ones(64)
    x[0] = torch.nan
    assert stored(Q4, x) == "f0" + "80" * 15 + "00" * 16 + "0044" + "0000"


@settings(max_examples=50, deadline=None)
@given(arrays(np.float16, (4, 128), elements=st.floats(-60, 60, width=16)), st.sampled_from(TYPES))
def test_error_is_within_a_step(values: np.ndarray, kind: ExLlamaV2) -> None:
    x = torch.from_numpy(values)
    w, got = turned(x), turned(kind.roundtrip(x))
    step = w.abs().amax(-1, keepdim=True) / 2 ** (kind.width - 1)
    # One step at the positive end; fp16 rounds in ten stages, each relative to the largest sum.
    slack = x.abs().amax(-1, keepdim=True)[..., None] * 32**0.5 * 10 * 2.0**-11 + 1e-5
    assert ((got - w).abs() <= step + slack).all()
