"""What holds for every codec after ExLlama, mlx, quanto, hqq and KIVI; and their helpers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from nybble.formats import exl2, exl3, hqq, kivi, mlx, quanto  # noqa: E402
from nybble.formats.codes import butterfly, min_max, to_codes  # noqa: E402
from nybble.formats.kvtype import KVType  # noqa: E402
from nybble.formats.pack import pack_codes, unpack_codes  # noqa: E402
from nybble.formats.rotation import hadamard  # noqa: E402

FILES = (exl2, exl3, hqq, kivi, mlx, quanto)
TYPES = {t.name: t for file in FILES for t in file.TYPES}
each_type = pytest.mark.parametrize("kind", TYPES.values(), ids=TYPES)

BITS = {
    "exl2_q4": 4.5, "exl2_q8": 8.5, "mlx_4": 4.5, "mlx_8": 8.5, "hqq_4": 4.5, "hqq_8": 8.5,
    "quanto_2": 2.5, "quanto_4": 4.5, "kivi_k2": 3, "kivi_v2": 3, "kivi_k4": 5, "kivi_v4": 5,
} | {f"exl3_{k}": k + 0.5 for k in range(2, 9)}  # fmt: skip


def test_names_and_bits() -> None:
    assert {name: t.bits for name, t in TYPES.items()} == BITS


def test_aliases_name_pairs_of_types() -> None:
    pairs = exl2.ALIASES | kivi.ALIASES
    assert set(pairs) == {"exl2_q6", "kivi2", "kivi4"}
    for setting in pairs.values():
        k, v = (TYPES[name] for name in setting.split("/"))
        assert "K" in k.sides and "V" in v.sides


@each_type
@pytest.mark.parametrize("shape", [(64, 128), (2, 3, 32, 64), (1, 96, 256), (0, 128), (2, 0, 64)])
def test_shapes_and_bytes(kind: KVType, shape: tuple[int, ...]) -> None:
    *leading, n, d = shape
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    data = kind.quantize(x)
    assert data.dtype == torch.uint8
    assert data.shape == (*leading, n // kind.tokens, kind.row_bytes(d))
    assert data.numel() == kind.bytes_stored(n, d) * int(np.prod(leading))
    back = kind.dequantize(data, d)
    assert back.dtype == torch.float32 and back.shape == x.shape
    assert kind.bits_at(d) == BITS[kind.name]


@each_type
def test_rows_do_not_know_each_other(kind: KVType) -> None:
    if kind.name.startswith("hqq"):
        pytest.skip("hqq stops by the mean error of all it is given")
    x = torch.randn(3, 64, 128, generator=torch.Generator().manual_seed(2))
    data = kind.quantize(x)
    assert torch.equal(kind.quantize(x[1]), data[1])
    assert torch.equal(kind.quantize(x[:, 32:]), data[:, 32 // kind.tokens :])


@each_type
def test_zero_comes_back(kind: KVType) -> None:
    assert not kind.roundtrip(torch.zeros(2, 32, 128)).any()


@each_type
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 65504.0, 1e30, 6e-8, -1e-40])
def test_odd_values_do_not_raise(kind: KVType, value: float) -> None:
    x = torch.ones(1, 64, 128)
    x[0, 40, 7] = value
    back = kind.roundtrip(x)
    assert back.shape == x.shape
    assert back[0, :32].isfinite().all()  # no other group of tokens suffers
    assert kind.roundtrip(torch.full((1, 32, 128), value)).shape == (1, 32, 128)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from([1, 2, 4, 8]), st.integers(0, 4), st.integers(0, 2**32 - 1))
def test_packing_is_undone(width: int, bytes_: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 2**width, (3, bytes_ * 8 // width), dtype=np.uint8)
    data = pack_codes(torch.from_numpy(codes), width)
    assert data.shape == (3, bytes_)
    assert torch.equal(unpack_codes(data, width), torch.from_numpy(codes))


def test_packing_is_little_endian() -> None:
    assert pack_codes(torch.tensor([1, 0, 0, 0, 0, 0, 0, 1]).byte(), 1).tolist() == [0x81]
    assert pack_codes(torch.tensor([1, 2, 3, 0]).byte(), 2).tolist() == [0x39]
    assert pack_codes(torch.tensor([1, 2]).byte(), 4).tolist() == [0x21]


def test_codes_are_held_in_range() -> None:
    x = torch.tensor([-1.0, 16.0, torch.nan, torch.inf, -torch.inf, 7.0])
    assert to_codes(x, 15).tolist() == [0, 15, 0, 15, 0, 7]


def test_butterfly_is_the_hadamard_matrix() -> None:
    x = torch.randint(-9, 10, (5, 32), generator=torch.Generator().manual_seed(3)).float()
    assert torch.allclose(butterfly(x), x @ hadamard(32) * 32**0.5, atol=1e-3)
    assert torch.equal(butterfly(butterfly(x)), 32 * x)  # whole numbers: every sum is exact


def test_min_max_of_equal_values() -> None:
    codes, scale, low = min_max(torch.full((2, 32), -2.5).half(), 4)
    assert not codes.any() and not scale.any() and (low == -2.5).all()
