"""Every recorded case in turn."""

from __future__ import annotations

from pathlib import Path

import pytest
from played_servers import CASES, name


@pytest.fixture(params=CASES, ids=name)
def case(request: pytest.FixtureRequest) -> Path:
    """A folder of recorded answers."""
    found: Path = request.param
    return found
