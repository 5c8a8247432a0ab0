"""An F16 or F32 copy of a quantized GGUF, made with ggml's own dequantization.

With 4-bit weights llama.cpp rounds activations to 8 bits, which puts 16-bit against 16-bit
at 5e-3 KLD and hides what q8_0 costs; on a float copy the same floor is 5e-5. Metadata and
tensor order are kept; only quantized and bf16 tensors change type (bf16 weights make ggml
round activations to bf16 too).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from nybble.engines.llamacpp.ffi import ffi, library, take_log
from nybble.errors import EngineError, NybbleError

TYPES = {"f32": 0, "f16": 1}
_FILE_TYPE = {"f32": 0, "f16": 1}  # general.file_type: ALL_F32, MOSTLY_F16
_CHUNK = 1 << 24  # elements dequantized at a time: 64 MiB of float32


@dataclass(frozen=True)
class _Tensor:
    name: bytes
    type_id: int
    elements: int
    offset: int
    size: int

    def target(self, wanted: int) -> int:
        """The type it gets in the copy: floats of 16 and 32 bits stay as they are."""
        return wanted if self.type_id not in (0, 1) else self.type_id


def copy_size(n_params: int, kind: str) -> int:
    """Rough bytes of the copy, for a check of free space before it is begun."""
    return n_params * (4 if kind == "f32" else 2) + (64 << 20)


def write_float_copy(
    source: Path, target: Path, kind: str, on_progress: Callable[[float], None]
) -> None:
    """Write the copy; the caller gives a temporary name and renames it.

    Args:
        source: a GGUF.
        target: file to create.
        kind: "f16" or "f32".
        on_progress: called with the fraction done.

    Raises:
        EngineError: llama.cpp cannot read the file, or a tensor cannot be converted.
        NybbleError: the disk is full.
    """
    lib = library()
    take_log()
    tensors_out = ffi.new("ggml_context **")
    # One header for both: retyped in place, so it keeps the source's alignment, which one that is
    # begun anew takes for 32 whatever its keys say.
    gguf = lib.gguf_init_from_file(os.fsencode(source), {"no_alloc": True, "ctx": tensors_out})
    if gguf == ffi.NULL:
        raise EngineError("llama.cpp cannot read this GGUF", seen=f"{source}: {take_log()[-300:]}")
    try:
        tensors = _tensors(lib, gguf, tensors_out[0])
        for tensor in tensors:
            lib.gguf_set_tensor_type(gguf, tensor.name, tensor.target(TYPES[kind]))
        lib.gguf_set_val_u32(gguf, b"general.file_type", _FILE_TYPE[kind])
        if not lib.gguf_write_to_file(gguf, os.fsencode(target), True):
            raise NybbleError(
                "cannot write the float copy of the weights",
                seen=str(target),
                hint="free disk space, or set NYBBLE_CACHE to another folder",
            )
        align = lib.gguf_get_alignment(gguf)
        _convert(lib, source, target, align, tensors, TYPES[kind], on_progress)
    finally:
        lib.gguf_free(gguf)
        if tensors_out[0] != ffi.NULL:
            lib.ggml_free(tensors_out[0])


def _tensors(lib: Any, gguf: Any, tensors: Any) -> list[_Tensor]:
    """Where the source keeps its tensors."""
    base = lib.gguf_get_data_offset(gguf)
    found: list[_Tensor] = []
    tensor = lib.ggml_get_first_tensor(tensors)
    while tensor != ffi.NULL:
        name = ffi.string(lib.ggml_get_name(tensor))
        i = lib.gguf_find_tensor(gguf, name)
        entry = _Tensor(
            name,
            lib.gguf_get_tensor_type(gguf, i),
            lib.ggml_nelements(tensor),
            base + lib.gguf_get_tensor_offset(gguf, i),
            lib.gguf_get_tensor_size(gguf, i),
        )
        found.append(entry)
        tensor = lib.ggml_get_next_tensor(tensors, tensor)
    return found


def _convert(
    lib: Any,
    source: Path,
    target: Path,
    align: int,
    tensors: list[_Tensor],
    wanted: int,
    on_progress: Callable[[float], None],
) -> None:
    total = sum(t.elements for t in tensors)
    done = 0
    with source.open("rb") as inp, target.open("ab") as out:
        for tensor in tensors:
            inp.seek(tensor.offset)
            written = 0
            if tensor.target(wanted) == tensor.type_id:
                written = _copy_bytes(inp, out, tensor.size)
            else:
                written = _dequantize(lib, inp, out, tensor, wanted)
            out.write(b"\0" * (-written % align))
            done += tensor.elements
            on_progress(done / total)


def _read(inp: BinaryIO, size: int) -> bytes:
    """Exactly `size` bytes: C would read on past the end of a shorter buffer."""
    data = inp.read(size)
    if len(data) < size:
        left = size - len(data)
        raise EngineError("the GGUF ends inside a tensor", seen=f"{left:,} bytes missing")
    return data


def _copy_bytes(inp: BinaryIO, out: BinaryIO, size: int) -> int:
    for start in range(0, size, 1 << 24):
        out.write(_read(inp, min(size - start, 1 << 24)))
    return size


def _dequantize(lib: Any, inp: BinaryIO, out: BinaryIO, tensor: _Tensor, wanted: int) -> int:
    traits = lib.ggml_get_type_traits(tensor.type_id)
    if traits.to_float == ffi.NULL:
        raise EngineError(
            "a tensor's type cannot be converted to floats",
            seen=f"{tensor.name.decode()} is {ffi.string(traits.type_name).decode()}",
            hint="--weights as-shipped",
        )
    written = 0
    for start in range(0, tensor.elements, _CHUNK):
        n = min(_CHUNK, tensor.elements - start)
        raw = _read(inp, n // traits.blck_size * traits.type_size)
        values = np.empty(n, dtype=np.float32)
        floats = ffi.from_buffer("float[]", values)
        traits.to_float(ffi.from_buffer(raw), floats, n)
        if wanted == TYPES["f16"]:
            half = np.empty(n, dtype=np.uint16)
            lib.ggml_fp32_to_fp16_row(floats, ffi.from_buffer("uint16_t[]", half), n)
            out.write(half.data)
            written += half.nbytes
        else:
            out.write(values.data)
            written += values.nbytes
    return written
