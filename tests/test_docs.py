"""Generated pages are what the code says now; the README keeps its two commands."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from nybble.scoring.compare import ROW
from nybble.scoring.statistics import Sample, ScoredChunk, metrics

ROOT = Path(__file__).parents[1]


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_docs", ROOT / "bench" / "make_docs.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", sorted(_script().pages()))
def test_generated_page_is_current(name: str) -> None:
    written = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert written == _script().pages()[name], "run python bench/make_docs.py"


def test_readme_keeps_its_commands() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert 'pip install -c constraints.txt -e ".[demo]" && nybble measure' in lines
    assert 'pip install -c constraints.txt -e ".[dev]" && pytest' in lines


def test_every_metric_is_documented() -> None:
    rows = np.zeros(4, dtype=ROW)
    found = metrics(Sample([ScoredChunk("prose", "one", rows)]))
    text = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    assert [name for name in found if name not in text] == []
