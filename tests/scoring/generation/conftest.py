"""One plain run of generation on a tiny model that several test files look at."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from generation_runs import request

from nybble.scoring.generation.generate import Generated, generate


@pytest.fixture(scope="session")
def generated(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Generated]:
    """Two settings on six prompts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NYBBLE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield generate(request(tiny_model, tmp_path_factory.mktemp("generated")))


@pytest.fixture
def once_more(generated: Generated, tmp_path: Path) -> Path:
    """A copy of that run's folder to go on with."""
    return shutil.copytree(generated.folder, tmp_path / "again")
