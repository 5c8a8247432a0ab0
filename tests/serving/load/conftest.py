"""Servers under load: llama.cpp's own with a tiny model, and one that misbehaves on purpose."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from load_servers import Misbehaving, engine


@pytest.fixture(scope="session")
def served(tiny_instruct: Path) -> Iterator[str]:
    """Address of llama.cpp's server in a child process: 4 slots of 1,024 tokens."""
    with engine(tiny_instruct) as url:
        yield url


@pytest.fixture(scope="session")
def served_too(tiny_instruct: Path) -> Iterator[str]:
    """A second one, with a q4_0 cache."""
    with engine(tiny_instruct, kv="q4_0") as url:
        yield url


@pytest.fixture
def bad() -> Iterator[Misbehaving]:
    """A loopback server whose first part of the path says how it misbehaves."""
    with Misbehaving() as server:
        yield server
