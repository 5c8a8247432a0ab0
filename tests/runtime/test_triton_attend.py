"""The Triton attention kernels against float64, in Triton's interpreter; no GPU is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

from triton_cases import Case, attend, refusals
from triton_child import child

# Units of 2^-22 of what a sum is made of (triton_cases.attend); bfloat16's halves have 16 bits.
LIMIT = 2.0
BF16_LIMIT = 128.0


@pytest.fixture(scope="module")
def run() -> Iterator[Callable[..., Any]]:
    with child(TRITON_INTERPRET="1") as call:
        yield call


def _limit(case: Case) -> float:
    return BF16_LIMIT if "bf16" in (case.k, case.v) else LIMIT


TYPES = ["f16", "bf16", "q8_0", "q4_0", "q4_1", "nyb4"]
FAST = {
    **{f"{t}, 64": Case(k=t, v=t, extra=("bias",)) for t in TYPES},
    "q4_0, 128": Case(k_dim=128, v_dim=128, count=60),
    "nyb4, 128": Case(k="nyb4", v="nyb4", k_dim=128, v_dim=128, count=60),
    "q8_0, 256": Case(k="q8_0", v="q8_0", k_dim=256, v_dim=256, count=60, heads=1),
    "q4_0, 512": Case(k_dim=512, v_dim=512, count=40, heads=1, tile=32),
    "not a power of two": Case(k="q4_0", v="q8_0", k_dim=96, v_dim=160, count=40),
    "plain, 80": Case(k="f16", v="bf16", k_dim=80, v_dim=80, count=40),
    "unlike sides": Case(k="q8_0", v="nyb4", k_dim=64, v_dim=128, count=70),
    "one row": Case(group=1, heads=1),
    "eight rows": Case(group=8, heads=1),
    "fifteen rows": Case(group=5, n=3, heads=1),
    "two blocks of rows": Case(group=8, n=5, heads=1, count=70),
    "all at once": Case(n=2, batch=2, extra=("mask", "bias", "added", "cap"), span="window"),
    "small tiles": Case(tile=16, n=2, span="window", heads=1),
    "one part": Case(pages=100, count=200, heads=1),
    "nothing seen": Case(span="none", heads=1),
    "a row without any": Case(span="some", n=2, heads=1),
    "repeated": Case(repeat=3, heads=1),
    "page edge": Case(count=59, heads=1),
    "outlier": Case(data="outlier", heads=1),
    "outlier, q8_0": Case(k="q8_0", v="q8_0", data="outlier", heads=1),
    "outlier, q4_1": Case(k="q4_1", v="q4_1", data="outlier", heads=1),
    "equal": Case(data="equal", heads=1),
    "zero": Case(data="zero", heads=1),
    "zero, nyb4": Case(k="nyb4", v="nyb4", data="zero", heads=1),
    "huge": Case(data="huge", heads=1),
    "huge, f16": Case(k="f16", v="f16", data="huge", heads=1),
    "tiny": Case(data="tiny", heads=1),
    "latent": Case(k="", v="q4_0", k_dim=128, v_dim=128, rotation=64, pairs=16, batch=2),
    "latent, f16": Case(k="", v="f16", v_dim=128, pairs=20, heads=1, extra=("mask", "bias")),
    "latent, nyb4": Case(k="", v="nyb4", v_dim=128, pairs=20, count=70),
    "latent, q4_1": Case(k="", v="q4_1", v_dim=128, pairs=16, rotation=64, heads=1, count=70),
    "latent, all turn": Case(k="", v="q8_0", v_dim=64, pairs=32, heads=1, count=70),
}


@pytest.mark.parametrize("name", FAST)
def test_matches_float64(name: str, run: Callable[..., Any]) -> None:
    case = FAST[name]
    assert run(attend, case) < _limit(case)


@pytest.mark.slow
@pytest.mark.parametrize("dim", [64, 128, 256, 512])
@pytest.mark.parametrize("name", TYPES)
def test_every_type_and_size(name: str, dim: int, run: Callable[..., Any]) -> None:
    case = Case(k=name, v=name, k_dim=dim, v_dim=dim, heads=1, group=3, n=2, tile=32)
    assert run(attend, replace(case, extra=("mask",))) < _limit(case)


@pytest.mark.slow
@pytest.mark.parametrize("data", ["outlier", "equal", "zero", "huge", "tiny"])
@pytest.mark.parametrize("name", TYPES)
def test_every_type_and_data(name: str, data: str, run: Callable[..., Any]) -> None:
    case = Case(k=name, v=name, data=data, heads=1)
    assert run(attend, case) < _limit(case)


@pytest.mark.slow
@pytest.mark.parametrize("name", TYPES)
def test_latent_of_every_type(name: str, run: Callable[..., Any]) -> None:
    """Gemma 4's shape: heads of 512, of which 64 pairs turn, 8 query heads a KV head."""
    rotation = 64 if name[0] == "q" else 0
    case = Case(k="", v=name, v_dim=512, pairs=64, rotation=rotation, heads=1, group=8, tile=32)
    assert run(attend, case) < _limit(case)


def test_refusals_name_the_reason(run: Callable[..., Any]) -> None:
    said = run(refusals)
    assert said["q4_0"] is None and said["latent"] is None and said["writes q4_0"] is None
    assert "q4_0" in said["writes searched"] and "f16" in said["writes f16"]
    assert "q5_1" in said["q5_1"] and "nyb4" in said["q5_1"]
    assert "1024" in said["1024"] and "512" in said["1024"]
    assert "rotations of 64" in said["latent of 32"]
    assert "heads of 64" in said["latent, small"]
    assert said["latent, all pairs"] is None
