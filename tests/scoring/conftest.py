"""One plain run on a tiny model that several test files look at."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_runs import request

from nybble.scoring.measure import Result, measure


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pydoc_data.topics import topics

    path = tmp_path_factory.mktemp("text") / "prose.txt"
    path.write_text("".join(topics[k] for k in sorted(topics))[:4000], encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def base(
    tiny_model: Path, text: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Result]:
    """One plain run that several tests look at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NYBBLE_CACHE", str(tmp_path_factory.mktemp("cache")))
        out = tmp_path_factory.mktemp("run")
        yield measure(request(tiny_model, text, out, memory_at=(4096,)))


@pytest.fixture
def again(base: Result, tmp_path: Path) -> Path:
    """A copy of that run's folder to go on with."""
    return shutil.copytree(base.folder, tmp_path / "again")
