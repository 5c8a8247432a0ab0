"""What the native quantizers write, byte for byte against formats/."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from native_cases import bound, tokens

from nybble.errors import NybbleError
from nybble.formats.nyb4 import Nyb4
from nybble.runtime.layout import PAGE, Layout, layout
from nybble.runtime.native import active
from nybble.runtime.native_abi import WRITTEN
from nybble.runtime.native_attend import Format, Stored, quantize, unpack, writes

pytestmark = pytest.mark.skipif(not active().native, reason=active().reason)


@dataclass
class Written:
    """Pages that tokens were written into."""

    finite: bool
    rows: torch.Tensor
    untouched: bool


def written(name: str, side: str, x: torch.Tensor, first: int = 0) -> Written:
    """Quantize into pages full of 0xaa and read the rows back."""
    batch, heads, n, dim = x.shape
    kind = bound(name, side, heads, dim)
    where: Layout = layout(kind, side, dim)
    count = -(-(first + n) // PAGE)
    pages = [torch.full((batch, heads, PAGE * where.row_bytes), 0xAA).byte() for _ in range(count)]
    table = np.array(
        [[p.data_ptr() + b * p.stride(0) for b in range(batch)] for p in pages], dtype=np.uint64
    )
    widths = np.array(kind.widths, dtype=np.uint8) if name == "nyb4" else None
    format = Format(name, dim, len(where.codes), len(where.scales), widths)
    finite = quantize(Stored(format, heads, table), first, x)
    cut = PAGE * len(where.codes)
    codes = torch.cat([p[..., :cut].unflatten(-1, (PAGE, -1)) for p in pages], 2)
    scales = torch.cat([p[..., cut:].unflatten(-1, (PAGE, len(where.scales))) for p in pages], 2)
    rows = where.row(codes, scales)
    around = torch.cat([rows[:, :, :first], rows[:, :, first + n :]], 2)
    return Written(finite, rows[:, :, first : first + n], bool((around == 0xAA).all()))


def specified(name: str, side: str, x: torch.Tensor) -> torch.Tensor:
    """Rows as formats/ store them."""
    kind = bound(name, side, x.shape[1], x.shape[3])
    flat = kind.quantize(x.transpose(0, 1).flatten(1, 2))
    return flat.unflatten(1, (x.shape[0], x.shape[2])).transpose(0, 1)


def turned(side: str, x: torch.Tensor) -> torch.Tensor:
    """What nyb4 codes: the specification's own first step."""
    kind = bound("nyb4", side, x.shape[1], x.shape[3])
    assert isinstance(kind, Nyb4)
    groups = kind._turn(x.transpose(0, 1).flatten(1, 2)).flatten(-2)
    return groups.unflatten(1, (x.shape[0], x.shape[2])).transpose(0, 1)


KINDS_OF_INPUT = ["random", "outlier", "equal", "zeros", "huge", "denormal"]


@pytest.mark.parametrize("kind", KINDS_OF_INPUT)
@pytest.mark.parametrize("dim", [64, 128, 256])
@pytest.mark.parametrize("name", [n for n in WRITTEN if n != "nyb4"])
def test_bytes_equal_the_specification(name: str, dim: int, kind: str) -> None:
    x = tokens(kind, 2, 3, 100, dim)
    got = written(name, "K", x, first=30)
    assert torch.equal(got.rows, specified(name, "K", x))
    assert got.finite and got.untouched


@pytest.mark.parametrize("name", ["q4_0", "q8_0", "f16"])
def test_magnitudes_of_every_size(name: str) -> None:
    """Scales at the ends of float16's range and beyond, ties included."""
    exponents = torch.randint(-45, 38, (1, 2, 500, 2, 1))
    x = torch.randn(1, 2, 500, 2, 32) * 10.0**exponents
    x[0, 0, :, 0] = torch.randint(-127, 128, (500, 32)) * 0.5
    x = x.flatten(-2)
    assert torch.equal(written(name, "K", x).rows, specified(name, "K", x))


@pytest.mark.parametrize("name", ["q4_0", "q8_0"])
def test_values_that_are_not_finite_are_stored_as_specified_and_told(name: str) -> None:
    x = tokens("random", 1, 2, 40, 64)
    x[0, 0, 3, 5], x[0, 1, 7, 40], x[0, 1, 7, 63] = torch.nan, torch.inf, -torch.nan
    got = written(name, "K", x)
    assert not got.finite
    assert torch.equal(got.rows, specified(name, "K", x))


@pytest.mark.parametrize("side", ["K", "V"])
@pytest.mark.parametrize("dim", [64, 80, 128, 256])
def test_nyb4_finds_the_scales_of_the_specification(dim: int, side: str) -> None:
    """Two scales can be equally good but for rounding: then either may be taken, rarely."""
    x = tokens("random", 1, 3, 400, dim)
    got, wanted = written("nyb4", side, turned(side, x), first=10), specified("nyb4", side, x)
    same = (got.rows == wanted).all(-1)
    assert same.float().mean() >= 0.999
    assert got.finite and got.untouched


@pytest.mark.parametrize("kind", ["equal", "zeros", "huge", "denormal", "outlier"])
def test_nyb4_of_hard_inputs(kind: str) -> None:
    x = tokens(kind, 1, 2, 64, 128)
    got, wanted = written("nyb4", "K", turned("K", x)), specified("nyb4", "K", x)
    assert (got.rows == wanted).all(-1).float().mean() >= 0.99


def test_what_is_written_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    x = tokens("random", 1, 1, PAGE, 64)
    page = torch.zeros(1, 1, PAGE * 34 * 2, dtype=torch.uint8)
    stored = Stored(Format("q8_0", 64, 64, 4), 1, np.array([[page.data_ptr()]], dtype=np.uint64))
    quantize(stored, 0, x)
    assert (unpack(stored, 0, PAGE) - x).abs().max() < 0.02


def test_a_type_it_does_not_write_is_named() -> None:
    assert "do not write q5_1" in str(writes(Format("q5_1", 64, 40, 8)))
    assert writes(Format("q4_0", 64, 32, 4)) is None


def test_places_that_are_not_there_are_refused() -> None:
    page = torch.zeros(1, 1, PAGE * 34 * 2, dtype=torch.uint8)
    stored = Stored(Format("q8_0", 64, 64, 4), 1, np.array([[page.data_ptr()]], dtype=np.uint64))
    with pytest.raises(NybbleError, match="refused"):
        quantize(stored, 60, torch.zeros(1, 1, 5, 64))
