"""Servers of `nybble serve` with the tiny model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from served_models import served

from nybble.serving.serve import Server


@pytest.fixture(scope="session")
def serving() -> Callable[..., Any]:
    """`served`, for tests that need other settings."""
    return served


@pytest.fixture(scope="session")
def serving_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where records of servers are kept, for servers that outlive a test."""
    return tmp_path_factory.mktemp("serving-cache")


@pytest.fixture(autouse=True)
def _one_cache(_own_cache: None, serving_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NYBBLE_CACHE", str(serving_cache))


@pytest.fixture(scope="module")
def server(
    tiny_instruct: Path, serving_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """One q4_0/q4_0 server of 2 x 1,024 tokens that saves slots."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NYBBLE_CACHE", str(serving_cache))
        with served(tiny_instruct, slots=tmp_path_factory.mktemp("slots")) as found:
            yield found
