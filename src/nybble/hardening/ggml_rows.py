"""Multiply a tensor's blocks in the bytes they are stored in, type by type.

A block-quantized value is a code times the block's scale, plus for some types a minimum times
another scale, so scaling a block means multiplying those one or two numbers: codes, sub-scales and
sizes stay. By a power of two that is exact while the scale stays in fp16's normal range. Below
2^-14 factors under one lose bits: 99.9 % of the Q6_K scales of Gemma 3 270M stand there, since an
8-bit sub-scale multiplies them.

Source of the layouts: `ggml/src/ggml-common.h`; of the E8M0 and UE4M3 rules: `ggml-impl.h`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from nybble.errors import NybbleError

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

# Type -> byte offsets of the fp16 numbers in a block that its values are proportional to.
HALVES: Mapping[str, tuple[int, ...]] = MappingProxyType({
    "Q1_0": (0,), "Q2_0": (0,), "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2),
    "Q8_0": (0,), "Q8_1": (0, 2), "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2),
    "Q5_K": (0, 2), "Q6_K": (208,), "TQ1_0": (52,), "TQ2_0": (64,), "IQ1_S": (0,),
    "IQ2_XXS": (0,), "IQ2_XS": (0,), "IQ2_S": (0,), "IQ3_XXS": (0,), "IQ3_S": (0,),
    "IQ4_NL": (0,), "IQ4_XS": (0,),
})  # fmt: skip
# Scales that are exponents, or have 3 bits of mantissa: no other factor fits.
POWERS_ONLY = ("MXFP4", "NVFP4")
# Plain floats: their smallest normal number.
FLOATS: Mapping[str, float] = MappingProxyType(
    {"F64": 2.0**-1022, "F32": 2.0**-126, "BF16": 2.0**-126, "F16": 2.0**-14}
)
SCALED = (*FLOATS, *HALVES, "Q8_K", "IQ1_M", *POWERS_ONLY)
_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
_HINT = "harden the F16 or BF16 weights of this model and quantize them afterwards"


def check_type(tensor: str, type_name: str, factors: Floats, offset: float) -> None:
    """Refuse what `scale_blocks` could not do, before anything is written.

    Args:
        tensor: its name, for the error.
        type_name: as in `TENSOR_TYPES`.
        factors: what its rows are to be multiplied by.
        offset: see `Scale`.

    Raises:
        NybbleError: a factor that is not finite and positive, a type without a rule, an offset on
            quantized values, or a factor that is no power of two where the type needs one.
    """
    wrong = factors[~(np.isfinite(factors) & (factors > 0))]
    if wrong.size:
        raise NybbleError(
            "a row cannot be multiplied by this", seen=f"{tensor}: {wrong[0]}",
            allowed="finite factors above zero", hint="calibrate again, on other text",
        )  # fmt: skip
    if type_name not in SCALED:
        raise NybbleError(
            "this type of tensor cannot be scaled", seen=f"{tensor}: {type_name}",
            allowed=SCALED, hint=_HINT,
        )  # fmt: skip
    if offset and type_name not in FLOATS:
        raise NybbleError(
            "a quantized tensor has no offset to take off", seen=f"{tensor}: {type_name}",
            allowed=FLOATS, hint=_HINT,
        )  # fmt: skip
    if type_name in POWERS_ONLY and (np.frexp(factors)[0] != 0.5).any():
        raise NybbleError(
            f"{type_name} can only be multiplied by powers of two", seen=tensor, hint=_HINT
        )


def scale_blocks(
    blocks: Bytes,
    type_name: str,
    factors: Floats,
    offset: float = 0.0,
    *,
    tensor: str,
    written: str | None = None,
) -> tuple[Bytes, float]:
    """Multiply blocks, each by its factor.

    A plain float is a block of one element: x becomes (x + offset) * factor - offset, computed in
    float64 and rounded once. Subnormal floats lose bits that no one misses, so their error counts
    relative to the smallest normal number; that of a block's scale, which all its values share,
    counts in full.

    Args:
        blocks: uint8 [n, bytes of a block], not changed.
        type_name: as in `TENSOR_TYPES`; `check_type` passed.
        factors: float64 [n].
        offset: see `Scale`; floats only.
        tensor: its name, for the error.
        written: another float type to write floats as.

    Returns:
        uint8 [n, bytes of a block as written] and the largest relative rounding error, 0.0 when
        all is exact.

    Raises:
        NybbleError: a float, or the scale of a block, overflows; or such a scale underflows.
    """
    if type_name in FLOATS:
        return _floats(blocks, type_name, written or type_name, factors, offset, tensor)
    out = np.array(blocks)
    if type_name == "MXFP4":
        _e8m0(out, factors, tensor)
        return out, 0.0
    if type_name == "NVFP4":
        _ue4m3(out, factors, tensor)
        return out, 0.0
    if type_name == "IQ1_M":
        return out, _spread(out, factors, tensor)
    if type_name == "Q8_K":
        return out, _field(out[:, :4], "<f4", factors, f"{tensor}: Q8_K")
    fields = (out[:, at : at + 2] for at in HALVES[type_name])
    return out, max(_field(f, "<f2", factors, f"{tensor}: {type_name}") for f in fields)


def _floats(
    blocks: Bytes, stored: str, written: str, factors: Floats, offset: float, tensor: str
) -> tuple[Bytes, float]:
    x = _decoded(blocks, stored)
    with np.errstate(over="ignore", invalid="ignore"):
        y = x * factors + offset * (factors - 1)  # for a factor of 1 that is x to the last bit
        out = _encoded(y, written)
        got = _decoded(out, written)
        over = np.isinf(got) & np.isfinite(x)
        if over.any():
            at = int(over.argmax())
            raise _leaves(f"{tensor}: {written}", x[at], factors[at])
        size = np.maximum(np.abs((x + offset) * factors), FLOATS[written])
        error = np.abs(got - y) / size
    return out, float(error.max(initial=0, where=np.isfinite(error)))


def _decoded(blocks: Bytes, type_name: str) -> Floats:
    data = np.ascontiguousarray(blocks)
    if type_name == "BF16":  # the upper half of a float32
        high = data.view("<u2")[:, 0].astype(np.uint32) << 16
        return high.view(np.float32).astype(np.float64)
    return data.view(_NUMPY[type_name])[:, 0].astype(np.float64)


def _encoded(y: Floats, type_name: str) -> Bytes:
    if type_name != "BF16":
        return y.astype(_NUMPY[type_name])[:, None].view(np.uint8)
    # To 8 significant bits, ties to even: 45 of float64's 52 mantissa bits go. Straight from
    # float64, since a stop at float32 would round twice.
    bits = y.view(np.uint64)
    odd = (bits >> np.uint64(45)) & np.uint64(1)
    half = np.uint64((1 << 44) - 1)
    normal = ((bits + half + odd) & ~np.uint64((1 << 45) - 1)).view(np.float64)
    subnormal = np.rint(y * 2.0**133) * 2.0**-133  # multiples of its smallest number
    rounded = np.where(np.abs(y) < 2.0**-126, subnormal, normal)
    rounded = np.where(np.isnan(y), np.nan, rounded).astype("<f4")
    return (rounded.view("<u4") >> 16).astype("<u2")[:, None].view(np.uint8)


def _field(field: Bytes, dtype: str, factors: Floats, where: str) -> float:
    """Multiply one number of every block in place; `field` is a view into the blocks."""
    old = np.ascontiguousarray(field).view(dtype)[:, 0]
    new, error = _rescaled(old, factors, where)
    field[:] = new[:, None].view(np.uint8)
    return error


def _rescaled(
    old: npt.NDArray[np.floating], factors: Floats, where: str
) -> tuple[npt.NDArray[np.floating], float]:
    with np.errstate(over="ignore", invalid="ignore"):
        y = old.astype(np.float64) * factors
        new = y.astype(old.dtype)
        gone = np.isfinite(y) & (np.isinf(new) | ((new == 0) & (y != 0)))
        if gone.any():
            at = int(gone.argmax())
            raise _leaves(where, old[at], factors[at])
        error = np.abs(new - y) / np.where(y == 0, 1, np.abs(y))
    return new, float(error.max(initial=0, where=np.isfinite(error)))


def _spread(out: Bytes, factors: Floats, tensor: str) -> float:
    """IQ1_M: the fp16 scale is the upper nibbles of the last four uint16, lowest first."""
    words = np.ascontiguousarray(out[:, 48:]).view("<u2")
    shifts = np.arange(0, 16, 4, dtype=np.uint16)
    old = np.bitwise_or.reduce((words >> 12) << shifts, axis=1).astype("<u2").view("<f2")
    new, error = _rescaled(old, factors, f"{tensor}: IQ1_M")
    nibbles = (new.view("<u2")[:, None] >> shifts) & 15
    out[:, 48:] = ((words & 0x0FFF) | (nibbles << 12)).astype("<u2").view(np.uint8)
    return error


def _e8m0(out: Bytes, factors: Floats, tensor: str) -> None:
    """MXFP4: the first byte is an exponent, of 0 to 254; 255 is NaN elsewhere, so not written."""
    steps = np.frexp(factors)[1] - 1
    # The value of an all-zero block is zero at any exponent; it is stored with exponent 0.
    steps[((out[:, 1:] & 0x77) == 0).all(axis=1)] = 0
    wanted = out[:, 0].astype(np.int64) + steps
    gone = (steps != 0) & ((wanted < 0) | (wanted > 254))
    if gone.any():
        at = int(gone.argmax())
        raise _leaves(f"{tensor}: MXFP4", f"2^{int(out[at, 0]) - 127}", factors[at])
    out[:, 0] = wanted


@lru_cache(maxsize=1)
def _ue4m3_values() -> Floats:
    """The number each of the 127 codes stands for, rising: 0, then 2^-9 to 448."""
    code = np.arange(127)
    exponent, mantissa = code >> 3, code & 7
    return np.where(
        exponent == 0, np.ldexp(mantissa / 8, -6), np.ldexp(1 + mantissa / 8, exponent - 7)
    )


def _ue4m3(out: Bytes, factors: Floats, tensor: str) -> None:
    """NVFP4: one byte of scale for each 16 of the 64 values of a block, at its start."""
    values = _ue4m3_values()
    codes = out[:, :4]
    zero = ((out[:, 4:].reshape(-1, 4, 8) & 0x77) == 0).all(axis=2)
    moved = (factors[:, None] != 1) & ~zero & (codes != 0) & (codes != 127)  # 127 reads as zero
    old = values[np.minimum(codes, 126)]
    wanted = old * factors[:, None]
    new = np.minimum(np.searchsorted(values, wanted), 126)
    gone = moved & ((values[new] != wanted) | (codes > 126))
    if gone.any():
        row, part = divmod(int(gone.argmax()), 4)
        raise _leaves(f"{tensor}: NVFP4", old[row, part], factors[row])
    out[:, :4] = np.where(moved, new, codes)


def _leaves(where: str, value: object, factor: float) -> NybbleError:
    return NybbleError(
        "a number of this tensor cannot be multiplied: its type ends there",
        seen=f"{where} {value} times {factor:g}",
        hint=_HINT,
    )
