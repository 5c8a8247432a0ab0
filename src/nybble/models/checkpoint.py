"""From what the user names to a checked model: a GGUF file, a folder, or a hub id in the cache."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from nybble.errors import ModelFileError
from nybble.models.content_hash import file_sha256, files_sha256
from nybble.models.file_kinds import missing, not_regular
from nybble.models.folder import (
    NEEDED,
    chat_template,
    check_tokenizer,
    context_length,
    quantization,
    read_config,
    weight_files,
)
from nybble.models.hub_cache import is_hub_id, snapshot
from nybble.models.summary import summarise


@dataclass(frozen=True)
class Checkpoint:
    """A model that was found and whose headers were checked; its weights are not loaded.

    `path` is the GGUF file or the folder. `files` are the files with weights, `size_bytes` their
    sum. `config` is config.json, as it stands there, and empty for a GGUF. `architecture` is the
    GGUF's or config.json's model_type. `context_length` (tokens) is None when config.json leaves
    it to the model class.
    """

    kind: Literal["gguf", "folder"]
    path: Path
    name: str
    files: tuple[Path, ...]
    config: Mapping[str, Any]
    size_bytes: int
    architecture: str
    context_length: int | None
    chat_template: str | None

    @property
    def quantization(self) -> str | None:
        """How a folder's weights are quantized, as its config.json names it."""
        return quantization(self.config)

    def fingerprint(self, cache: Path) -> str:
        """SHA-256 in hex of the contents that decide the logits.

        Of a GGUF in one file: that file's. Of a split GGUF: over the SHA-256 of its files; of a
        folder: the same with config.json among them. File hashes are remembered in `cache`.

        Raises:
            ModelFileError: a file cannot be read.
        """
        if self.kind == "folder":
            return files_sha256([*self.files, self.path / "config.json"], cache)
        if len(self.files) == 1:
            return file_sha256(self.files[0], cache)
        return files_sha256(self.files, cache)


def resolve(model: str | Path, *, packed: bool = False) -> Checkpoint:
    """Find a model and check everything but its weights.

    Args:
        model: a GGUF file, a folder with config.json, tokenizer.json and safetensors, or the id of
            a hub model that is in the local Hugging Face cache. A path that exists goes first.
        packed: whether a folder's weights may be quantized.

    Raises:
        ModelFileError: it is not there, damaged, hostile, or of a kind nybble does not load.
    """
    path = Path(model)
    try:
        if path.is_dir():
            return _folder(path, path.resolve().name or str(path), packed)
        if path.is_file():
            return _file(path)
        there = path.exists() or path.is_symlink()
    except (OSError, ValueError) as e:  # a name too long, a zero byte in it
        raise ModelFileError("Cannot look for the model", seen=f"{str(model)[:60]!r}: {e}",
                             hint="check the path") from e  # fmt: skip
    if there:
        raise missing(path) if path.is_symlink() else not_regular(path)
    text = str(model)
    if not is_hub_id(text) or text.endswith(".gguf"):
        raise _nothing(path)
    return _folder(snapshot(text), text, packed)


def _file(path: Path) -> Checkpoint:
    if path.suffix == ".safetensors" or path.name == "config.json":
        raise ModelFileError("This file is one part of a model", seen=path,
                             allowed=f"a .gguf file, or the folder with {NEEDED}",
                             hint=f"name the folder: {path.parent}")  # fmt: skip
    summary = summarise(path)
    return Checkpoint(
        kind="gguf",
        path=path,
        name=summary.name or path.stem,
        files=_gguf_files(path, summary.size_bytes),
        config=MappingProxyType({}),
        size_bytes=summary.size_bytes,
        architecture=summary.architecture,
        context_length=summary.context_length,
        chat_template=summary.chat_template,
    )


def _gguf_files(path: Path, size_bytes: int) -> tuple[Path, ...]:
    """The file, or all files of the split model whose first one it is; `summarise` checked them."""
    parts = re.fullmatch(r"(.*)-00001-of-(\d{5})\.gguf", path.name, re.DOTALL)
    if parts is None or path.stat().st_size == size_bytes:
        return (path,)
    stem, n = parts[1], int(parts[2])
    return tuple(path.with_name(f"{stem}-{i:05d}-of-{n:05d}.gguf") for i in range(1, n + 1))


def _nothing(path: Path) -> ModelFileError:
    if path.suffix == ".gguf":
        return missing(path)
    return ModelFileError("There is no such model", seen=path,
                          allowed=f"a .gguf file, a folder with {NEEDED}, or a hub id such as "
                          "google/gemma-3-270m", hint="check the path")  # fmt: skip


def _folder(path: Path, name: str, packed: bool) -> Checkpoint:
    config = read_config(path, packed=packed)
    files = weight_files(path)
    check_tokenizer(path)
    return Checkpoint(
        kind="folder",
        path=path,
        name=name,
        files=files,
        config=MappingProxyType(config),
        size_bytes=sum(f.stat().st_size for f in files),
        architecture=config["model_type"],
        context_length=context_length(config),
        chat_template=chat_template(path),
    )
