"""A prefix in a file: the packed bytes of all sequences of a cache, as safetensors.

A tensor for each layer, strand and side, `layer.3.body.k` and so on: uint8 [B, heads, tokens,
row_bytes], a row being the KV type's own bytes (formats/), so that the file depends on no kernel's
page layout. The metadata says which setting and which model they belong to.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PreTrainedConfig, PreTrainedModel

from nybble.environment import VERSION
from nybble.errors import NybbleError
from nybble.formats.calibration import Calibration
from nybble.runtime.cache import Cache
from nybble.runtime.layer import PackedLayer

KIND = "nybble-prefix"
FORMAT = "1"
_LARGEST = 1 << 20  # batch, heads or head size that a file may claim
_SAMPLE = 64  # numbers of each key projection that tell fine-tunes apart
_DTYPES = {"torch.float32": torch.float32, "torch.float16": torch.float16,
           "torch.bfloat16": torch.bfloat16}  # fmt: skip


def save(cache: Cache, path: Path, tokens: torch.Tensor | None = None) -> None:
    """Write a cache; see `Cache.save`.

    Raises:
        NybbleError: nothing is in it, or the file cannot be written.
    """
    if not cache.get_seq_length():
        raise NybbleError("there is nothing to save", seen="an empty cache",
                          allowed="a cache that a model has filled")  # fmt: skip
    layers = cache.packed
    tensors: dict[str, torch.Tensor] = {}
    for layer in layers:
        for name, strand in _strands(layer):
            for side, pages, codec in (
                ("k", strand.k_pages, strand.k), ("v", strand.v_pages, strand.v)
            ):  # fmt: skip
                if pages is None or codec is None:
                    continue
                rows = codec.layout.row(*pages.read(0, pages.count))
                tensors[f"layer.{layer.plan.index}.{name}.{side}"] = rows.contiguous().cpu()
            start = torch.tensor([strand.start])
            tensors[f"layer.{layer.plan.index}.{name}.start"] = start
        tensors[f"layer.{layer.plan.index}.shape"] = torch.tensor([layer.batch_size, *layer.shape])
        latent = layer.body.latent
        if latent is not None and latent.shift is not None:
            tensors[f"layer.{layer.plan.index}.shift"] = latent.shift.cpu()
    if tokens is not None:
        tensors["tokens"] = tokens.to("cpu", torch.long).contiguous()
    metadata = {
        "kind": KIND,
        "format": FORMAT,
        "nybble": VERSION,
        "setting": str(cache.setting),
        "config": config_digest(cache.config),
        "weights": weights_digest(cache.model),
        "calibration": calibration_digest(layers[0].plan.calibration),
        "length": str(cache.get_seq_length()),
        "dtype": str(layers[0].dtype),
        "model": str(getattr(cache.config, "_name_or_path", "")),
    }
    partial = path.with_name(path.name + ".partial")
    try:
        save_file(tensors, str(partial), metadata)
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise NybbleError(
            "the prefix cannot be written", seen=f"{path}: {error}",
            hint="a folder that exists, and room for "
            f"{sum(t.nbytes for t in tensors.values()):,} bytes",
        ) from error  # fmt: skip


def load(
    path: Path,
    model: PreTrainedModel | PreTrainedConfig,
    calibration: Calibration | None = None,
    max_length: int | None = None,
) -> Cache:
    """Read a cache; see `Cache.load`."""
    metadata, tensors = _read(path)
    setting = metadata["setting"]
    cache = Cache(model, setting, calibration=calibration, max_length=max_length)
    _same_model(path, metadata, cache, calibration)
    device = cache.model.device if cache.model is not None else torch.device("cpu")
    dtype = _DTYPES.get(metadata["dtype"]) if cache.model is None else cache.model.dtype
    length = int(metadata["length"]) if metadata["length"].isdecimal() else -1
    if dtype is None or length < 1:
        raise _broken(path, f"dtype {metadata['dtype']!r}, length {metadata['length']!r}")
    for layer in cache.packed:
        _fill(path, layer, tensors, length, dtype, device)
    return cache


def tokens_of(path: Path) -> torch.Tensor | None:
    """The ids a prefix was made from, int64 [B, tokens], if they were saved with it."""
    found = _read(path)[1].get("tokens")
    if found is not None and (found.dtype != torch.long or found.dim() != 2):
        raise _broken(path, f"tokens {found.dtype} {tuple(found.shape)}")
    return found


def _strands(layer: PackedLayer) -> list[tuple[str, Any]]:
    names = ["first"] * bool(layer.first) + ["body"] + ["recent"] * bool(layer.recent)
    return list(zip(names, layer.strands, strict=True))


def _read(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise NybbleError(
            "this prefix cannot be read", seen=f"{path}: {error}",
            allowed="a file that Cache.save wrote",
        ) from error  # fmt: skip
    if metadata.get("kind") != KIND:
        raise NybbleError("this file is no prefix", seen=f"{path}: {metadata.get('kind')!r}",
                          allowed="a file that Cache.save wrote")  # fmt: skip
    if metadata.get("format") != FORMAT:
        raise NybbleError(
            "this prefix has another format version",
            seen=f"{path}: format {metadata.get('format')!r}, written by nybble "
            f"{metadata.get('nybble')!r}",
            allowed=f"format {FORMAT}",
            hint="make the prefix again with this version",
        )
    missing = [k for k in ("setting", "config", "length", "dtype") if k not in metadata]
    if missing:
        raise _broken(path, f"no {missing[0]} in its metadata")
    return metadata, tensors


def _broken(path: Path, what: str) -> NybbleError:
    return NybbleError("this prefix is damaged", seen=f"{path}: {what}",
                       hint="make the prefix again")  # fmt: skip


def _same_model(
    path: Path, metadata: dict[str, str], cache: Cache, calibration: Calibration | None
) -> None:
    pairs = [
        ("config", config_digest(cache.config), "a model of another shape"),
        ("weights", weights_digest(cache.model), "other weights of the same shape"),
        ("calibration", calibration_digest(calibration), "another calibration"),
    ]
    for key, mine, what in pairs:
        theirs = metadata.get(key, "")
        if mine and theirs and mine != theirs:
            raise NybbleError(
                f"this prefix was made with {what}",
                seen=f"{path}, from {metadata.get('model') or 'an unnamed model'}",
                allowed="the model it was made with",
                hint="make the prefix again with this model",
            )


def _fill(
    path: Path, layer: PackedLayer, tensors: dict[str, torch.Tensor], length: int,
    dtype: torch.dtype, device: torch.device,
) -> None:  # fmt: skip
    index = layer.plan.index
    batch, heads, k_dim, v_dim = _shape(layer, tensors, path)
    layer.lazy_initialization(
        torch.empty(batch, heads, 0, k_dim, dtype=dtype, device=device),
        torch.empty(batch, heads, 0, v_dim, dtype=dtype, device=device),
    )
    for name, strand in _strands(layer):
        start = tensors.get(f"layer.{index}.{name}.start")
        if start is None or start.dtype != torch.long or start.numel() != 1:
            raise _broken(path, f"layer {index} has no start of {name}")
        counts = set()
        for side, pages, codec in (
            ("k", strand.k_pages, strand.k), ("v", strand.v_pages, strand.v)
        ):  # fmt: skip
            if pages is None or codec is None:
                continue
            rows = tensors.get(f"layer.{index}.{name}.{side}")
            shape = (batch, heads, codec.layout.row_bytes)
            if rows is None or rows.dtype != torch.uint8 or rows.dim() != 4:
                raise _broken(path, f"layer {index} has no {name}.{side}")
            if (*rows.shape[:2], rows.shape[3]) != shape:
                raise _broken(path, f"layer {index}, {name}.{side}: {tuple(rows.shape)}")
            pages.start = int(start)
            pages.append(*codec.layout.split(rows.to(device)))
            counts.add(pages.stop)
        ends = {length} if name != "first" else {min(length, layer.first), strand.start}
        if len(counts) != 1 or not counts <= ends | ({strand.start} if not strand.count else set()):
            raise _broken(path, f"layer {index}, {name}: ends at {sorted(counts)} of {length}")
    shift = tensors.get(f"layer.{index}.shift")
    if layer.body.latent is not None:
        if shift is None or shift.dtype != torch.long or shift.shape != (batch,):
            raise _broken(path, f"layer {index} has no shift")
        layer.body.latent.shift = shift.to(device)
    layer.length = length


def _shape(
    layer: PackedLayer, tensors: dict[str, torch.Tensor], path: Path
) -> tuple[int, int, int, int]:
    """Batch, KV heads, and head sizes of K and V."""
    found = tensors.get(f"layer.{layer.plan.index}.shape")
    if found is None or found.dtype != torch.long or found.shape != (4,) or int(found.min()) < 1:
        raise _broken(path, f"layer {layer.plan.index} has no shape")
    if int(found.max()) > _LARGEST:
        raise _broken(path, f"layer {layer.plan.index}: {found.tolist()}")
    batch, heads, k_dim, v_dim = found.tolist()
    return batch, heads, k_dim, v_dim


def config_digest(config: Any) -> str:
    """SHA-256 of what a config says of the model, names and paths left out."""
    said = config.to_dict()
    for key in ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures",
                "use_cache", "_attn_implementation_internal"):  # fmt: skip
        said.pop(key, None)
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()


def weights_digest(model: PreTrainedModel | None) -> str:
    """SHA-256 of a sample of what makes keys; "" without a model."""
    if model is None:
        return ""
    found = hashlib.sha256()
    for name, p in model.named_parameters():
        if "k_proj" in name or "qkv" in name:
            found.update(p.detach().flatten()[:_SAMPLE].float().cpu().numpy().tobytes())
    return found.hexdigest()


def calibration_digest(calibration: Calibration | None) -> str:
    """SHA-256 of the statistics a cache was written with; "" for none."""
    if calibration is None:
        return ""
    found = hashlib.sha256()
    for index in sorted(calibration.layers):
        layer = calibration.layers[index]
        for x in (layer.mean, layer.basis, layer.value_mean, layer.value_size):
            found.update(x.cpu().numpy().tobytes())
    return found.hexdigest()
