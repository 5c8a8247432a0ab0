"""The C interface of csrc/nybble.h as ctypes sees it; kept line by line like the header."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_float, c_int, c_int32, c_int64, c_void_p

ABI = 1
OK, NONFINITE = 0, 1
BAD_ARGUMENT, NO_MEMORY = -1, -2

MAX_DIM = 1024

# enum nyb_kind, in its order.
KINDS = (
    "f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl",
    "int8_per_token_head", "int4_per_token_head", "nyb4",
)  # fmt: skip
WRITTEN = ("f32", "f16", "bf16", "q8_0", "q4_0", "nyb4")


class CFormat(ctypes.Structure):
    """nyb_format."""

    _fields_ = [
        ("kind", c_int32), ("dim", c_int32), ("code_bytes", c_int32), ("scale_bytes", c_int32),
        ("widths", c_void_p), ("groups", c_int32), ("reserved", c_int32),
    ]  # fmt: skip


class CLatent(ctypes.Structure):
    """nyb_latent."""

    _fields_ = [
        ("weight", c_void_p), ("centre", c_void_p), ("frequencies", c_void_p),
        ("position", c_void_p), ("pairs", c_int32), ("rotation", c_int32),
    ]  # fmt: skip


class CCall(ctypes.Structure):
    """nyb_call."""

    _fields_ = [
        ("batch", c_int32), ("heads", c_int32), ("rows", c_int32), ("positions", c_int32),
        ("pages", c_int32), ("threads", c_int32),
        ("offset", c_int64), ("count", c_int64),
        ("k", CFormat), ("v", CFormat),
        ("k_pages", c_void_p), ("v_pages", c_void_p),
        ("q", c_void_p), ("bias", c_void_p), ("start", c_void_p), ("stop", c_void_p),
        ("mask", c_void_p), ("added", c_void_p),
        ("added_batch", c_int64), ("added_head", c_int64), ("added_row", c_int64),
        ("softcap", c_float), ("reserved", c_int32),
        ("latent", POINTER(CLatent)),
        ("m", c_void_p), ("l", c_void_p), ("acc", c_void_p),
    ]  # fmt: skip


class CStretch(ctypes.Structure):
    """nyb_stretch."""

    _fields_ = [
        ("batch", c_int32), ("heads", c_int32), ("pages", c_int32), ("threads", c_int32),
        ("first", c_int64), ("count", c_int64),
        ("format", CFormat), ("addresses", c_void_p), ("x", c_void_p),
    ]  # fmt: skip


def declare(library: ctypes.CDLL) -> None:
    """Argument and result types of the library's functions."""
    library.nyb_variants.restype = c_char_p
    library.nyb_choose.argtypes = [c_char_p]
    library.nyb_set_parallel.argtypes = [c_void_p]
    library.nyb_set_parallel.restype = None
    library.nyb_attend.argtypes = [POINTER(CCall)]
    library.nyb_unpack.argtypes = [POINTER(CStretch)]
    library.nyb_quantize.argtypes = [POINTER(CStretch)]
    for name in ("nyb_abi", "nyb_choose", "nyb_attend", "nyb_unpack", "nyb_quantize"):
        getattr(library, name).restype = c_int
