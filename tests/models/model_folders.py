"""Folders of models that are files only: written, changed, and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nybble.errors import ModelFileError
from nybble.models.checkpoint import resolve
from nybble.models.folder import INDEX

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"],
          "max_position_embeddings": 2048}  # fmt: skip


def weights(path: Path, *names: str, fill: int = 0) -> None:
    """A safetensors file of one F32 tensor of two numbers for each name."""
    entries = {n: {"dtype": "F32", "shape": [2], "data_offsets": [8 * i, 8 * i + 8]}
               for i, n in enumerate(names)}  # fmt: skip
    header = json.dumps(entries).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes([fill]) * 8 * len(names))


def configure(folder: Path, **changed: Any) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changed}))


def shard(folder: Path, weight_map: object) -> None:
    (folder / "model.safetensors").unlink(missing_ok=True)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def refused(model: str | Path, *words: str) -> ModelFileError:
    """The error, which must name the next step and hold every word."""
    with pytest.raises(ModelFileError) as info:
        resolve(model)
    text = str(info.value)
    assert info.value.hint
    for word in words:
        assert word in text
    return info.value
