"""The llama.cpp types against ggml's own code, byte for byte.

The wheel's library exports `quantize_row_*_ref` of ggml-quants.c through its type traits.
"""

from __future__ import annotations

import functools
import platform
from typing import Any

import numpy as np
import pytest
from cffi import FFI
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

torch = pytest.importorskip("torch")
pytest.importorskip("xllamacpp")

from nybble.engines.llamacpp.ffi import _shared_object  # noqa: E402
from nybble.formats import floats, iq4_nl, q4_0, q4_1, q5_0, q5_1, q8_0  # noqa: E402
from nybble.formats.kvtype import KVType  # noqa: E402

pytestmark = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"),
    reason="casts that C leaves undefined and fused multiply-adds differ on other processors",
)

ffi: Any = FFI()
ffi.cdef("""
typedef void (*convert)(const void *from, void *to, int64_t n);
typedef struct { const char *type_name; int64_t blck_size, blck_size_interleave;
  size_t type_size; bool is_quantized; convert to_float, from_float_ref; } traits;
typedef struct { convert from_float; } cpu_traits;
const traits *ggml_get_type_traits(int type);
const cpu_traits *ggml_get_type_traits_cpu(int type);
""")

FILES = (q8_0, q5_1, q5_0, q4_1, q4_0, iq4_nl, floats)
TYPES = {t.name: t for file in FILES for t in file.TYPES}
QUANTIZED = {name: t for name, t in TYPES.items() if t.quantized}
each_type = pytest.mark.parametrize("kind", TYPES.values(), ids=TYPES)
each_quantized = pytest.mark.parametrize("kind", QUANTIZED.values(), ids=QUANTIZED)
rng = np.random.default_rng(20261)


@functools.cache
def lib() -> Any:
    return ffi.dlopen(str(_shared_object()))


def _run(convert: Any, data: np.ndarray, out: np.ndarray, n: int) -> np.ndarray:
    convert(ffi.from_buffer(np.ascontiguousarray(data)), ffi.from_buffer(out), n)
    return out


def c_store(kind: KVType, x: np.ndarray, *, cache: bool = False) -> np.ndarray:
    """float32 [n, d] -> bytes, by the reference function or by the one a cache on the CPU calls."""
    if kind.name == "f32" and not cache:
        return x.copy().view(np.uint8)  # has no function: ggml copies
    out = np.empty((len(x), kind.row_bytes(x.shape[-1])), np.uint8)
    if cache:  # ggml_compute_forward_set_rows in ops.cpp
        return _run(lib().ggml_get_type_traits_cpu(kind.ggml_id).from_float, x, out, x.size)
    return _run(lib().ggml_get_type_traits(kind.ggml_id).from_float_ref, x, out, x.size)


def c_read(kind: KVType, data: np.ndarray, d: int) -> np.ndarray:
    """Bytes -> float32 [n, d]."""
    if kind.name == "f32":
        return data.copy().view(np.float32)
    out = np.empty((len(data), d), np.float32)
    return _run(lib().ggml_get_type_traits(kind.ggml_id).to_float, data, out, out.size)


def store(kind: KVType, x: np.ndarray) -> np.ndarray:
    return np.asarray(kind.quantize(torch.from_numpy(x)))


def read(kind: KVType, data: np.ndarray, d: int) -> np.ndarray:
    return np.asarray(kind.dequantize(torch.from_numpy(data), d))


def among(fill: float, *values: float) -> np.ndarray:
    """[2, 32]: the values spread among `fill`, in this order and in the other."""
    block = np.full(32, fill, np.float32)
    block[np.linspace(0, 31, len(values)).astype(int)] = values
    return np.stack([block, block[::-1]])


def ends_at(blocks: np.ndarray, low: float, high: float) -> np.ndarray:
    """The blocks clipped to the range, with both ends of it in each."""
    blocks = blocks.clip(low, high)
    blocks[:, 3], blocks[:, 20] = low, high
    return blocks


def cases() -> dict[str, np.ndarray]:
    """Named sets of blocks, float32 [n, 32]."""
    normal = rng.standard_normal((64, 32)).astype(np.float32)
    few = rng.random((64, 32)) < 0.05
    eye = np.eye(32, dtype=np.float32)
    zeros = np.where(rng.random((64, 32)) < 0.5, -0.0, 0.0)
    halves = rng.integers(-254, 255, (32, 32)) / 2
    table = np.array(iq4_nl.VALUES)
    between = np.resize((table[1:] + table[:-1]) / 2, 32)
    # Scales: around the largest fp16 (65520 rounds to infinity), its smallest, float32's normal
    # range (2^-126), an infinite inverse (2^-128) and iq4_nl's limit.
    scales = np.array([
        65504, 65519.996, 65520, 65536, 2**-14, 2**-24, 2**-25, 2**-25 * 1.0001,
        2**-126, 2**-128, 2**-128 * 1.000001, 2**-129, 1e-15 / 8, 1e-15 / 127,
    ])  # fmt: skip
    peaks = np.outer(scales, [-127, -16, -8, 8, 15, 16, 31, 127]).reshape(-1, 1)
    tied = (rng.integers(1024, 2048, (32, 1)) + 0.5) * 2.0**-11  # halfway between two fp16
    odd = rng.random((32, 1)) + 0.5
    limit = np.nextafter(np.float32(1e-15), np.float32([[0], [1e-15], [1]]))
    nan, inf, huge = np.nan, np.inf, np.finfo(np.float32).max
    infinite = ((inf,), (-inf,), (inf, -inf), (-inf, 5, inf))
    not_numbers = ((nan,), (nan, 7), (-nan, -7, 2), (2, nan, 9000), (inf, nan), (nan, -inf, nan))
    sets: dict[str, Any] = {
        **{
            f"normal x {m:g}": normal * m
            for m in (1e-39, 1e-38, 1e-15, 1e-7, 1e-5, 1e-2, 1, 300, 1e5, 1e18, 1e19, 1e30)
        },
        "outliers": normal * np.where(few, 200, 1),
        "offset": normal + 1000,
        "f16 grid": normal.astype(np.float16),
        "constant": normal[:, :1] + 0 * normal,
        "one size": np.sign(normal) * 2.5,
        "same size, other sign": [*among(0, 3, -3), *among(1, -3, 3, 3, -3), *among(3, -3)],
        "zeros": [*zeros, *(eye * 0), *(-eye * 0)],
        "zeros among others": [*np.where(few, normal, zeros), *np.where(few, abs(normal), zeros)],
        "one-hot": [*eye, *-eye, *(eye * 3000 + normal[:32])],
        **{
            name: [
                *(
                    b
                    for peak in (8, -8, 16, -16, 127, -127)
                    for b in np.where(eye[17], peak, halves.clip(-abs(peak), abs(peak))) * unit
                ),
                *(
                    b
                    for low in (0, -5, 40)
                    for top in (15, 31)
                    for b in ends_at(halves + low, low, low + top) * unit
                ),
            ]
            for name, unit in (("ties", 1), ("ties in codes and scale", tied), ("near ties", odd))
        },
        "ties in the table": [
            np.where(eye[i], peak, sign * between) * unit
            for i in (0, 31) for peak in (127, -127) for sign in (1, -1)
            for unit in (1, *tied, *odd)
        ],
        "scales at the edges": [
            *(peaks * eye[5]), *(peaks * (eye[5] + eye[9] / 2)), *(peaks * (eye[5] - eye[9])),
        ],
        "at the limit of iq4_nl": limit * eye[7],
        "denormal": rng.integers(-9, 10, (64, 32)) * 2.0**-149,
        "huge, one sign": abs(normal) * 1e30,
        "largest": [*among(0, huge, -huge), *among(huge, -huge), *among(-huge, 1)],
        # From here on ggml takes NaN as a scale or casts what an integer cannot hold, which C
        # leaves undefined. The types do what x86 does.
        "infinite": [
            *(b for fill in (0, 1, -1) for values in infinite for b in among(fill, *values)),
            *among(inf, inf), *among(-inf, -inf), *among(inf, -inf), *among(inf, nan),
        ],
        "nan": [
            *(b for fill in (0, 1, -300) for values in not_numbers for b in among(fill, *values)),
            *among(nan, nan), *among(-nan, 1), *among(nan, 3, -3), *among(nan, -0.0),
        ],
        "nan here and there": np.where(few, nan, normal * 50),
        "any bits": rng.integers(0, 2**32, (512, 32), dtype=np.uint32).view(np.float32),
    }  # fmt: skip
    with np.errstate(all="ignore"):
        return {name: np.ascontiguousarray(x, np.float32) for name, x in sets.items()}


CASES = cases()


def same_floats(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal bit for bit, any NaN equal to any."""
    nan = np.isnan(a)
    return bool((nan == np.isnan(b)).all() and (a.view(np.uint32) == b.view(np.uint32))[~nan].all())


def empty(x: np.ndarray) -> np.ndarray:
    """Blocks below 1e-15, for which iq4_nl writes a scale of 0 and no codes; [n, 32] -> [n]."""
    return np.where(np.isnan(x), 0, abs(x)).max(-1) < np.float32(1e-15)


def check(kind: KVType, x: np.ndarray) -> None:
    """The bytes of both sides are equal, and so are the floats read back from them."""
    ours, theirs = store(kind, x), c_store(kind, x)
    if kind.name == "iq4_nl":  # codes of an empty block are what was on the stack
        skip = empty(x)
        assert not theirs[skip, :2].any() and not c_read(kind, theirs[skip], 32).any()
        assert not ours[skip, :2].any() and not read(kind, ours[skip], 32).any()
        ours, theirs = ours[~skip], theirs[~skip]
    if kind.quantized:
        wrong = np.flatnonzero((ours != theirs).any(-1))
        assert not len(wrong), f"blocks {wrong}: {ours[wrong[0]]}, in ggml {theirs[wrong[0]]}"
    assert same_floats(read(kind, ours, 32), c_read(kind, theirs, 32))


@each_type
@pytest.mark.parametrize("case", CASES)
def test_blocks(kind: KVType, case: str) -> None:
    check(kind, CASES[case])


@each_type
@given(x=arrays(np.float32, (2, 32), elements=st.floats(width=32)))
@settings(max_examples=30, deadline=None)
def test_any_floats(kind: KVType, x: np.ndarray) -> None:
    check(kind, x)


@each_type
def test_any_bytes_are_read_alike(kind: KVType) -> None:
    data = rng.integers(0, 256, (2048, kind.row_bytes(32)), dtype=np.uint8)
    assert same_floats(read(kind, data, 32), c_read(kind, data, 32))


@each_quantized
@pytest.mark.parametrize("bad", ["infinite", "nan", "denormal", "zeros"])
def test_a_bad_block_leaves_its_neighbours_alone(kind: KVType, bad: str) -> None:
    good, other = CASES["normal x 1"][:2]
    rows = np.stack([[good, b, other] for b in CASES[bad]]).reshape(-1, 96)
    stored = store(kind, rows).reshape(-1, 3, kind.row_bytes(32))
    assert (stored[:, [0, 2]] == c_store(kind, np.stack([good, other]))).all()


@each_type
def test_a_cache_on_the_cpu_stores_with_the_reference(kind: KVType) -> None:
    """All but q8_0, which AVX code rounds to even, with 127 / amax for 1 / (amax / 127)."""
    for x in CASES.values():
        size = abs(x).max(-1)  # the two inverses part for good where one of them overflows
        x = x[(size > 1e-36) & (size < 1e38) & (kind.name != "iq4_nl" or ~empty(x))]
        reference, cache = c_store(kind, x), c_store(kind, x, cache=True)
        if kind.name == "q8_0":
            codes = [a[:, 2:].view(np.int8).astype(int) for a in (reference, cache)]
            assert (reference[:, :2] == cache[:, :2]).all()
            assert abs(codes[0] - codes[1]).max(initial=0) <= 1
        else:
            assert (reference == cache).all()


def test_sums_of_iq4_nl_are_taken_in_order() -> None:
    """Blocks whose scale lies next to a tie of fp16, so the last bit of a sum decides."""
    kind = TYPES["iq4_nl"]
    x = rng.standard_normal((1000, 32)).astype(np.float32)
    stored = c_store(kind, x)
    q = c_read(kind, stored, 32) / stored[:, :2].copy().view(np.float16).astype(np.float64)
    scale = (x**3.0 * q).sum(-1) / (x**2.0 * q**2).sum(-1)
    mantissa, exponent = np.frexp(scale)
    tie = np.ldexp(np.floor(mantissa * 2**11) + 0.5, exponent - 11)  # fp16 keeps 11 bits
    check(kind, (x * (tie / scale)[:, None]).astype(np.float32))


def test_how_often_the_cpus_q8_0_differs() -> None:
    """By one code, for values next to a tie: 2.5 in a million normal floats (docstring of q8_0)."""
    x = np.random.default_rng(1).standard_normal((20000, 128)).astype(np.float32)
    kind = TYPES["q8_0"]
    differs = c_store(kind, x) != c_store(kind, x, cache=True)
    assert 0 < differs.sum() < 30  # 6 expected
