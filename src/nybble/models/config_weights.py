"""What the weights of a model take, derived from config.json where no file says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from nybble.models.config_fields import Fields
from nybble.models.config_shapes import Shapes
from nybble.models.geometry import Weights

_BYTES = MappingProxyType({"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2})


def derived(shapes: Shapes, config: Mapping[str, Any], fields: Fields) -> Weights:
    """The weights by the shapes of config.json, at its dtype or its quantization's bits.

    Args:
        shapes: of the text part.
        config: config.json; the text part may have a quantization_config of its own.
        fields: of the text part.

    Raises:
        ModelFileError: the dtype or the quantization is not known.
    """
    wide = 8 * _dtype_bytes(config, fields)
    bits = _bits(config, fields, wide)
    blocks = shapes.blocks
    experts = blocks.expert * bits.expert
    packed = blocks.attention * bits.attention + blocks.linear * bits.linear + experts
    tables = (shapes.embedding + shapes.tables) * wide
    kept = (blocks.kept + blocks.small + blocks.expert_small) * wide
    total = packed + kept + tables + shapes.output * wide
    idle = 1 - shapes.used / shapes.experts if shapes.experts else 0.0
    read = total - tables - (experts + blocks.expert_small * wide) * idle
    if not shapes.output:  # the embedding is read whole, as the output matrix
        read += shapes.embedding * wide
    types = {f"{wide}-bit floats": total}
    if bits.name:
        parts = zip((blocks.attention, blocks.linear, blocks.expert), bits.all, strict=True)
        small = sum(n * each for n, each in parts if each != wide)
        types = {bits.name: small, f"{wide}-bit floats": total - small}
    return Weights(
        n_bytes=round(total / 8),
        n_params=params(shapes),
        read_bytes=round(read / 8),
        active_params=active(shapes),
        source="config",
        types=MappingProxyType({k: round(v / 8) for k, v in types.items()}),
        lookup_bytes=round(tables / 8),
        tied=not shapes.output,
    )


def params(shapes: Shapes) -> int:
    """Elements of all weights."""
    return shapes.blocks.total + shapes.embedding + shapes.tables + shapes.output


def active(shapes: Shapes) -> int:
    """Elements that take part in the matrix products of one token."""
    blocks = shapes.blocks
    experts = blocks.expert * shapes.used // shapes.experts if shapes.experts else 0
    dense = blocks.attention + blocks.linear + blocks.kept
    return dense + experts + (shapes.output or shapes.embedding)


def _dtype_bytes(config: Mapping[str, Any], fields: Fields) -> int:
    """Bytes of an element; transformers' own default is float32, but published models are not."""
    for part in (fields.values, config):
        for name in ("dtype", "torch_dtype"):
            value = part.get(name)
            if value is None:
                continue
            value = value.removeprefix("torch.") if isinstance(value, str) else value
            if not isinstance(value, str) or value not in _BYTES:
                raise fields.wrong(name, ", ".join(_BYTES), value)
            return _BYTES[value]
    return 2


def quantization(config: Mapping[str, Any], fields: Fields) -> Mapping[str, Any] | None:
    """The quantization_config, that of the text part first.

    Raises:
        ModelFileError: it is no object.
    """
    for part in (fields.values, config):
        for name in ("quantization_config", "compression_config"):
            value = part.get(name)
            if value is None:
                continue
            if not isinstance(value, Mapping):
                raise fields.wrong(name, "an object", value)
            return value or None
    return None


@dataclass(frozen=True)
class _Bits:
    """Bits of an element, scales included, and what they are called; no name where none are few."""

    attention: float
    linear: float
    expert: float
    name: str = ""

    @property
    def all(self) -> tuple[float, float, float]:
        return self.attention, self.linear, self.expert


def _bits(config: Mapping[str, Any], fields: Fields, wide: int) -> _Bits:
    """Bits of the matrices of blocks; embeddings, output and routers stay as they are.

    Raises:
        ModelFileError: the quantization does not say how many.
    """
    given = quantization(config, fields)
    if given is None:
        return _Bits(wide, wide, wide)
    method, algorithm = given.get("quant_method"), given.get("quant_algo")
    if method == "mxfp4":  # 32 elements share a scale of 8 bits; experts only
        return _Bits(wide, wide, 4.25, "mxfp4")
    each: float
    if method in ("fp8", "fbgemm_fp8") or algorithm == "FP8":
        each, name = 8, "fp8"
    elif algorithm == "NVFP4" or given.get("format") == "nvfp4-pack-quantized":
        each, name = 4.5, "nvfp4"  # 16 elements share a scale of 8 bits
    else:
        bits, group = _named_bits(given)
        if bits is None:
            raise fields.wrong("quantization_config", "bits, w_bit, load_in_4bit, load_in_8bit "
                               "or config_groups with weights.num_bits; or fp8, mxfp4, nvfp4",
                               f"{method} {algorithm or ''}".strip())  # fmt: skip
        each = bits + 16 / group if group else float(bits)  # a float16 scale
        name = f"{bits:g}-bit {str(method)[:20]}"
    return _Bits(wide if _keeps_attention(given) else each, each, each, name)


def _keeps_attention(given: Mapping[str, Any]) -> bool:
    """Whether attention is among the modules left alone: by a pattern, or layer for layer."""
    for key in ("ignore", "modules_to_not_convert", "exclude_modules", "ignored_layers"):
        listed = given.get(key)
        if isinstance(listed, list):
            found = [m for m in listed if isinstance(m, str) and "attn" in m]
            if len(found) > 4 or any("*" in m or m.startswith("re:") for m in found):
                return True
    return False


def _named_bits(given: Mapping[str, Any]) -> tuple[float | None, int | None]:
    """Bits of an element and elements of a group, where they are named.

    EXL2 and EXL3 write a mean over the matrices, 4.0 or 3.25.
    """
    if given.get("load_in_4bit") is True:
        return 4, 64
    if given.get("load_in_8bit") is True:
        return 8, None
    parts: list[object] = [given]
    groups = given.get("config_groups")
    if isinstance(groups, Mapping):
        parts += [g.get("weights") for g in list(groups.values())[:8] if isinstance(g, Mapping)]
    found: list[tuple[float, int | None]] = []
    for part in parts:
        if not isinstance(part, Mapping):
            continue
        group = part.get("group_size")
        for name in ("bits", "w_bit", "num_bits"):
            bits = part.get(name)
            if isinstance(bits, int | float) and bits is not True and 1 <= bits <= 16:
                found.append((bits, group if type(group) is int and group > 0 else None))
    return max(found, key=lambda x: x[0], default=(None, None))
