"""Energies that come from the child process are those of the engine."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from gguf_models import fill, write_tiny_gemma4
from nybble.engines.child import EngineCrashError
from nybble.engines.llamacpp.model import Model
from nybble.engines.llamacpp.observe import observe
from nybble.errors import EngineError
from nybble.hardening import observe as module
from nybble.hardening.observe import observe_llamacpp
from nybble.scoring.request import Silent

TEXTS = [
    np.random.default_rng(i).integers(4, 250, n).astype(np.int32) for i, n in ((0, 600), (1, 90))
]


@dataclass
class Told(Silent):
    """Progress that is kept."""

    steps: list[object] = field(default_factory=list)

    def stage(self, text: str) -> None:
        self.steps.append(text)

    def begin(self, text: str, total: float) -> None:
        self.steps.append((text, total))

    def advance(self, done: float) -> None:
        self.steps.append(done)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Layers of two shapes, and layers without keys."""
    return write_tiny_gemma4(tmp_path_factory.mktemp("m") / "m.gguf")


def test_the_same_numbers(path: Path) -> None:
    told = Told()
    found = observe_llamacpp(path, TEXTS, 1, 60, told)
    with closing(Model(path)) as model:
        own = observe(model, TEXTS, 1)
    assert sorted(found.layers) == sorted(own.layers) == [0, 1, 2]
    for i, layer in own.layers.items():
        np.testing.assert_array_equal(found.layers[i].keys, layer.keys)
        np.testing.assert_array_equal(found.layers[i].queries, layer.queries)
    for name in ("interleaved", "tokens", "text", "engine"):
        assert getattr(found, name) == getattr(own, name)
    begun = (f"keys and queries of {path.name}", 690)
    assert told.steps == ["loading the weights", begun, 512, 88, 90]


def test_errors_of_the_engine_arrive(path: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="too little text"):
        observe_llamacpp(path, [], 1, 60, Silent())
    with pytest.raises(EngineError, match="cannot load"):
        observe_llamacpp(tmp_path / "none.gguf", TEXTS, 1, 60, Silent())
    broken = fill(write_tiny_gemma4(tmp_path / "m.gguf"), r"blk\.1\.attn_k\.", np.inf)
    with pytest.raises(EngineError, match="not finite") as error:
        observe_llamacpp(broken, TEXTS, 1, 60, Silent())
    assert error.value.seen == "layer 1"


def test_a_silent_engine_is_ended(path: Path) -> None:
    with pytest.raises(EngineCrashError, match="hung"):
        observe_llamacpp(path, TEXTS, 1, 0.01, Silent())


def test_a_crash_is_an_error(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "aborting.py").write_text("import os, sys\nsys.stdin.buffer.read(4)\nos.abort()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(module, "WORKER", "aborting")
    with pytest.raises(EngineCrashError, match="SIGABRT"):
        observe_llamacpp(path, TEXTS, 1, 60, Silent())
