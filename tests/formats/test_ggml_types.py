"""The llama.cpp types by hand and by their properties; test_ggml.py has ggml's own code."""

from __future__ import annotations

import struct

import gguf
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

torch = pytest.importorskip("torch")

from nybble.formats import floats, iq4_nl, pack, q4_0, q4_1, q5_0, q5_1, q8_0  # noqa: E402
from nybble.formats.kvtype import KVType  # noqa: E402

FILES = (q8_0, q5_1, q5_0, q4_1, q4_0, iq4_nl, floats)
TYPES = {t.name: t for file in FILES for t in file.TYPES}
QUANTIZED = {name: t for name, t in TYPES.items() if t.quantized}
each_type = pytest.mark.parametrize("kind", TYPES.values(), ids=TYPES)
each_quantized = pytest.mark.parametrize("kind", QUANTIZED.values(), ids=QUANTIZED)

ONE = bytes([0x00, 0x3C])  # fp16 1.0

# name: values of channels (others are 0), the bytes, values that come back otherwise than given.
# Worked out from ggml-quants.c; every scale is 1 or -1, so a code is read off the value.
BY_HAND: dict[str, list[tuple[dict[int, float], bytes, dict[int, float]]]] = {
    # d = absmax / 127; roundf takes ties away from zero: 0.5 -> 1, -0.5 -> -1, 1.5 -> 2.
    "q8_0": [
        (
            {0: 127, 1: -127, 2: 0.5, 3: -0.5, 4: 1.5, 31: 2.4},
            ONE + bytes([127, 0x81, 1, 0xFF, 2, *[0] * 26, 2]),
            {2: 1, 3: -1, 4: 2, 31: 2},
        )
    ],
    # d = max / -8; code = int(x / d + 8.5), at most 15. Channel i and 16 + i share byte i.
    "q4_0": [
        (  # d 1; codes 0: 0, 1: int(15.9), 2: 16 cut to 15, 3: 8; 16: 8, 17: 9, 18: 8, 19: 1
            {0: -8, 1: 7.4, 2: 8, 17: 0.5, 18: -0.5, 19: -7.5},
            ONE + bytes([0x80, 0x9F, 0x8F, 0x18, *[0x88] * 12]),
            {1: 7, 2: 7, 17: 1, 18: 0, 19: -7},
        ),
        (  # the largest is positive: d -1 (0xBC00), and x / d turns signs; 31: int(6 + 8.5)
            {0: 8, 31: -6},
            bytes([0x00, 0xBC, 0x80, *[0x88] * 14, 0xE8]),
            {},
        ),
    ],
    # d = (max - min) / 15 = 1, m = -2 (0xC000); code = int((x + 2) / d + 0.5); 0 has code 2.
    "q4_1": [
        (
            {0: -2, 1: 13, 2: -1.5, 3: 12.4, 31: 3},
            ONE + bytes([0x00, 0xC0, 0x20, 0x2F, 0x21, 0x2E, *[0x22] * 11, 0x52]),
            {2: -1, 3: 12},
        )
    ],
    # d = max / -16; code = int(x / d + 16.5). 0 has code 16: fifth bit set, nibble 0. Codes 0
    # (channel 0) and 1 (channel 2) have no fifth bit: 0xFFFFFFFA. 31: 24 = 16 + 8.
    "q5_0": [
        (
            {0: -16, 1: 15, 2: -15.5, 31: 8},
            ONE + bytes([0xFA, 0xFF, 0xFF, 0xFF, 0x00, 0x0F, 0x01, *[0] * 12, 0x80]),
            {2: -15},
        )
    ],
    # d = (max - min) / 31 = 1, m = 0 (least value); 31 and 20 have the fifth bit: 0x00100002.
    "q5_1": [
        (
            {1: 31, 2: 0.5, 20: 16, 21: 3.4},
            ONE + bytes([0, 0, 0x02, 0x00, 0x10, 0x00, 0, 0x0F, 0x01, 0, 0, 0x30, *[0] * 10]),
            {2: 1, 21: 3},
        )
    ],
    # Codes at max / -127 = 1. 0 lies 1 below the table's 1 (code 8) and 10 above -10.
    # 100 lies 11 above 89 (code 14) and 13 below 113. Weights are squares, so the scale is
    # (127^4 + 100^3 * 89) / (127^4 + 100^2 * 89^2) = 349144641 / 339354641 = 1.028849, which is
    # 29.54 steps of 2^-10 above 1: 0x3C1E.
    "iq4_nl": [
        ({0: -127}, ONE + bytes([0x80, *[0x88] * 15]), {i: 1 for i in range(1, 32)}),
        (
            {0: -127, 1: 100},
            bytes([0x1E, 0x3C, 0x80, 0x8E, *[0x88] * 14]),
            {i: v * (1 + 30 / 1024) for i, v in enumerate([-127, 89, *[1] * 30])},
        ),
    ],
    # 1.5 = 0x3E00; 1 + 2^-11 is a tie and goes to the even 1; 65520 overflows.
    "f16": [({0: 1.5, 1: 1 + 2**-11, 2: -65520}, bytes.fromhex("003e003c00fc") + bytes(58),
             {1: 1, 2: -np.inf})],
    # The upper half of float32: 1.5 = 0x3FC00000; 1 + 2^-8 is a tie and goes to the even 1.
    "bf16": [({0: 1.5, 1: 1 + 2**-8, 2: -2}, bytes.fromhex("c03f803f00c0") + bytes(58), {1: 1})],
    "f32": [({0: 0.1}, struct.pack("<f", 0.1) + bytes(124), {0: float(np.float32(0.1))})],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "vector"), [(name, v) for name, vectors in BY_HAND.items() for v in vectors]
)
def test_by_hand(name: str, vector: tuple[dict[int, float], bytes, dict[int, float]]) -> None:
    values, data, other = vector
    x, back = torch.zeros(1, 32), torch.zeros(1, 32)
    for i, value in values.items():
        x[0, i] = back[0, i] = value
    for i, value in other.items():
        back[0, i] = value
    stored = TYPES[name].quantize(x)
    assert bytes(stored[0].tolist()) == data
    assert TYPES[name].dequantize(stored, 32).tolist() == back.tolist()


@each_type
def test_blocks_and_ids_are_ggmls(kind: KVType) -> None:
    ggml = gguf.GGMLQuantizationType[kind.name.upper()]
    block, size = GGML_QUANT_SIZES[ggml]
    assert kind.ggml_id == ggml.value
    assert (kind.block, kind.row_bytes(block)) == (block, size)
    assert kind.bits == kind.bits_at(256) == size * 8 / block
    assert kind.quantized == (block > 1)
    assert kind.fits(96) and kind.fits(80) != kind.quantized


@pytest.mark.parametrize(
    ("name", "bits"),
    [("f32", 32), ("f16", 16), ("bf16", 16), ("q8_0", 8.5), ("q5_1", 6), ("q5_0", 5.5), ("q4_1", 5),
     ("q4_0", 4.5), ("iq4_nl", 4.5)],
)  # fmt: skip
def test_bits_in_numbers(name: str, bits: float) -> None:
    assert TYPES[name].bits == bits


@each_type
@pytest.mark.parametrize("shape", [(0, 64), (1, 64), (5, 128), (2, 3, 4, 96), (2, 0, 3, 64)])
def test_shapes(kind: KVType, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    stored = kind.quantize(x)
    assert stored.dtype == torch.uint8
    assert stored.shape == (*shape[:-1], kind.row_bytes(shape[-1]))
    heads = int(np.prod(shape[:-2]))
    assert stored.numel() == heads * kind.bytes_stored(shape[-2], shape[-1])
    back = kind.dequantize(stored, shape[-1])
    assert back.dtype == torch.float32 and back.shape == shape
    # Each head of each token is on its own, however it lies in memory.
    turned = x.transpose(0, -2).contiguous().transpose(0, -2)
    assert torch.equal(kind.quantize(turned), stored)
    assert torch.equal(kind.dequantize(stored.transpose(0, -2), shape[-1]), back.transpose(0, -2))


def _tolerance(kind: KVType, x: np.ndarray) -> np.ndarray:
    """Largest error of each block [..., n, 32] -> [..., n, 1], for values up to 1000."""
    top, span = abs(x).max(-1, keepdims=True), np.ptp(x, -1, keepdims=True)
    step = {
        "q8_0": top / 127 / 2,
        "q4_0": top / 8,  # a whole step where a value as large with the other sign is cut to +7
        "q5_0": top / 16,
        "q4_1": span / 15 / 2,
        "q5_1": span / 31 / 2,
        # 14 of 127 table steps at most, and the scale gives way by 14 / 113 at most.
        "iq4_nl": top / 4,
    }[kind.name]
    # fp16 keeps 11 bits of the scale and of the minimum; 2^-25 is half its smallest step, and a
    # code is 127 at most.
    return step * (1 + 2**-20) + (top + span) * 2**-11 + 128 * 2**-25


vectors = arrays(np.float32, (2, 64), elements=st.floats(-1000, 1000, width=32))


@each_quantized
@given(x=vectors)
@settings(max_examples=50, deadline=None)
def test_error_bound(kind: KVType, x: np.ndarray) -> None:
    error = abs(np.asarray(kind.roundtrip(torch.from_numpy(x))) - x).reshape(2, 2, 32)
    assert (error <= _tolerance(kind, x.reshape(2, 2, 32))).all()


@each_type
@given(x=vectors)
@settings(max_examples=50, deadline=None)
def test_a_second_trip_changes_nothing(kind: KVType, x: np.ndarray) -> None:
    if kind.name.endswith("_1"):  # only without the minimum, whose bits a sum cuts off
        x = abs(x)
        x[:, ::32] = 0
    once = kind.roundtrip(torch.from_numpy(x))
    assert torch.equal(kind.roundtrip(once), once)


@each_type
@pytest.mark.parametrize("fill", [0.0, -0.0, 1e-30, 2.0**-149, 3e38, np.inf, -np.inf, np.nan])
def test_odd_values_never_raise(kind: KVType, fill: float) -> None:
    stored = kind.quantize(torch.full((2, 64), fill))
    back = kind.dequantize(stored, 64)
    assert back.shape == (2, 64)
    if abs(fill) <= 1e-30 and kind.name not in ("f32", "bf16"):
        assert not back.any()
    elif fill == 0:
        assert not back.any()


@each_type
def test_bytes_are_read_from_any_address(kind: KVType) -> None:
    stored = kind.quantize(torch.linspace(-3, 3, 64)[None])
    shifted = torch.cat([torch.zeros(1, dtype=torch.uint8), stored.flatten()])[1:][None]
    assert torch.equal(kind.dequantize(shifted, 64), kind.dequantize(stored, 64))


@each_type
def test_what_is_stored_does_not_change_with_its_source(kind: KVType) -> None:
    x = torch.ones(1, 32)
    stored = kind.quantize(x)
    data = stored.tolist()
    x.fill_(5)
    assert stored.tolist() == data
    back = kind.dequantize(stored, 32)
    stored.fill_(0)
    assert (back > 0.9).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@each_type
def test_same_bytes_on_the_gpu(kind: KVType) -> None:
    bits = np.random.default_rng(3).integers(0, 2**32, (512, 128), dtype=np.uint32)
    normal = torch.randn(4096, 128, generator=torch.Generator().manual_seed(0))
    for x in (normal, normal.round(), torch.from_numpy(bits.view(np.float32))):
        here, there = kind.quantize(x), kind.quantize(x.cuda())
        read, gpu_read = kind.dequantize(here, 128), kind.dequantize(there, 128).cpu()
        assert torch.equal(read.nan_to_num(7), gpu_read.nan_to_num(7))
        if kind.quantized and kind.name != "iq4_nl":  # the sign of a NaN scale is the hardware's
            assert torch.equal(here, there.cpu())


def test_helpers_fix_what_c_leaves_open() -> None:
    odd_nan = np.array([[0x7F800001], [0xFFFFFFFF], [0x7FC00000]], np.uint32).view(np.float32)
    assert pack.to_f16(torch.from_numpy(odd_nan)).tolist() == [[0, 0x7E], [0, 0xFE], [0, 0x7E]]
    x = torch.tensor([0.49999997, 0.5, 1.5, -0.5, -2.5, 8388609.0])
    assert pack.round_half_away(x).tolist() == [0, 1, 2, -1, -3, 8388609]
    x = torch.tensor([-1.9, 300.7, 2.0**31, -(2.0**31), torch.inf, torch.nan, -129])
    assert pack.low_byte(x).tolist() == [255, 44, 0, 0, 0, 0, 127]


def test_five_bits_survive_packing() -> None:
    codes = torch.arange(256, dtype=torch.uint8).reshape(8, 32) % 32
    packed = pack.pack_5_bits(codes)
    assert packed.shape == (8, 20)
    assert torch.equal(pack.unpack_5_bits(packed), codes)
