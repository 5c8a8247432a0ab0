"""int4_per_token_head against numbers worked out from vLLM's int4_per_token_head.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nybble.formats.int4_per_token_head import TYPES, signs

INT4 = TYPES[0]
heads = st.lists(st.floats(-1e3, 1e3, width=32), min_size=16, max_size=16)


def sylvester(n: int) -> torch.Tensor:
    """Entry i, j is -1 to the number of ones that i and j share."""
    return torch.tensor([[(-1.0) ** (i & j).bit_count() for j in range(n)] for i in range(n)])


def unturned(turned: list[float]) -> torch.Tensor:
    """The head that the engine turns into these channels."""
    n = len(turned)
    return (torch.tensor(turned) @ sylvester(n)) / n * signs(n)


@pytest.mark.parametrize("n", [8, 64, 128])
def test_signs_are_the_mersenne_twisters(n: int) -> None:
    # torch's CPU generator is MT19937 seeded with init_genrand; a float32 uniform draw is the
    # low 24 bits over 2^24, and bernoulli(0.5) is whether it lies below a half.
    draws = np.random.MT19937()
    draws._legacy_seeding(0x9E3779B9)
    low = draws.random_raw(n) & 0xFFFFFF
    assert signs(n).tolist() == [1.0 if d < 1 << 23 else -1.0 for d in low]


def test_bytes_of_a_head() -> None:
    # Turned channels from -5 to 10: scale (10 + 5) / 15 = 1, zero point 5. Codes are the channel
    # plus 5, rounded half up: 1.5 -> 7, 2.5 -> 8, -1.5 -> 4. Pairs: even channel low.
    turned = [-5.0, 10.0, 0.0, 1.5, 2.5, -1.5, 3.0, 4.0]
    data = INT4.quantize(unturned(turned)[None])
    # The scale's bytes: 1.0 = 0x3F800000, with 5 in the lowest 4 bits.
    assert data.tolist() == [[0xF0, 0x75, 0x48, 0x98, 0x05, 0x00, 0x80, 0x3F]]
    stored = [-5.0, 10.0, 0.0, 2.0, 3.0, -1.0, 3.0, 4.0]
    torch.testing.assert_close(INT4.dequantize(data, 8)[0], unturned(stored))


def test_zero_point_hides_below_the_scale() -> None:
    # scale = 3.3 / 15 has ones in its lowest mantissa bits; a reader sees them cleared.
    data = INT4.quantize(unturned([-1.1, 2.2, 0, 0, 0, 0, 0, 0])[None])
    bits = int.from_bytes(bytes(data[0, 4:].tolist()), "little")
    assert bits & 15 == 5  # 1.1 / 0.22
    scale = np.array([bits & ~15], np.uint32).view(np.float32)[0]
    assert 0 <= 0.22 / scale - 1 < 2.0**-18


def test_one_sided_heads_are_clipped() -> None:
    # 20 to 35: the zero point would be -20 and is held at 0, so code 15 stands for all.
    head = unturned([20.0, 35.0, 20, 20, 20, 20, 20, 20])
    torch.testing.assert_close(INT4.roundtrip(head[None])[0], unturned([15.0] * 8))


def test_blocks_of_other_head_sizes() -> None:
    # 24 = 3 x 8: every 8 channels turn alike, with the same signs; one scale for all.
    parts = [[-5.0, 10, 0, 1, 2, 3, 4, 5], [1.0, 2, 3, 4, 5, 6, 7, 8], [0.0] * 8]
    head = torch.cat([unturned(p) for p in parts])
    data = INT4.quantize(head[None])
    assert data[0, 4:8].tolist() == [0x76, 0x98, 0xBA, 0xDC]
    assert data[0, 8:12].tolist() == [0x55] * 4
    torch.testing.assert_close(INT4.dequantize(data, 24)[0], head)


@given(heads)
@settings(deadline=None)
def test_error_is_half_a_step_of_the_turned_head(head: list[float]) -> None:
    x = torch.tensor([head])
    turned = (x * signs(16)) @ sylvester(16)
    assume(turned.min() < 0 < turned.max())
    step = max((turned.max() - turned.min()).item() / 15, 1e-6)
    back = INT4.roundtrip(x)
    error = ((back - x) * signs(16)) @ sylvester(16)
    assert error.abs().max().item() <= step * 0.501
