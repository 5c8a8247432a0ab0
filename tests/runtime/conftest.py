"""One thread for torch: on small tensors, threads wait for each other more than they compute."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    if "torch" in sys.modules:  # imported by the test files that need it
        sys.modules["torch"].set_num_threads(1)
