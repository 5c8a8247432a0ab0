"""Pages of any bytes, and pages that end where memory ends."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_cases import bound, rows_of

from nybble.formats.registry import kv_type
from nybble.runtime.layout import PAGE, layout
from nybble.runtime.native import active, library
from nybble.runtime.native_abi import KINDS, MAX_DIM, CCall
from nybble.runtime.native_attend import Format, Stored, attend_segment, capable, unpack

pytestmark = pytest.mark.skipif(not active().native, reason=active().reason)


def format_of(name: str, dim: int, heads: int = 1) -> Format:
    kind = bound(name, "K", heads, dim)
    where = layout(kind, "K", dim)
    widths = np.array(kind.widths, dtype=np.uint8) if name == "nyb4" else None
    return Format(name, dim, len(where.codes), len(where.scales), widths)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(KINDS), st.integers(0, 2**32 - 1), st.integers(1, 9), st.booleans())
def test_any_bytes_are_read_without_a_crash(name: str, seed: int, height: int, wide: bool) -> None:
    dim = 256 if wide else 64
    format = format_of(name, dim)
    generator = torch.Generator().manual_seed(seed)
    size = PAGE * (format.code_bytes + format.scale_bytes)
    page = torch.randint(0, 256, (1, 1, size), generator=generator).byte()
    stored = Stored(format, 1, np.array([[page.data_ptr()]], dtype=np.uint64))
    q = torch.randn(1, 1, height, dim, generator=generator)
    out = attend_segment(rows_of(q, PAGE), stored, stored, 0, PAGE)
    assert out.acc.shape == (1, 1, height, dim)
    unpack(stored, 0, PAGE)


@pytest.mark.parametrize("name", KINDS)
def test_nothing_behind_a_page_is_read(name: str) -> None:
    """Pages end at memory that may not be touched: reading past them would end the process."""
    for dim in (64, 80, 512):
        if not kv_type(name).fits(dim):
            continue
        format = format_of(name, dim)
        size = PAGE * (format.code_bytes + format.scale_bytes)
        room = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        memory = mmap.mmap(-1, room + mmap.PAGESIZE)
        base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mprotect(ctypes.c_void_p(base + room), mmap.PAGESIZE, 0) == 0
        stored = Stored(format, 1, np.array([[base + room - size]], dtype=np.uint64))
        for height in (1, 4, 8):
            attend_segment(rows_of(torch.randn(1, 1, height, dim), PAGE), stored, stored, 0, PAGE)
        unpack(stored, 0, PAGE)
        assert libc.mprotect(ctypes.c_void_p(base + room), mmap.PAGESIZE, 3) == 0


def test_what_the_kernels_cannot_read_is_named() -> None:
    assert "do not read nvfp4" in str(capable(Format("nvfp4", 64, 36, 0)))
    assert "this one has 72" in str(capable(Format("f16", 72, 144, 0)))
    assert str(MAX_DIM) in str(capable(Format("f16", 2048, 4096, 0)))
    assert "calibrated" in str(capable(Format("nyb4", 64, 32, 4)))
    assert capable(Format("q4_0", 64, 32, 4)) is None


def test_a_call_without_sense_is_refused_in_c() -> None:
    """The C side checks by itself: zeros, sizes that do not fit, widths that overrun a row."""
    found = library()
    assert found is not None
    assert found.nyb_attend(ctypes.byref(CCall())) < 0
    widths = np.array([[7, 7]], dtype=np.uint8)
    page = torch.zeros(1, 1, PAGE * 64, dtype=torch.uint8)
    stored = Stored(
        Format("nyb4", 64, 32, 2, widths), 1, np.array([[page.data_ptr()]], dtype=np.uint64)
    )
    with pytest.raises(Exception, match="refused"):
        unpack(stored, 0, PAGE)
