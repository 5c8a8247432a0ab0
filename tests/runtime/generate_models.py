"""A tiny model of bytes, its runtime and its tokenizer, built once a session."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders

from nybble.cli.generate_text import ModelText
from nybble.engines.transformers.load import load
from nybble.formats.setting import parse
from nybble.models.checkpoint import resolve
from nybble.runtime.generate import Runtime
from torch_runs import TEMPLATE, write_folder

CHAT = TEMPLATE + "{% if add_generation_prompt %}<s>assistant: {% endif %}"
CONTEXT = 512


@functools.cache
def folder(kind: str = "llama", template: str | None = CHAT) -> Path:
    """A random model with a vocabulary of bytes."""
    held = tempfile.TemporaryDirectory(prefix="nybble-test-")
    _HELD.append(held)
    path = write_folder(Path(held.name) / f"tiny-{kind}", kind, template=template)
    made = Tokenizer.from_file(str(path / "tokenizer.json"))
    made.decoder = decoders.ByteLevel()
    made.save(str(path / "tokenizer.json"))
    return path


_HELD: list[Any] = []  # removed when the session ends


@functools.cache
def model(kind: str = "llama") -> Any:
    """The loaded model, float32."""
    torch.set_num_threads(1)
    return load(resolve(folder(kind)), folder(kind).parent, torch.float32, "cpu")


@functools.cache
def text(kind: str = "llama") -> ModelText:
    """Its tokenizer."""
    return ModelText(resolve(folder(kind)))


def runtime(kv: str = "q8_0/q4_0", kind: str = "llama", **options: Any) -> Runtime:
    """The model in a KV setting, with a context that fills in a test."""
    return Runtime(model(kind), parse(kv), **{"context": CONTEXT, **options})
