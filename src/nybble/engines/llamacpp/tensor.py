"""Tensors of a running graph as NumPy arrays, wherever the engine holds them.

ggml has no functions for a tensor's shape and sources, so its struct is declared in ffi.py and
compared here, before it is first read, with what ggml's functions say of tensors made for it.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from nybble.engines.llamacpp.ffi import ffi, library
from nybble.errors import EngineError

_F16 = 1
_TYPES = {0: np.float32, _F16: np.float16, 26: np.int32, 27: np.int64}  # ggml_type
_OBJECT = 32  # bytes of the ggml_object before each tensor: three words and an enum


@functools.cache
def check_layout() -> None:
    """Compare the declared struct with tensors whose shapes are known.

    Raises:
        EngineError: a field lies elsewhere, or the engine library lacks functions.
    """
    lib = library()
    try:
        lib.ggml_backend_tensor_get  # noqa: B018  an own build may not bring it along
        ctx = lib.ggml_init((1 << 16, ffi.NULL, False))
    except AttributeError as error:
        raise EngineError(
            "the engine library lacks functions nybble needs",
            seen=str(error),
            hint="nybble doctor",
        ) from error
    try:
        base = lib.ggml_set_name(lib.ggml_new_tensor_4d(ctx, _F16, 2, 3, 5, 7), b"shape")
        part = lib.ggml_view_1d(ctx, base, 8, 64)
        turned = lib.ggml_permute(ctx, base, 0, 2, 1, 3)
        strides = [2, 2 * 2, 2 * 2 * 3, 2 * 2 * 3 * 5]
        fields = {  # field: as declared here, as ggml has it
            "size": (ffi.sizeof("ggml_tensor") + _OBJECT, lib.ggml_tensor_overhead()),
            "type": (base.type, _F16),
            "ne": ([*base.ne], [2, 3, 5, 7]),
            "nb": ([*base.nb], strides),
            "ne after permute": ([*turned.ne], [2, 5, 3, 7]),
            "nb after permute": ([*turned.nb], [strides[i] for i in (0, 2, 1, 3)]),
            "op_params": ([*turned.op_params][:4], [0, 2, 1, 3]),
            "src": ([*turned.src], [base] + 9 * [ffi.NULL]),
            "view_src": (part.view_src, base),
            "view_offs": (part.view_offs, 64),
            "data": (base.data, lib.ggml_get_data(base)),
            "name": (ffi.string(base.name), b"shape"),
        }
        for field, (seen, expected) in fields.items():
            if seen != expected:
                raise EngineError(
                    f"ggml_tensor has an unexpected layout: field {field}",
                    seen=str(seen),
                    allowed=str(expected),
                    hint="unset NYBBLE_LLAMA_LIBRARY, or build the pinned llama.cpp",
                )
    finally:
        lib.ggml_free(ctx)


def read(tensor: Any, rows: slice | None = None) -> npt.NDArray[Any]:
    """Copy a computed tensor from the device that holds it.

    Args:
        tensor: ggml_tensor *, also a view; strides are kept, bytes between elements are copied.
        rows: start and stop along ne[1] (default: all).

    Returns:
        Array [ne3, ne2, ne1, ne0] of the tensor's type.

    Raises:
        EngineError: a type that is no plain float or integer.
    """
    kind = _TYPES.get(tensor.type)
    if kind is None:
        raise EngineError(
            "the engine computes queries or keys in a type that nybble does not read",
            seen=f"{ffi.string(tensor.name).decode()}: ggml type {tensor.type}",
            allowed="f32, f16",
        )
    dtype = np.dtype(kind)
    shape, strides = [*tensor.ne], [*tensor.nb]
    offset = 0
    if rows is not None:
        offset, shape[1] = rows.start * strides[1], rows.stop - rows.start
    if 0 in shape:
        return np.empty(shape[::-1], dtype)
    span = sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) + dtype.itemsize
    data = np.empty(span, np.uint8)
    library().ggml_backend_tensor_get(tensor, ffi.from_buffer(data), offset, span)
    return np.ndarray(shape[::-1], dtype, data, strides=strides[::-1])
