"""The Triton quantizers against formats/, byte for byte, in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

from triton_cases import append
from triton_child import child


@pytest.fixture(scope="module")
def run() -> Iterator[Callable[..., Any]]:
    with child(TRITON_INTERPRET="1") as call:
        yield call


@pytest.mark.parametrize("dim", [64, 96])
@pytest.mark.parametrize("name", ["q4_0", "q8_0"])
def test_bytes_are_those_of_the_formats(name: str, dim: int, run: Callable[..., Any]) -> None:
    assert run(append, name, dim) == 0
