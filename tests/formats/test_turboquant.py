"""turboquant_k4 and turboquant_v4 against numbers worked out from vLLM's kernels."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nybble.formats.turboquant import TYPES, lloyd_max_levels

KEY, VALUE = TYPES
heads = st.lists(st.floats(-1e3, 1e3, width=32), min_size=8, max_size=8)

# solve_lloyd_max(128, 4) of vLLM 0.32.0's turboquant/centroids.py, upper half as it prints.
UPPER_128 = [0.011352, 0.034307, 0.058061, 0.083301, 0.111039, 0.143002, 0.182827, 0.241382]

# J. Max, "Quantizing for minimum distortion" (1960), table I: 16 levels for N(0, 1).
MAX_LEVELS = (0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733)


def sylvester(n: int) -> torch.Tensor:
    """Normalised; entry i, j is negative where i and j share an odd number of ones."""
    return (
        torch.tensor([[(-1.0) ** (i & j).bit_count() for j in range(n)] for i in range(n)]) / n**0.5
    )


@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_levels_are_nearly_the_optimal_ones(head_dim: int) -> None:
    # The iteration ends near Max's table, not at it: 2.731 for 2.733.
    levels = lloyd_max_levels(head_dim) * head_dim**0.5
    expected = torch.tensor([-v for v in reversed(MAX_LEVELS)] + list(MAX_LEVELS))
    torch.testing.assert_close(levels, expected, rtol=0, atol=0.003)


def test_levels_of_a_head_of_128() -> None:
    assert [round(v, 6) for v in lloyd_max_levels(128)[8:].tolist()] == UPPER_128


def test_bytes_of_a_key() -> None:
    # Turned direction: 0.3 is 1.2 deviations of N(0, 1/16), 0.187 is 0.75. Max's boundaries
    # 1.099, 1.437 and 0.522, 0.800 put them in cells 12 and 10; their negatives in 3 and 5.
    small = (1 / 8 - 0.09) ** 0.5
    turned = torch.tensor([0.3, -0.3] * 4 + [small, -small] * 4)
    data = KEY.quantize((2 * turned @ sylvester(16))[None])
    assert data.tolist() == [[0x3C] * 4 + [0x5A] * 4 + [0x00, 0x40]]  # length 2.0
    # Read back: levels 1.256 and 0.6568, scaled to length 2 again.
    level = torch.tensor([1.256, -1.256] * 4 + [0.6568, -0.6568] * 4)
    expected = 2 * level / level.norm()
    back = KEY.dequantize(data, 16)[0] @ sylvester(16)
    torch.testing.assert_close(back, expected, rtol=0, atol=0.002)


@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_keys_keep_their_length(head_dim: int) -> None:
    x = torch.randn(50, head_dim, generator=torch.Generator().manual_seed(0)) * 3
    back = KEY.roundtrip(x)
    torch.testing.assert_close(back.norm(dim=-1), x.norm(dim=-1), rtol=2**-11 * 1.1, atol=0)
    # Mean squared error of the quantizer for the law itself: 0.0095 (Max, table I).
    assert 0.0080 < ((back - x).square().sum() / x.square().sum()).item() < 0.0105


def test_bytes_of_a_value() -> None:
    # _store_quantized_value: scale (10 + 5) / 15 = 1 (fp16 0x3C00), minimum -5 (0xC500); codes
    # 0, 15, 5 and 2.5 + 5 + 0.5 = 8, even channel low.
    data = VALUE.quantize(torch.tensor([[-5.0, 10.0, 0.0, 2.5]]))
    assert data.tolist() == [[0xF0, 0x85, 0x00, 0x3C, 0x00, 0xC5]]
    assert VALUE.dequantize(data, 4).tolist() == [[-5.0, 10.0, 0.0, 3.0]]


def test_equal_values_keep_their_value() -> None:
    assert (VALUE.roundtrip(torch.full((1, 8), 3.0)) == 3).all()


@given(heads)
@settings(deadline=None)
def test_error_of_a_value(head: list[float]) -> None:
    x = torch.tensor([head])
    step = (x.max() - x.min()).item() / 15
    back = VALUE.roundtrip(x)
    # Half a step, and the rounding of scale and minimum to fp16 (2^-25 where subnormal).
    bound = 0.5 * step + 15 * max(step * 2**-11, 2**-25) + max(abs(x.min().item()) * 2**-11, 2**-25)
    assert (back - x).abs().max().item() <= bound * 1.001
