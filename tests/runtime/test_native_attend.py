"""The native kernels against float64, every variant that this machine runs."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from native_cases import (
    OFFSET,
    TOKENS,
    compare,
    compare_rebuilt,
    from_rows,
    packed,
    rows_of,
    tokens,
)

from nybble.errors import NybbleError
from nybble.formats.registry import kv_type
from nybble.runtime import native
from nybble.runtime.native_abi import KINDS
from nybble.runtime.native_attend import attend_segment, unpack

DIMS = (64, 80, 128, 256, 512)
HEIGHTS = (1, 2, 3, 4, 8, 11)


def runnable() -> list[str]:
    """Names for NYBBLE_KERNEL that this build and processor have."""
    kernel, library = native._opened("")
    if library is None:
        return []
    return [f"native-{name}" for name in library.nyb_variants().decode().split()]


@pytest.fixture(params=runnable() or [pytest.param("", marks=pytest.mark.skip("no native build"))])
def kernel(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every variant in turn."""
    before = os.environ.get(native.VARIABLE)
    os.environ[native.VARIABLE] = request.param
    yield request.param
    if before is None:
        del os.environ[native.VARIABLE]
    else:
        os.environ[native.VARIABLE] = before


@pytest.mark.parametrize(
    ("name", "dim"), [(name, dim) for name in KINDS for dim in DIMS if kv_type(name).fits(dim)]
)
def test_every_type_head_size_and_number_of_rows(kernel: str, name: str, dim: int) -> None:
    x = tokens("random", 2, 2, TOKENS, dim)
    k, v = packed(name, "K", x), packed(name, "V", x.flip(2))
    for offset in (0, OFFSET):
        got = unpack(v.stored, offset, TOKENS - offset)
        assert (got - v.y[:, :, offset:]).abs().max() <= 1e-6 * v.y.abs().max()
    for height in HEIGHTS:
        q = torch.randn(2, 2, height, dim) / dim**0.5
        compare(rows_of(q, TOKENS - OFFSET, bias=torch.randn(2, 2, height)), k, v)


@pytest.mark.parametrize("kind", ["outlier", "equal", "zeros", "huge", "denormal"])
@pytest.mark.parametrize("name", KINDS)
def test_inputs_that_are_hard(kernel: str, name: str, kind: str) -> None:
    dim = 128
    x = tokens(kind, 1, 2, TOKENS, dim)
    k, v = packed(name, "K", x), packed(name, "V", x)
    size = k.y.abs().amax().clamp(min=1e-30)
    for height in (1, 4, 8):
        q = torch.randn(1, 2, height, dim) / (size.float() * dim**0.5)
        compare(rows_of(q.clamp(-1e30, 1e30), TOKENS - OFFSET), k, v)


@pytest.mark.parametrize("pair", [("q8_0", "q4_0"), ("nyb4", "f16"), ("bf16", "iq4_nl")])
def test_any_k_type_goes_with_any_v_type(kernel: str, pair: tuple[str, str]) -> None:
    x = tokens("random", 1, 2, TOKENS, 128)
    k, v = packed(pair[0], "K", x), packed(pair[1], "V", x)
    compare(rows_of(torch.randn(1, 2, 4, 128) / 11, TOKENS - OFFSET), k, v)


def test_k_and_v_of_different_size(kernel: str) -> None:
    k, v = (
        packed("q4_0", s, tokens("random", 1, 2, TOKENS, d)) for s, d in (("K", 192), ("V", 64))
    )
    compare(rows_of(torch.randn(1, 2, 3, 192) / 14, TOKENS - OFFSET), k, v)


@pytest.mark.parametrize("softcap", [None, 2.0, 50.0])
@pytest.mark.parametrize("group", [1, 3])
def test_ranges_masks_added_scores_and_caps(kernel: str, group: int, softcap: float | None) -> None:
    n, count = 4, TOKENS - OFFSET
    x = tokens("random", 3, 2, TOKENS, 64)
    k, v = packed("q4_0", "K", x), packed("q8_0", "V", x)
    q = torch.randn(3, 2, group * n, 64)
    start, stop = torch.tensor([0, 3, 60, 20]), torch.tensor([10, count - 1, count, 20])
    mask = torch.rand(3, n, count) > 0.3
    mask[1, 0] = False
    added = torch.randn(3, 1, group * n, count)
    added[0, 0, 1, 5:40] = -torch.inf
    for given in ({}, {"mask": mask}, {"added": added}, {"mask": mask, "added": added}):
        more = {"bias": torch.randn(3, 2, group * n), "softcap": softcap, **given}
        compare(rows_of(q, count, start=start, stop=stop, **more), k, v)


def test_batch_rows_that_share_their_memory(kernel: str) -> None:
    k, v = (packed("q4_0", s, tokens("random", 3, 2, TOKENS, 64), shared=True) for s in "KV")
    assert k.pages[0].stride(0) == 0
    compare(rows_of(torch.randn(3, 2, 4, 64), TOKENS - OFFSET), k, v)


def test_nothing_to_see(kernel: str) -> None:
    k, v = (packed("q4_0", s, tokens("random", 1, 1, 64, 64)) for s in "KV")
    q, behind = torch.randn(1, 1, 2, 64), torch.tensor([70])
    for count, given in ((0, {}), (64, {"start": behind, "stop": behind})):
        out = attend_segment(rows_of(q, count, **given), k.stored, v.stored, 0, count)
        assert (out.m == -torch.inf).all() and not out.l.any() and not out.acc.any()


def test_parts_are_joined_and_threads_change_nothing_that_matters(kernel: str) -> None:
    """Long enough for several parts and threads."""
    x = tokens("random", 1, 1, 4000, 64)
    k, v = packed("q8_0", "K", x), packed("q8_0", "V", x)
    rows = rows_of(torch.randn(1, 1, 8, 64), 4000 - OFFSET)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            compare(rows, k, v)
    finally:
        torch.set_num_threads(before)


def test_threads_of_its_own_where_no_openmp_is(kernel: str) -> None:
    library = native.library()
    assert library is not None
    x = tokens("random", 1, 1, 4000, 64)
    k, v = packed("q8_0", "K", x), packed("q8_0", "V", x)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    library.nyb_set_parallel(None)
    try:
        compare(rows_of(torch.randn(1, 1, 8, 64), 4000 - OFFSET), k, v)
    finally:
        library.nyb_set_parallel(native._openmp_entry())
        torch.set_num_threads(before)


def test_what_a_row_does_not_see_cannot_spoil_it(kernel: str) -> None:
    """A NaN scale reaches the row that looks at its token, and no other."""
    dim = 64
    kind = kv_type("q4_0")
    rows = kind.quantize(tokens("random", 1, 1, TOKENS, dim))
    rows[0, 0, 70, :2] = torch.tensor([0, 0x7E], dtype=torch.uint8)  # d = NaN
    bad = from_rows("q4_0", "V", kind, rows, dim)
    good = packed("q4_0", "K", tokens("random", 1, 1, TOKENS, dim))
    q = torch.randn(1, 1, 3, dim)
    start, stop = torch.tensor([0, 71, 0]), torch.tensor([70, TOKENS, TOKENS])
    out = attend_segment(
        rows_of(q, TOKENS, start=start, stop=stop), good.stored, bad.stored, 0, TOKENS
    )
    assert out.acc[0, 0, :2].isfinite().all()
    assert out.acc[0, 0, 2].isnan().any()


@pytest.mark.parametrize(("dim", "pairs", "rotation"), [
    (512, 64, 64), (512, 64, 0), (128, 64, 64), (64, 16, 64), (256, 40, 64), (256, 40, 0),
    (64, 32, 0), (512, 0, 64),
])  # fmt: skip
@pytest.mark.parametrize("name", ["f16", "q8_0", "q4_0"])
def test_keys_rebuilt_from_values(
    kernel: str, name: str, dim: int, pairs: int, rotation: int
) -> None:
    compare_rebuilt(name, dim, pairs, rotation)


def test_shapes_that_do_not_belong_together_are_refused(kernel: str) -> None:
    k, v = (packed("q4_0", s, tokens("random", 1, 2, 64, 64)) for s in "KV")
    with pytest.raises(NybbleError, match="size of queries and keys"):
        attend_segment(rows_of(torch.randn(1, 2, 1, 32), 64), k.stored, v.stored, 0, 64)
    with pytest.raises(NybbleError, match="batch and heads"):
        attend_segment(rows_of(torch.randn(1, 3, 1, 64), 64), k.stored, v.stored, 0, 64)
    with pytest.raises(NybbleError, match="refused"):
        attend_segment(rows_of(torch.randn(1, 2, 1, 64), 64), k.stored, v.stored, 1, 64)
    with pytest.raises(NybbleError, match="refused"):
        unpack(v.stored, 1, 64)
    assert isinstance(v.stored.table, np.ndarray)
