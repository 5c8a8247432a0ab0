"""exl3_2 to exl3_8; vectors worked out from ExLlamaV3 1.6.5, cache/q_cache_kernels.cuh."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

torch = pytest.importorskip("torch")

from nybble.formats.codes import butterfly  # noqa: E402
from nybble.formats.exl3 import TYPES, ExLlamaV3  # noqa: E402
from nybble.formats.rotation import hadamard  # noqa: E402

KINDS = {t.width: t for t in TYPES}

# Ones turn into sqrt(32) = 5.6569 and 31 zeros: the top code and 2^(k-1), the cell above zero.
# In planes, widest first, low bits first:
ONES = {
    2: "ab" + "aa" * 7,  # 3 and 2s
    3: "ab" + "aa" * 7 + "01000000",  # 7 = 11|1, 4 = 10|0
    4: "8f" + "88" * 15,  # 15 and 8s
    5: "8f" + "88" * 15 + "01000000",  # 31 = 1111|1, 16 = 1000|0
    6: "8f" + "88" * 15 + "03" + "00" * 7,  # 63 = 1111|11, 32 = 1000|00
    7: "8f" + "88" * 15 + "03" + "00" * 7 + "01000000",  # 127 = 1111|11|1, 64
    8: "ff" + "80" * 31,  # 255 and 128s
}


def stored(kind: ExLlamaV3, x: torch.Tensor) -> str:
    return bytes(kind.quantize(x[None])[0].tolist()).hex()


@pytest.mark.parametrize("width", KINDS)
def test_ones(width: int) -> None:
    # sqrt(32) in fp16 is 1448 / 256 = 5.65625 = 0x45A8.
    assert stored(KINDS[width], torch.ones(32)) == ONES[width] + "a845"


def test_zero_is_not_a_level() -> None:
    # 4 bits: 7.5 and 31 times 0.5, in units of 5.65625 * 0.1767767 / 8 = 0.1249867. Turned back,
    # channel 0 sums all: 23 units = 2.8747, the others 7.5 - 0.5 = 7 units = 0.8749; in fp16
    # 1472 / 512 and 1792 / 2048.
    back = KINDS[4].roundtrip(torch.ones(1, 32))[0].tolist()
    assert back == [2.875] + [0.875] * 31


def test_one_channel() -> None:
    # 1 / sqrt(32) everywhere: all codes 15, scale 1448 / 8192 = 0.1767578 = 0x31A8. Turned back:
    # 32 * 15 / 16 * 0.1767578 * 0.1767767 = 0.93740, in fp16 1920 / 2048.
    x = torch.eye(32)[0]
    assert stored(KINDS[4], x) == "ff" * 16 + "a831"
    assert torch.equal(KINDS[4].roundtrip(x[None])[0], x * 0.9375)


@pytest.mark.parametrize("width", KINDS)
def test_zeros_have_the_cell_above_zero(width: int) -> None:
    codes = "aa" * 8 if width < 4 else "88" * 16 if width < 8 else "80" * 32
    rest = 8 * width - len(codes)  # hex digits of the narrower planes
    assert stored(KINDS[width], torch.zeros(32)) == codes + "0" * rest + "0000"


@pytest.mark.parametrize("width", KINDS)
@pytest.mark.parametrize("channel", [0, 1, 9, 31])
def test_where_a_code_lies(width: int, channel: int) -> None:
    # Raise one code by its lowest bit: what is read changes by that column of the matrix.
    kind, narrowest = KINDS[width], width & -width
    at = (width - narrowest) * 4 + channel * narrowest // 8
    data = torch.zeros(1, kind.row_bytes(32), dtype=torch.uint8)
    data[0, -2:] = torch.tensor([0x00, 0x50])  # scale 32.0
    raised = data.clone()
    raised[0, at] = 1 << channel * narrowest % 8
    change = (kind.dequantize(raised, 32) - kind.dequantize(data, 32))[0]
    want = hadamard(32)[channel] * 32 / 2 ** (width - 1)
    # Channel 0 sums all codes and is too coarse in fp16; the others are 0 where codes are equal.
    assert torch.allclose(change[1:], want[1:], rtol=1e-3)


@settings(max_examples=60, deadline=None)
@given(arrays(np.float16, (4, 64), elements=st.floats(-60, 60, width=16)), st.sampled_from(TYPES))
def test_error_is_within_half_a_cell(values: np.ndarray, kind: ExLlamaV3) -> None:
    x = torch.from_numpy(values).double()
    w = butterfly(x.unflatten(-1, (2, 32))) * 32**-0.5
    back = butterfly(kind.roundtrip(x.float()).double().unflatten(-1, (2, 32))) * 32**-0.5
    largest = w.abs().amax(-1, keepdim=True)
    # Half a cell; the scale is off by 2^-11, and so is each channel when stored in fp16.
    slack = largest * 2.0**-11 * 8 + 1e-5
    assert ((back - w).abs() <= largest / 2**kind.width + slack).all()
