"""Tiny GGUF files, written by the gguf package, and the demo model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFValueType, GGUFWriter
from model_folders import CONFIG, weights

from nybble.errors import MissingExtraError
from nybble.models.demo import demo_model

BASE: dict[str, Any] = {
    "general.name": "Tiny",
    "general.file_type": 15,
    "general.tags": ["a", "b"],
    "{arch}.context_length": 128,
    "{arch}.embedding_length": 64,
    "{arch}.block_count": 3,
    "{arch}.attention.head_count": 4,
    "{arch}.attention.head_count_kv": 2,
    "{arch}.attention.layer_norm_rms_epsilon": 1e-5,
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.pre": "default",
    "tokenizer.ggml.tokens": ["<s>", "</s>", "é", "d"],
    "tokenizer.ggml.scores": [0.0, -1.0, -2.0, -3.0],
    "tokenizer.ggml.token_type": [3, 3, 1, 1],
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 1,
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.chat_template": "{{ messages }}",
}


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if key == "general.alignment":
        writer.add_custom_alignment(value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_key_value(key, value, GGUFValueType.UINT32)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def write(path: Path, changes: dict[str, Any] | None = None, arch: str = "llama",
          tensors: tuple[str, ...] = ("token_embd.weight", "blk.0.attn_k.weight"),
          bare: bool = False) -> Path:  # fmt: skip
    """Write a model; a change to None removes the key, and `bare` starts from no keys."""
    writer = GGUFWriter(path, arch)
    keys = {} if bare else {k.format(arch=arch): v for k, v in BASE.items()}
    for key, value in {**keys, **(changes or {})}.items():
        if value is not None:
            _add(writer, key, value)
    for i, name in enumerate(tensors):
        dtype = np.float16 if i % 2 else np.float32
        writer.add_tensor(name, np.ones((3, 5 + i), dtype=dtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def write_gguf(tmp_path: Path) -> Callable[..., Path]:
    def make(changes: dict[str, Any] | None = None, name: str = "tiny.gguf", **more: Any) -> Path:
        return write(tmp_path / name, changes, **more)

    return make


@pytest.fixture(scope="session")
def tiny_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write(tmp_path_factory.mktemp("tiny") / "tiny.gguf").read_bytes()


@pytest.fixture(scope="session")
def demo_gguf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    try:
        path = demo_model(tmp_path_factory.mktemp("demo"))
    except MissingExtraError:
        pytest.skip("the demo model is not installed")
    yield path
    path.unlink()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "tiny-llama"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    (path / "tokenizer.json").write_text("{}")
    weights(path / "model.safetensors", "a", "b")
    return path
