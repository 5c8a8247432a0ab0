"""What the weights of a model take, summed over the tensors that its safetensors headers list."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from nybble.errors import ModelFileError
from nybble.models.config_fields import Fields
from nybble.models.config_shapes import Shapes
from nybble.models.config_weights import active, params
from nybble.models.file_kinds import show
from nybble.models.geometry import Layer, Weights
from nybble.models.gguf_types import TensorInfo

_FLOATS = ("F64", "F32", "F16", "BF16")
# Prefixes before the text part's own names, and what those begin with.
_PREFIXES = re.compile(r"(?:(?:model|language_model|text_model)\.)*")
_TEXT = ("layers.", "embed_tokens", "norm.", "lm_head.", "per_layer_", "altup_")
_BLOCK = re.compile(r"layers\.(\d{1,4})\.")
_DEAD = re.compile(r"\.self_attn\.(?:[kv]_proj|[kv]_norm)\.")
_ONE_MODEL = "download config.json and all weights of one model"


@dataclass(frozen=True)
class Stored:
    """The tensors of a model as they are stored.

    Attributes:
        weights: of the text part.
        notes: what was left out.
    """

    weights: Weights
    notes: tuple[str, ...]


def stored(
    tensors: Sequence[TensorInfo], fields: Fields, layers: Sequence[Layer], shapes: Shapes
) -> Stored:
    """Sum the tensors of a model's text part.

    Args:
        tensors: of all its files.
        fields: of the text part.
        layers: its layers; those of prediction blocks beyond them are left out.
        shapes: by config.json; they give the elements where stored ones are packed.

    Raises:
        ModelFileError: the tensors are those of another model: a layer is missing, there are more
            of them, or keys have another size than config.json says.
    """
    text, left = _split(tensors, fields, len(layers))
    _refuse_others(text, layers)
    tied = not any(name.startswith("lm_head.") for name, _ in text)
    shapes = replace(shapes, output=0 if tied else shapes.embedding)
    total = elements = lookup = idle = passive = 0
    experts = [0, 0]  # bytes and elements of matrices
    types: Counter[str] = Counter()
    for name, tensor in text:
        total += tensor.n_bytes
        elements += tensor.n_elements
        types[tensor.type_name] += tensor.n_bytes
        table = name.startswith("embed_tokens")
        lookup += tensor.n_bytes if table else 0
        flat = len(tensor.shape) < 2 or name.endswith("bias")
        # The input embedding is read whole where it is the output matrix too.
        unread = table and not (tied and name.startswith("embed_tokens."))
        if unread or _dead(name, layers):
            idle += tensor.n_bytes
            passive += tensor.n_elements
        elif ".experts." in name:
            experts[0] += tensor.n_bytes
            experts[1] += 0 if flat else tensor.n_elements
            passive += tensor.n_elements if flat else 0
        elif flat:
            passive += tensor.n_elements
    if shapes.experts:
        unused = shapes.experts - shapes.used
        idle += experts[0] * unused // shapes.experts
        passive += experts[1] * unused // shapes.experts
    packed = any(t.type_name not in _FLOATS for _, t in text)
    weights = Weights(
        n_bytes=total,
        n_params=params(shapes) if packed else elements,
        read_bytes=total - idle,
        active_params=active(shapes) if packed else elements - passive,
        source="tensors",
        types=MappingProxyType(dict(types)),
        lookup_bytes=lookup,
        tied=tied,
    )
    notes = tuple(f"{n:,} bytes of {what} are left out" for what, n in left.items() if n)
    return Stored(weights, notes)


def _split(
    tensors: Iterable[TensorInfo], fields: Fields, n: int
) -> tuple[list[tuple[str, TensorInfo]], Counter[str]]:
    """The text part's tensors by their names in it, and the bytes of what is left out."""
    mtp = "num_mtp_layers"
    blocks = n + (fields.optional(mtp, 0) or 0 if fields.has(mtp) else 0)
    text: list[tuple[str, TensorInfo]] = []
    left: Counter[str] = Counter()
    for tensor in tensors:
        name = tensor.name[_PREFIXES.match(tensor.name).end() :]  # type: ignore[union-attr]
        block = _BLOCK.match(name)
        if block and int(block[1]) >= blocks:
            raise ModelFileError("The weights are not those of config.json",
                                 seen=show(tensor.name), hint=_ONE_MODEL,
                                 allowed=f"layers 0 to {n - 1}, as num_hidden_layers "
                                 "says")  # fmt: skip
        if name.startswith("mtp.") or (block and int(block[1]) >= n):
            left["prediction blocks (MTP)"] += tensor.n_bytes
        elif fields.wrapped and not name.startswith(_TEXT):
            left["vision, audio and projector weights"] += tensor.n_bytes
        else:
            text.append((name, tensor))
    return text, left


def _dead(name: str, layers: Sequence[Layer]) -> bool:
    """Whether a tensor makes keys or values for a layer that reads those of another."""
    block = _BLOCK.match(name)
    return bool(block and layers[int(block[1])].kind == "shared" and _DEAD.search(name))


def _refuse_others(text: Sequence[tuple[str, TensorInfo]], layers: Sequence[Layer]) -> None:
    """Refuse tensors that config.json does not describe."""
    found = {int(m[1]) for name, _ in text if (m := _BLOCK.match(name))}
    missing = sorted(set(range(len(layers))) - found)
    if missing:
        raise ModelFileError("The weights are not those of config.json",
                             seen=f"tensors of {len(found)} layers, none of layer {missing[0]}",
                             allowed=f"{len(layers)} layers, as num_hidden_layers says",
                             hint=_ONE_MODEL)  # fmt: skip
    for tensor, rows in _keys(text, layers):
        if tensor.shape[0] != rows:
            raise ModelFileError("The weights are not those of config.json",
                                 seen=f"{show(tensor.name)} of {tensor.shape[0]:,} rows",
                                 allowed=f"{rows:,} rows: KV heads x head size of config.json",
                                 hint=_ONE_MODEL)  # fmt: skip


def _keys(
    text: Sequence[tuple[str, TensorInfo]], layers: Sequence[Layer]
) -> Iterator[tuple[TensorInfo, int]]:
    """The unpacked key projections of layers that keep keys, and the rows each should have."""
    for name, tensor in text:
        block = _BLOCK.match(name)
        if block and name[block.end() :] == "self_attn.k_proj.weight" and len(tensor.shape) == 2:
            layer = layers[int(block[1])]
            if tensor.type_name in _FLOATS and layer.kind in ("global", "sliding"):
                yield tensor, layer.k_width
