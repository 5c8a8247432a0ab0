"""Scaled blocks against gguf-py's and llama.cpp's own dequantization."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from gguf.quants import dequantize
from hypothesis import example, given
from hypothesis import strategies as st

from nybble.engines.llamacpp.ffi import ffi, library
from nybble.errors import NybbleError
from nybble.hardening.ggml_rows import (
    FLOATS,
    HALVES,
    POWERS_ONLY,
    SCALED,
    Bytes,
    check_type,
    scale_blocks,
)
from nybble.models.gguf_types import TENSOR_TYPES

IDS = {name: (i, size) for i, (name, _, size) in TENSOR_TYPES.items()}
# gguf-py reads all types but these; llama.cpp reads them too, but for the two that never stand in
# a file.
BY_C = ("Q1_0", "Q2_0")
IN_MEMORY = ("Q8_1", "Q8_K")
QUANTIZED = [t for t in SCALED if t not in FLOATS and t not in IN_MEMORY]


def blocks_of(kind: str, n: int, seed: int = 0, exponent: int = 0) -> Bytes:
    """Random codes under scales of 2^exponent to 2^(exponent+1), of either sign."""
    rng = np.random.default_rng(seed)
    out = rng.integers(0, 256, (n, IDS[kind][1]), dtype=np.uint8)
    halves = (rng.uniform(1, 2, (n, 2)) * rng.choice([-1, 1], (n, 2)) * 2.0**exponent).astype("<f2")
    for i, at in enumerate(HALVES.get(kind, ())):
        out[:, at : at + 2] = halves[:, i : i + 1].view(np.uint8)
    if kind == "MXFP4":
        out[:, 0] = rng.integers(100, 150, n)
    if kind == "NVFP4":
        out[:, :4] = rng.integers(0x20, 0x58, (n, 4))
    if kind == "Q8_K":
        out[:, :4] = halves[:, :1].astype("<f4").view(np.uint8)
    if kind == "IQ1_M":  # the half's nibbles go to the tops of the last four uint16, lowest first
        for i in range(4):
            nibble = (halves[:, 0].view("<u2") >> (4 * i)) & 15
            out[:, 49 + 2 * i] = (out[:, 49 + 2 * i] & 15) | (nibble << 4)
    return out


def values(blocks: Bytes, kind: str) -> npt.NDArray[np.float32]:
    if kind not in BY_C:
        return np.asarray(dequantize(blocks, gguf.GGMLQuantizationType[kind]))
    type_id, size = IDS[kind]
    traits = library().ggml_get_type_traits(type_id)
    found = np.empty((len(blocks), traits.blck_size), np.float32)
    traits.to_float(ffi.from_buffer(blocks.tobytes()), ffi.from_buffer("float[]", found),
                    found.size)  # fmt: skip
    return found


def powers(n: int, most: int = 3, seed: int = 1) -> npt.NDArray[np.float64]:
    return 2.0 ** np.random.default_rng(seed).integers(-most, most + 1, n)


def scaled(blocks: Bytes, kind: str, factors: object, offset: float = 0.0) -> tuple[Bytes, float]:
    factors = np.broadcast_to(np.asarray(factors, np.float64), len(blocks))
    check_type("t", kind, factors, offset)
    return scale_blocks(blocks, kind, factors, offset, tensor="t")


def test_every_type_of_weights_has_a_rule() -> None:
    integers = {"I8", "I16", "I32", "I64"}
    assert set(SCALED) == set(IDS) - integers
    for kind in integers:
        with pytest.raises(NybbleError, match=f"t: {kind}"):
            check_type("t", kind, np.ones(1), 0.0)


@pytest.mark.parametrize("kind", QUANTIZED)
class TestQuantized:
    def test_powers_of_two_are_exact(self, kind: str) -> None:
        blocks, factors = blocks_of(kind, 400), powers(400)
        out, error = scaled(blocks, kind, factors)
        before = values(blocks, kind)
        assert np.isfinite(before).all() and (before != 0).any(axis=1).mean() > 0.9
        expected = before.reshape(400, -1) * factors[:, None].astype(np.float32)
        np.testing.assert_array_equal(values(out, kind).reshape(400, -1), expected)
        assert error == 0.0

    def test_one_changes_no_byte_and_the_source_stays(self, kind: str) -> None:
        blocks = np.random.default_rng(3).integers(0, 256, (300, IDS[kind][1]), dtype=np.uint8)
        kept = blocks.copy()
        factors = np.where(np.arange(300) % 3, 1.0, 2.0)
        ones = scaled(blocks[factors == 1], kind, 1.0)[0]  # scales that are NaN or infinite too
        np.testing.assert_array_equal(blocks, kept)
        if kind != "MXFP4" and kind != "NVFP4":
            # float16 -> float64 -> float16 sets the bit of a quiet NaN, which may be unset here.
            nan = np.isnan(values(ones, kind).reshape(len(ones), -1)).any(axis=1)
            np.testing.assert_array_equal(ones[~nan], kept[factors == 1][~nan])
        else:
            np.testing.assert_array_equal(ones, kept[factors == 1])

    def test_other_factors_report_their_error(self, kind: str) -> None:
        blocks = blocks_of(kind, 400)
        factors = np.random.default_rng(4).uniform(0.3, 3, 400)
        if kind in POWERS_ONLY:
            with pytest.raises(NybbleError, match=f"{kind} can only be multiplied by powers"):
                scaled(blocks, kind, factors)
            return
        out, error = scaled(blocks, kind, factors)
        assert 2.0**-13 < error <= 2.0**-11  # fp16 has 11 significant bits
        before, after = (values(b, kind).reshape(400, -1).astype(np.float64) for b in (blocks, out))
        # d * code - m * code: each of the two is off by a share of itself.
        size = np.abs(before).max(axis=1, keepdims=True) * factors[:, None]
        terms = 8 if len(HALVES.get(kind, ())) == 2 else 1
        assert (np.abs(after - before * factors[:, None]) <= terms * 1.01 * error * size).all()

    def test_a_scale_that_overflows_is_refused(self, kind: str) -> None:
        blocks = blocks_of(kind, 4)
        with pytest.raises(NybbleError, match=rf"t: {kind}"):
            scaled(blocks, kind, [1, 1, 2.0**160, 1])

    def test_a_scale_that_vanishes_is_refused(self, kind: str) -> None:
        with pytest.raises(NybbleError, match=rf"t: {kind}"):
            scaled(blocks_of(kind, 4), kind, [1, 1, 1, 2.0**-160])


def test_bits_lost_below_the_normal_range_are_reported() -> None:
    blocks = blocks_of("Q6_K", 3)
    blocks[:, 208:] = np.array([65, 64, 3], "<u2")[:, None].view(np.uint8)  # times 2^-24
    out, error = scaled(blocks, "Q6_K", 0.5)
    # 32.5 -> 32 (ties to even), 32, 1.5 -> 2: the last is off by a third.
    np.testing.assert_array_equal(out[:, 208:].copy().view("<u2")[:, 0], [32, 32, 2])
    assert error == pytest.approx(0.5 / 1.5)
    with pytest.raises(NybbleError, match="Q6_K"):
        scaled(blocks[2:], "Q6_K", 1 / 8)  # 0.375 -> 0


@pytest.mark.parametrize("kind", IN_MEMORY)
def test_types_of_memory_change_their_scales_only(kind: str) -> None:
    blocks = blocks_of(kind, 50)
    out, error = scaled(blocks, kind, 4.0)
    dtype, width = ("<f4", 4) if kind == "Q8_K" else ("<f2", 4)
    np.testing.assert_array_equal(out[:, width:], blocks[:, width:])
    old, new = (np.ascontiguousarray(b[:, :width]).view(dtype) for b in (blocks, out))
    np.testing.assert_array_equal(new, old * 4)
    assert error == 0.0


def test_mxfp4_at_the_ends_of_its_exponent() -> None:
    blocks = blocks_of("MXFP4", 2)
    blocks[:, 0] = 2, 250
    out, _ = scaled(blocks, "MXFP4", [0.25, 4.0])
    np.testing.assert_array_equal(out[:, 0], [0, 252])
    expected = values(blocks, "MXFP4") * np.float32([[0.25], [4]])
    np.testing.assert_array_equal(values(out, "MXFP4"), expected)
    for at, factor in ((0, 0.125), (1, 32.0)):
        with pytest.raises(NybbleError, match="MXFP4"):
            scaled(blocks[at : at + 1], "MXFP4", factor)
    blocks[:, 1:] = 0x80  # codes 0 and 8 are zero: the block is zero at any exponent
    np.testing.assert_array_equal(scaled(blocks, "MXFP4", [0.125, 32.0])[0], blocks)


@given(st.lists(st.integers(0, 255), min_size=4, max_size=4), st.integers(-12, 12))
def test_nvfp4_is_exact_or_refused(codes: list[int], step: int) -> None:
    block = blocks_of("NVFP4", 1)
    block[0, :4], block[0, 4:] = codes, 0x31  # no zero among the values
    before = values(block, "NVFP4") * np.float32(2.0**step)
    try:
        out, error = scaled(block, "NVFP4", 2.0**step)
    except NybbleError:
        if max(codes) < 127:  # every scale that could be written would have been
            grid = np.ldexp(np.where(np.arange(127) < 8, 0, 8) + np.arange(127) % 8,
                            np.maximum(np.arange(127) // 8, 1) - 10)  # fmt: skip
            assert not set(grid[codes] * 2.0**step) <= set(grid)
        return
    assert error == 0.0
    np.testing.assert_array_equal(values(out, "NVFP4"), before)


def test_nvfp4_zeros_take_any_factor() -> None:
    block = blocks_of("NVFP4", 1)
    block[0, :4] = 126  # the largest scale there is
    block[0, 4:12] = 0x08  # codes 8 and 0: both zero
    with pytest.raises(NybbleError, match="NVFP4"):
        scaled(block, "NVFP4", 2.0)
    block[0, 4:] = 0x80
    np.testing.assert_array_equal(scaled(block, "NVFP4", 2.0)[0], block)


@lru_cache
def positives(kind: str) -> npt.NDArray[np.float64]:
    """The value of every 16-bit pattern from 0 to the largest finite number, rising."""
    if kind == "F16":
        return np.arange(0x7C00, dtype="<u2").view("<f2").astype(np.float64)
    return (np.arange(0x7F80, dtype="<u4") << 16).view("<f4").astype(np.float64)


def nearest(kind: str, y: float) -> int | None:
    """The pattern nearest to y by exact arithmetic, ties to even; None beyond the largest."""
    table, size = positives(kind), Fraction(abs(y))
    at = int(np.searchsorted(table, abs(y)))
    ends = Fraction(float(table[-1])) * 3 - Fraction(float(table[-2]))  # twice the first beyond
    if 2 * size >= ends:
        return None
    near = [i for i in (at - 1, at) if 0 <= i < len(table)]
    found = min(near, key=lambda i: (abs(Fraction(float(table[i])) - size), i & 1))
    return found | (0x8000 if math.copysign(1, y) < 0 else 0)


@pytest.mark.parametrize("kind", ["F16", "BF16"])
@given(
    st.integers(0, 2**16 - 1),
    st.floats(2.0**-12, 2.0**12) | st.sampled_from([0.5, 2.0, 1 + 2.0**-8]),
    st.sampled_from([0.0, 1.0]),
)
@example(0x3F80, 1 + 2.0**-8, 0.0)  # bfloat16: 1 times it lies between two, the even one is below
@example(0x3F80, 1 + 3 * 2.0**-8, 0.0)  # and here above
def test_halves_are_rounded_once_to_nearest_even(
    kind: str, bits: int, factor: float, offset: float
) -> None:
    block = np.array([[bits]], "<u2").view(np.uint8)
    x = float(read_float(block, kind)[0])
    if not math.isfinite(x):  # stays so
        out, error = scaled(block, kind, factor, offset)
        np.testing.assert_array_equal(read_float(out, kind), [x])
        assert error == 0.0
        return
    y = x * factor + offset * (factor - 1)  # in float64: 53 bits, for 11 or 8
    expected = nearest(kind, y)
    if expected is None:
        with pytest.raises(NybbleError, match=f"t: {kind}"):
            scaled(block, kind, factor, offset)
        return
    out, error = scaled(block, kind, factor, offset)
    assert out.view("<u2")[0, 0] == expected
    if offset == 0:
        assert error <= {"F16": 2.0**-11, "BF16": 2.0**-8}[kind]
    assert (error == 0) == (read_float(out, kind)[0] == y)


@given(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.floats(2.0**-12, 2.0**12),
    st.sampled_from([0.0, 1.0]),
)
def test_singles_are_rounded_once(x: float, factor: float, offset: float) -> None:
    block = np.array([[x]], "<f4").view(np.uint8)
    y = x * factor + offset * (factor - 1)
    with np.errstate(over="ignore"):
        expected = np.float32(y)
    if np.isinf(expected):
        with pytest.raises(NybbleError, match="t: F32"):
            scaled(block, "F32", factor, offset)
        return
    out, error = scaled(block, "F32", factor, offset)
    assert out.tobytes() == expected.tobytes()
    assert error <= (2.0**-24 if offset == 0 else np.inf)
    assert (error == 0) == (float(expected) == y)


def read_float(block: Bytes, kind: str) -> npt.NDArray[np.float64]:
    if kind == "BF16":
        block = np.concatenate([np.zeros_like(block), block], axis=1)
    dtype = {"F32": "<f4", "F16": "<f2", "BF16": "<f4", "F64": "<f8"}[kind]
    return np.ascontiguousarray(block).view(dtype)[:, 0].astype(np.float64)


def test_floats_written_wider() -> None:
    """A bfloat16 gain 1 + w, times e, as float32."""
    w = np.array([0.5, -0.25, 3.0], np.float32)
    block = (w.view("<u4") >> 16).astype("<u2")[:, None].view(np.uint8)
    e = np.array([1.1, 0.7, 1.0])
    out, error = scale_blocks(block, "BF16", e, 1.0, tensor="t", written="F32")
    got = out.view("<f4")[:, 0]
    np.testing.assert_array_equal(got, ((1 + w.astype(np.float64)) * e - 1).astype(np.float32))
    assert got[2] == 3.0
    assert 0 < error < 2.0**-23


def test_float64() -> None:
    x = np.array([1e-300, -2.5, 1 / 3])
    out, error = scaled(x[:, None].view(np.uint8), "F64", [0.5, 3.0, 1.1])
    np.testing.assert_array_equal(out.view("<f8")[:, 0], x * [0.5, 3.0, 1.1])
    assert error == 0.0
    with pytest.raises(NybbleError, match="F64"):
        scaled(np.array([[1e308]]).view(np.uint8), "F64", 100.0)


@pytest.mark.parametrize("factor", [0.0, -1.0, np.nan, np.inf])
def test_factors_that_are_none(factor: float) -> None:
    with pytest.raises(NybbleError, match="cannot be multiplied") as caught:
        check_type("blk.0.attn_q.weight", "F32", np.array([1.0, factor]), 0.0)
    assert str(factor) in str(caught.value)
    assert "blk.0.attn_q.weight" in str(caught.value)


def test_an_offset_needs_floats() -> None:
    with pytest.raises(NybbleError, match="t: Q4_0"):
        check_type("t", "Q4_0", np.ones(1), 1.0)


@pytest.mark.parametrize("kind", SCALED)
def test_no_blocks(kind: str) -> None:
    out, error = scaled(np.zeros((0, IDS[kind][1]), np.uint8), kind, 2.0)
    assert (out.shape, error) == ((0, IDS[kind][1]), 0.0)
