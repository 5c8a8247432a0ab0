"""A folder of safetensors like another, with trained values in place of some of its tensors."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nybble.errors import MissingExtraError, NybbleError, nearest
from nybble.formats.lazy import torch
from nybble.hardening.names import INSTALL, Array, plain_name
from nybble.models.file_kinds import show
from nybble.models.folder import INDEX, names_in, weight_files
from nybble.models.open_file import read_object
from nybble.models.safetensors_header import SafetensorsHeader, read_header

DTYPES = ("keep", "f32", "f16", "bf16")

_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# Files that may hold the weights once more: the untrained ones, which a program could load.
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx")

_Piece = tuple[str, tuple[int | slice, ...]]  # a parameter and which of its elements


def export_folder(
    source: Path,
    target: Path,
    tensors: Mapping[str, Array],
    dtype: str,
    record: Mapping[str, str],
    on_progress: Callable[[float], None],
) -> None:
    """Write the trained model; the caller gives a temporary name and renames it.

    Shards without a trained tensor and other files are copied as they are; subfolders and weights
    in other formats are left out. Memory holds one shard.

    Args:
        source: the folder that was trained.
        target: folder to create.
        tensors: trained values, float32, by the parameter's name in the model class.
        dtype: to store them in: "keep" (each its own), "f32", "f16" or "bf16".
        record: texts to add to the metadata of every shard that is written anew.
        on_progress: called with the fraction done.

    Raises:
        MissingExtraError: torch or safetensors is not installed.
        ModelFileError: the source is damaged or holds no safetensors.
        NybbleError: a parameter that does not fit the source, values that cannot be stored, a key
            that is there already, or a file that cannot be written.
    """
    if dtype not in DTYPES:
        raise NybbleError("unknown type to store tensors in", seen=show(dtype), allowed=DTYPES)
    shards = {path: read_header(path) for path in weight_files(source)}
    plan = _plan(shards, tensors)
    touched = [p for p, header in shards.items() if any(t.name in plan for t in header.tensors)]
    for path, header in shards.items():  # all: one that is not written anew keeps its own
        for key in record:
            if key in header.metadata:
                raise NybbleError("the model has this key already", seen=f"{path.name}: {key}",
                                  hint="start from the original folder")  # fmt: skip
    total = sum(header.file_size for header in shards.values())
    done = 0
    try:
        target.mkdir(exist_ok=True)
        for path, header in shards.items():
            if path in touched:
                _write_shard(path, target / path.name, header, plan, tensors, dtype, record)
            else:
                shutil.copyfile(path, target / path.name)
            done += header.file_size
            on_progress(done / total)
        for name in names_in(source):
            if (source / name).is_file() and not name.endswith(_WEIGHTS) and name != INDEX:
                shutil.copyfile(source / name, target / name)
        if all(path.name != "model.safetensors" for path in shards):  # else the index is not read
            _write_index(source / INDEX, target, shards)
    except OSError as e:
        raise NybbleError("cannot write the trained model", seen=f"{target}: {e.strerror or e}",
                          hint="free disk space, or another --out") from e  # fmt: skip


def _plan(
    shards: Mapping[Path, SafetensorsHeader], tensors: Mapping[str, Array]
) -> dict[str, _Piece]:
    """What becomes of every stored tensor that is replaced, by its name in the files."""
    shapes = {t.name: t.shape for header in shards.values() for t in header.tensors}
    # A class may hold its parameters under another prefix than the files: Gemma 3's language
    # model is language_model.model in the files and model.language_model in the class.
    plain = {plain_name(name): name for name in shapes}
    plan: dict[str, _Piece] = {}
    for name, values in tensors.items():
        found = _stored(name, values.shape, shapes.keys(), plain)
        if not found:
            near = nearest(name, shapes)
            raise NybbleError("the folder holds no tensor for this parameter of the model",
                              seen=show(name), allowed=f"nearest: {near}" if near else None,
                              hint="name the folder that was trained")  # fmt: skip
        for stored, pick in found.items():
            shape = values[pick].shape
            if shape != shapes[stored]:
                raise NybbleError("a trained tensor has another shape than the folder's",
                                  seen=f"{name} {list(shape)}",
                                  allowed=f"{stored} {list(shapes[stored])}",
                                  hint="name the folder that was trained")  # fmt: skip
            before = plan.get(stored)
            if before and not np.array_equal(tensors[before[0]], values):
                raise NybbleError(
                    "two parameters with different values would be stored in one tensor",
                    seen=f"{before[0]} and {name} in {stored}",
                    allowed="tied embeddings, since the folder has one matrix for both",
                    hint="train them apart in a folder with lm_head.weight",
                )  # fmt: skip
            plan[stored] = (name, pick)
    return plan


def _stored(
    name: str, shape: tuple[int, ...], stored: Collection[str], plain: Mapping[str, str]
) -> dict[str, tuple[int | slice, ...]]:
    """The tensors in the files that hold a parameter, and which part of it each is."""
    if name in stored:
        return {name: ()}
    short = plain_name(name)
    if short in plain:
        return {plain[short]: ()}
    if short == "lm_head.weight" and "model.embed_tokens.weight" in plain:
        return {plain["model.embed_tokens.weight"]: ()}  # tied
    # Classes join the experts of a layer, which most folders store one by one.
    start, _, matrix = short.rpartition(".")
    if not start.endswith(".experts") or len(shape) != 3:
        return {}
    half = shape[1] // 2
    parts = {"gate_up_proj": {"gate_proj": slice(half), "up_proj": slice(half, None)},
             "down_proj": {"down_proj": slice(None)}}.get(matrix, {})  # fmt: skip
    wanted = {f"{start}.{e}.{m}.weight": (e, rows) for e in range(shape[0])
              for m, rows in parts.items()}  # fmt: skip
    if not all(n in plain for n in wanted):
        return {}
    return {plain[n]: pick for n, pick in wanted.items()}


def _write_shard(
    path: Path,
    target: Path,
    header: SafetensorsHeader,
    plan: Mapping[str, _Piece],
    tensors: Mapping[str, Array],
    dtype: str,
    record: Mapping[str, str],
) -> None:
    package, library = _safetensors()
    kept: dict[str, torch.Tensor] = {}
    try:
        with package.safe_open(path, framework="pt") as file:
            for info in header.tensors:
                if info.name in plan:
                    kind = info.type_name if dtype == "keep" else dtype.upper()
                    kept[info.name] = _values(info.name, kind, plan[info.name], tensors)
                else:
                    kept[info.name] = file.get_tensor(info.name)
        library.save_file(kept, target, {**header.metadata, "format": "pt", **record})
    except package.SafetensorError as e:
        raise OSError(str(e)) from e  # a full disk comes as this, without a number


def _values(name: str, kind: str, piece: _Piece, tensors: Mapping[str, Array]) -> torch.Tensor:
    if kind not in _DTYPES:
        raise NybbleError("a tensor is stored in a type that trained values cannot take",
                          seen=f"{name} is {kind}", allowed=_DTYPES,
                          hint="store trained tensors as bf16")  # fmt: skip
    parameter, pick = piece
    values = np.ascontiguousarray(tensors[parameter][pick], dtype=np.float32)
    stored = torch.from_numpy(values).to(getattr(torch, _DTYPES[kind]))
    if not torch.isfinite(stored).all():
        limit = torch.finfo(stored.dtype).max
        raise NybbleError(
            "a trained tensor holds values that cannot be stored",
            seen=f"{parameter}: {np.abs(values).max():g} as {kind}",
            allowed=f"finite numbers up to {limit:,g}",
            hint="train again with a smaller learning rate",
        )  # fmt: skip
    return stored


def _write_index(index: Path, target: Path, shards: Mapping[Path, SafetensorsHeader]) -> None:
    """Copy the index; its sum of bytes is put right where tensors changed their type."""
    content = read_object(index)
    metadata = content.get("metadata")
    if isinstance(metadata, dict) and "total_size" in metadata:
        now = (read_header(target / path.name) for path in shards)
        metadata["total_size"] = sum(t.n_bytes for header in now for t in header.tensors)
    (target / INDEX).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _safetensors() -> tuple[Any, Any]:
    """The package safetensors and its part for torch."""
    try:
        return importlib.import_module("safetensors"), importlib.import_module("safetensors.torch")
    except ImportError as e:
        raise MissingExtraError("writing a trained folder needs safetensors and torch",
                                hint=INSTALL) from e  # fmt: skip
