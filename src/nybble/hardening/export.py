"""A GGUF like another, with trained values in place of some of its tensors.

The header is llama.cpp's own work (gguf.cpp), which moves the tensors that follow one of another
size; their bytes are copied as they are, a piece at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from nybble.engines.llamacpp.ffi import ffi, library, take_log
from nybble.errors import EngineError, NybbleError
from nybble.hardening.names import Array, Names, Part, plain_name
from nybble.models.file_kinds import show
from nybble.models.gguf_header import read_header
from nybble.models.gguf_types import TENSOR_TYPES, GGUFHeader, TensorInfo

KINDS = ("keep", "f32", "f16", "q8_0", "q4_0")

# What gguf-py writes bit for bit as llama.cpp does; a tensor of any other type becomes F16.
_WRITABLE = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
# Matrices that llama.cpp does not quantize: `tensor_allows_quantization` in llama-quant.cpp.
_NEVER_QUANTIZED = ("_norm.weight", "ffn_gate_inp.weight", "per_layer_model_proj")
_FILE_TYPE = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "BF16": 32}
_TYPE_ID = {name: i for i, (name, _, _) in TENSOR_TYPES.items()}
_BLOCK = {name: block for name, block, _ in TENSOR_TYPES.values()}
_F16_MAX = 65504.0
_QUANTIZATION = "general.quantization_version"
_PIECE = 1 << 22  # elements converted, and bytes copied, at a time: 16 MiB of float32


@dataclass(frozen=True)
class _New:
    """A tensor that is replaced."""

    parameter: str
    part: Part
    type_name: str


def export_gguf(
    base: Path,
    target: Path,
    tensors: Mapping[str, Array],
    kinds: Mapping[str, str] | str,
    record: Mapping[str, str],
    on_progress: Callable[[float], None],
) -> None:
    """Write the trained model; the caller gives a temporary name and renames it.

    Args:
        base: the GGUF that was trained, or one made of the same folder.
        target: file to create.
        tensors: trained values, float32 as the model class holds them, by the parameter's name.
            Where a tied model's GGUF stores its head apart, give lm_head.weight too.
        kinds: the type to store, for all or by the parameter's name: "keep" (the base's own if it
            can be written, else F16; also for a parameter that is not named), "f32", "f16",
            "q8_0" or "q4_0". Vectors are always F32, and a matrix that llama.cpp never quantizes
            keeps its type.
        record: keys to add to the header, as texts.
        on_progress: called with the fraction done.

    Raises:
        MissingExtraError: gguf is not installed.
        ModelFileError: the base is damaged.
        NybbleError: a parameter that does not fit the base, values that cannot be stored, a key
            that is there already, or a file that cannot be written.
    """
    header = read_header(base)
    if header.split_count > 1:
        raise NybbleError(
            "trained weights cannot be written into a GGUF split over several files",
            seen=base.name, hint="join it with llama-gguf-split --merge",
        )  # fmt: skip
    for key in record:
        if key in header.metadata:
            raise NybbleError("the GGUF has this key already", seen=f"{base.name}: {key}",
                              hint="start from the original file")  # fmt: skip
    new = _plan(header, Names(header), tensors, kinds)
    try:
        _write_header(base, target, header, new, record)
        total = sum(t.n_bytes for t in header.tensors) or 1
        done = 0
        with base.open("rb") as source, target.open("ab") as out:
            for info in header.tensors:
                if info.name in new:
                    written = _write_values(out, info, new[info.name], tensors)
                else:
                    source.seek(header.data_offset + info.offset)
                    written = _copy(source, out, info.n_bytes)
                out.write(b"\0" * (-written % header.alignment))
                done += info.n_bytes
                on_progress(done / total)
    except OSError as e:
        raise NybbleError("cannot write the trained model", seen=f"{target}: {e.strerror or e}",
                          hint="free disk space, or another --out") from e  # fmt: skip


def _plan(
    header: GGUFHeader, names: Names, tensors: Mapping[str, Array], kinds: Mapping[str, str] | str
) -> dict[str, _New]:
    """What becomes of every tensor that is replaced, by its name."""
    infos = {t.name: t for t in header.tensors}
    new: dict[str, _New] = {}
    for name in tensors:
        kind = kinds if isinstance(kinds, str) else kinds.get(name, "keep")
        if kind not in KINDS:
            raise NybbleError("unknown type to store a tensor in", seen=f"{name}: {show(kind)}",
                              allowed=KINDS)  # fmt: skip
        for part in names.parts(name):
            info = infos[part.tensor]
            _check_shape(name, tensors[name].shape, part, info)
            before = new.get(info.name)
            if before and not np.array_equal(tensors[before.parameter], tensors[name]):
                raise NybbleError(
                    "two parameters with different values would be stored in one tensor",
                    seen=f"{before.parameter} and {name} in {info.name}",
                    allowed="tied embeddings, since the GGUF has one matrix for both",
                    hint="name a GGUF with output.weight of its own",
                )  # fmt: skip
            new[info.name] = _New(name, part, _type(info, kind))
    return new


def _check_shape(name: str, shape: tuple[int, ...], part: Part, info: TensorInfo) -> None:
    stored = shape
    if part.half is not None and len(shape) > 1 and shape[1] % 2 == 0:
        stored = (shape[0], shape[1] // 2, *shape[2:])
    wanted = tuple(reversed(info.shape))
    if _is_vocabulary(name) and stored and stored[0] > wanted[0]:
        stored = (wanted[0], *stored[1:])  # rows of no token: the converter cuts them off too
    if stored != wanted:
        raise NybbleError(
            "a trained tensor has another shape than the GGUF's",
            seen=f"{name} {list(shape)}", allowed=f"{info.name} {list(wanted)}",
            hint="name the GGUF that was made from this very model",
        )  # fmt: skip


def _type(info: TensorInfo, kind: str) -> str:
    """The ggml type that a replaced tensor is stored in."""
    if len(info.shape) < 2:
        return "F32"
    if kind == "keep" or any(part in info.name for part in _NEVER_QUANTIZED):
        return info.type_name if info.type_name in _WRITABLE else "F16"
    type_name = kind.upper()
    if info.shape[0] % _BLOCK[type_name]:
        raise NybbleError(
            f"a tensor's rows cannot be cut into blocks of {kind}",
            seen=f"{info.name}: rows of {info.shape[0]:,}",
            allowed=f"multiples of {_BLOCK[type_name]}", hint="store it as f16",
        )  # fmt: skip
    return type_name


def _write_header(
    base: Path, target: Path, header: GGUFHeader, new: Mapping[str, _New], record: Mapping[str, str]
) -> None:
    """Write all but the data: the base's own header, with the types and keys changed."""
    lib: Any = library()
    take_log()
    tensors = ffi.new("ggml_context **")
    params = {"no_alloc": True, "ctx": tensors}
    gguf = lib.gguf_init_from_file(os.fsencode(base), params)
    if gguf == ffi.NULL:
        raise EngineError("llama.cpp cannot read this GGUF", seen=f"{base}: {take_log()[-300:]}")
    try:
        for name, change in new.items():
            lib.gguf_set_tensor_type(gguf, name.encode(), _TYPE_ID[change.type_name])
        file_type = _file_type(header, new)
        if file_type is not None:
            lib.gguf_set_val_u32(gguf, b"general.file_type", file_type)
        quantized = any(_BLOCK[change.type_name] > 1 for change in new.values())
        if quantized and _QUANTIZATION not in header.metadata:
            lib.gguf_set_val_u32(gguf, _QUANTIZATION.encode(), 2)  # GGML_QNT_VERSION
        for key, value in record.items():
            lib.gguf_set_val_str(gguf, key.encode(), value.encode())
        if not lib.gguf_write_to_file(gguf, os.fsencode(target), True):
            raise NybbleError("cannot write the trained model", seen=target,
                              hint="free disk space, or another --out")  # fmt: skip
    finally:
        lib.gguf_free(gguf)
        lib.ggml_free(tensors[0])


def _file_type(header: GGUFHeader, new: Mapping[str, _New]) -> int | None:
    """general.file_type, the type of most of the layers' weights; None where that is as it was.

    Embeddings are often kept in more bits, and in small models they are most of the file.
    """
    before: dict[str, int] = {}
    after: dict[str, int] = {}
    for info in header.tensors:
        if len(info.shape) < 2 or not info.name.startswith("blk."):
            continue
        type_name = new[info.name].type_name if info.name in new else info.type_name
        before[info.type_name] = before.get(info.type_name, 0) + info.n_elements
        after[type_name] = after.get(type_name, 0) + info.n_elements
    if not after:
        return None
    most = max(after, key=lambda name: after[name])
    # Of the mixtures (Q4_K_M, ...) only the file itself says which it is.
    changed = most != max(before, key=lambda name: before[name])
    return _FILE_TYPE.get(most) if changed else None


def _write_values(out: BinaryIO, info: TensorInfo, new: _New, tensors: Mapping[str, Array]) -> int:
    """Store a parameter's values as a tensor; returns the bytes written."""
    import gguf
    from gguf.quants import quantize

    values = new.part.store(np.asarray(tensors[new.parameter], dtype=np.float32))
    rows = values.reshape(-1, info.shape[0])[: info.n_elements // info.shape[0]]
    limit = np.inf if new.type_name in ("F32", "BF16") else _F16_MAX
    kind = gguf.GGMLQuantizationType[new.type_name]
    step = max(1, _PIECE // info.shape[0])
    written = 0
    for start in range(0, len(rows), step):
        piece = np.ascontiguousarray(rows[start : start + step])
        size = float(np.abs(piece).max())  # NaN if one is
        if not (size <= limit and np.isfinite(size)):
            raise NybbleError(
                "a trained tensor holds values that cannot be stored",
                seen=f"{new.parameter}: {size:g} as {new.type_name}",
                allowed=f"up to {limit:,.0f}" if np.isfinite(limit) else "finite numbers",
                hint="train again with a smaller learning rate",
            )  # fmt: skip
        with np.errstate(all="ignore"):  # 1 / scale of a block of almost nothing
            data = quantize(piece, kind)
        out.write(data.tobytes())
        written += data.nbytes
    return written


def _copy(source: BinaryIO, out: BinaryIO, size: int) -> int:
    left = size
    while left:
        piece = source.read(min(left, _PIECE))
        if not piece:
            raise EngineError("the GGUF ends inside a tensor", seen=f"{left:,} bytes missing")
        out.write(piece)
        left -= len(piece)
    return size


def _is_vocabulary(name: str) -> bool:
    return plain_name(name) in ("lm_head.weight", "model.embed_tokens.weight")
