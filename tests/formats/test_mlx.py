"""mlx_4 and mlx_8 against mx.quantize of mlx 0.32.4 (mlx-cpu wheel on Linux, float16 input)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

torch = pytest.importorskip("torch")

from nybble.formats.mlx import TYPES, Mlx  # noqa: E402

MLX_4, MLX_8 = TYPES

_I = torch.arange(64)
ROWS = {
    "ramp": (_I - 20) / 8,
    "wave": (_I * 37 % 64 - 40) / 16 * (1 + _I % 3),
    "negative": -1 - (_I * 29 % 64) / 64,
    "positive": 3 + (_I * 29 % 64) / 32,
}
# mx.quantize(mx.array(row).astype(mx.float16), group_size=64, bits=b): codes, scale, bias.
ENGINE = {
    ("ramp", 4): "efeededdddccccbbbbaaaa9a9989887877776666555544443333232212110100 4db8 6045",
    (
        "ramp",
        8,
    ): "fffbf7f3efebe7e3dfdbd6d2cecac6c2bebab6b2aeaaa6a29e9a96928e8a86817d7975716d6965615d"
    "5955514d4945413d3935312d2824201c1814100c080400 e8a7 6045",
    ("wave", 4): "96b2e6498a6c9ca1d6e9794b8ba0c5d8783a7bafb4d8772a7b9fa4c8c6196a9e b339 20c7",
    (
        "wave",
        8,
    ): "699922ac69ea9439a27cbe5abe8e11a65ed98ee39176b348b98300a152c888d88070a837b377ff9b47"
    "b783cd6f6b9c26ad6cef953ca67dc15ec09115a861de90 a129 20c7",
    ("negative", 4): "8f91b3c4e507183a4b6d7e90a2b3d4e607293a5c6d8e91a2c4d5f618294b5c7d 3c2c f0bf",
    (
        "negative",
        8,
    ): "ff8a14a22dba45d25deb75008e18a631be49d761ef7904921caa35c24ddb65f37d089620ae39c6"
    "51df69f7820c9a24b23dca55e36dfb86109e28b641ce59e771 e81b f0bf",
    ("positive", 4): "8fa1b3c4e507183a4b6d7e90a2b3d5e607293a5c6d8f91b2c4d5f618294b5c7e 2fb0 f844",
    (
        "positive",
        8,
    ): "ff8a14a22dba45d35deb75008e18a631be49d761ef7a04921caa35c24ddb65f37e089620ae39c6"
    "51df69f7820c9a24b23dcb55e36dfb86109e29b641cf59e771 e79f f844",
}


def stored(kind: Mlx, x: torch.Tensor) -> str:
    return bytes(kind.quantize(x[None])[0].tolist()).hex()


@pytest.mark.parametrize(("row", "width"), ENGINE)
def test_bytes_are_the_engines(row: str, width: int) -> None:
    kind = MLX_4 if width == 4 else MLX_8
    assert stored(kind, ROWS[row]) == ENGINE[row, width].replace(" ", "")


def test_two_groups_keep_codes_scales_and_biases_apart() -> None:
    first, second = (ENGINE[name, 4].split() for name in ("ramp", "wave"))
    want = "".join(a + b for a, b in zip(first, second, strict=True))
    assert stored(MLX_4, torch.cat([ROWS["ramp"], ROWS["wave"]])) == want


def test_zeros() -> None:
    # The scale is -eps = -1e-7, in fp16 -2 * 2^-24 = 0x8002; bias and codes are 0.
    assert stored(MLX_4, torch.zeros(64)) == "00" * 32 + "0280" + "0000"


def test_zero_stays_zero() -> None:
    # (5 - -2) / 15 = 0.4667; 5 / 0.4667 = 10.7 -> 11 scales of 0.4545: zero is code 11, and -2
    # would be code 15.4, cut to 15: -1.82.
    x = torch.tensor([5.0, -2.0] + [0.0] * 62)
    assert stored(MLX_4, x)[:4] == "f0bb"
    back = MLX_4.roundtrip(x[None])[0]
    assert back[0] == 5 and back[1] == pytest.approx(5 - 15 * 5 / 11, abs=2e-3)
    assert back[2:].abs().max() < 2e-3  # 5 / 11 is rounded to fp16


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float16, (3, 128), elements=st.floats(-3000, 3000, width=16)), st.sampled_from(TYPES)
)
def test_error_is_within_a_step(values: np.ndarray, kind: Mlx) -> None:
    x = torch.from_numpy(values).float().unflatten(-1, (2, 64))
    back = kind.roundtrip(x.flatten(-2)).unflatten(-1, (2, 64))
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    top, edge = 2**kind.width - 1, torch.maximum(low.abs(), high.abs())
    step = (high - low) / top
    # Half a step, or all of one where the far end is cut; the step may grow by half of itself
    # in the count to the edge. Scale and bias are rounded to fp16.
    slack = (high - low + edge) * 2.0**-10 + top * 2.0**-24 + 1e-6
    assert ((back - x).abs() <= step * 1.1 + slack).all()
