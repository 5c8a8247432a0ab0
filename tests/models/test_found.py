"""One name, one geometry: a file, a folder, a remote model, a known one, and what is none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from model_folders import CONFIG
from web_server import Web, plain_environment

from nybble.errors import ModelFileError
from nybble.models import catalogue
from nybble.models.found import find


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> Iterator[Web]:
    plain_environment(monkeypatch)
    with Web(files={"/m.gguf": tiny_model.read_bytes()}) as server:
        yield server


def test_a_gguf_by_its_path(tiny_model: Path) -> None:
    found = find(str(tiny_model))
    assert (found.kind, found.weights, found.path) == ("gguf", "gguf", tiny_model)
    assert found.file == tiny_model.name and found.size_bytes == tiny_model.stat().st_size
    assert found.geometry.architecture == "llama" and len(found.geometry.layers) == 2


def test_the_same_gguf_from_a_server(web: Web, tiny_model: Path) -> None:
    here, there = find(str(tiny_model)), find(web.url("/m.gguf"))
    assert there.geometry == here.geometry and there.path is None
    assert (there.file, there.size_bytes) == ("m.gguf", here.size_bytes)


def test_a_folder_or_its_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    for name in (tmp_path, tmp_path / "config.json"):
        found = find(str(name))
        assert (found.kind, found.weights, found.path) == ("folder", "safetensors", tmp_path)


@pytest.mark.parametrize("name", ["gemma-4-31b-qat", "Gemma-4-31B-QAT"])
def test_a_known_model(name: str) -> None:
    found = find(name)
    assert (found.kind, found.weights, found.path) == ("catalogue", "gguf", None)
    assert found.geometry.weights and found.geometry.weights.source == "published"
    assert find("gemma-4-31b").weights == "safetensors"


def test_every_alias_finds_its_model() -> None:
    for name in catalogue.names():
        entry = catalogue.find(name)
        assert entry is not None
        for alias in entry.aliases:
            assert find(alias).geometry.name == name


def test_a_path_goes_before_a_known_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gemma-4-31b").write_bytes(tiny_model.read_bytes())
    assert find("gemma-4-31b").geometry.architecture == "llama"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", ("catalogue",)),
        ("gemma-4-31c", ("gemma-4-31c", "nybble plan gemma-4-31b")),
        ("org/repo", ("hf:org/repo",)),
        ("none.gguf", ("none.gguf",)),
        ("\x1b[31mred", ("\\x1b",)),
    ],
)
def test_refused(name: str, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    plain_environment(monkeypatch)
    with pytest.raises(ModelFileError) as caught:
        find(name)
    assert "\x1b" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_offline_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    plain_environment(monkeypatch)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelFileError, match="HF_HUB_OFFLINE"):
        find("hf:org/repo/model.gguf")
