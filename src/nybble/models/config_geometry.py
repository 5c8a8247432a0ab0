"""The geometry of a model from config.json, as the model's class in transformers resolves it.

Needs neither transformers nor torch: the classes' defaults ship as config_defaults.json, and the
rules of each class stand in `config_families.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nybble.errors import ModelFileError
from nybble.models.config_families import FAMILIES
from nybble.models.config_fields import text_fields
from nybble.models.config_layers import layers_of
from nybble.models.config_shapes import shapes_of
from nybble.models.config_tensors import stored
from nybble.models.config_weights import derived, quantization
from nybble.models.file_kinds import show
from nybble.models.geometry import Geometry
from nybble.models.safetensors_header import SafetensorsHeader

if TYPE_CHECKING:  # a plan of a local model does not pay for what reads remote ones
    from nybble.models.remote import RemoteFolder

_SINGLE = "model.safetensors"
_AGAIN = "download the model again"


def geometry_of_config(
    config: Mapping[str, Any],
    name: str,
    headers: Mapping[str, SafetensorsHeader] | None = None,
) -> Geometry:
    """Read the geometry from a config.json already read.

    Args:
        config: its object, of a text model or of a multimodal one, whose text part is taken.
        name: the model's name, for people.
        headers: those of the model's safetensors files, by file name. Without them the weights
            are derived from the shapes and the dtype that config.json says.

    Returns:
        The geometry; `architecture` is the model_type of the text part, and `notes` say which
        numbers the class's defaults decided.

    Raises:
        ModelFileError: the model_type is not known, a field is wrong or contradicts another one
            (the message names it), or the headers are those of another model.
    """
    fields = text_fields(config)
    family = FAMILIES[fields.kind]
    layers = layers_of(fields, family)
    shapes = shapes_of(fields, family, layers)
    hidden, vocabulary = fields.integer("hidden_size"), fields.integer("vocab_size")
    context = fields.integer("max_position_embeddings")
    notes = [fields.note] if fields.note else []
    if family.rule == "chunks" and any(layer.window for layer in layers):
        notes.append("layers that attend in chunks are counted as sliding ones, a chunk wide")
    if headers:
        tensors = [t for header in headers.values() for t in header.tensors]
        found = stored(tensors, fields, layers, shapes)
        weights = found.weights
        notes += found.notes
    else:
        weights = derived(shapes, config, fields)
        if quantization(config, fields):
            notes.append("bytes of the weights: estimated by the bits of quantization_config")
    return Geometry(
        name=name,
        architecture=fields.kind,
        layers=layers,
        hidden=hidden,
        intermediate=shapes.intermediate,
        vocabulary=vocabulary,
        context_length=context,
        weights=weights,
        notes=tuple(notes),
        experts_used=shapes.used,
        experts=shapes.experts,
    )


def geometry_of_folder(path: Path) -> Geometry:
    """Read the geometry of a model folder: config.json, and the safetensors headers if there.

    A tokenizer is not needed, and quantized models are taken. Without any weights, as after
    downloading config.json alone, they are derived from config.json.

    Raises:
        ModelFileError: config.json or a part of the weights is missing or damaged, or see
            `geometry_of_config`.
    """
    from nybble.models.open_file import read_object

    config = read_object(path / "config.json")
    return geometry_of_config(config, path.resolve().name or str(path), _headers(path))


def geometry_of_remote(folder: RemoteFolder) -> Geometry:
    """Read the geometry of a remote model whose config.json and headers were fetched.

    Raises:
        ModelFileError: see `geometry_of_config`.
    """
    name = re.sub(r"/resolve/[^/]+/?$", "", folder.url.rstrip("/"))
    name = "/".join(name.removesuffix("/config.json").split("/")[-2:])
    return geometry_of_config(folder.config, name, folder.headers)


def _headers(path: Path) -> dict[str, SafetensorsHeader] | None:
    """Headers of a folder's weights, None where it has none; as transformers looks for them."""
    from nybble.models.folder import INDEX, MAX_SHARDS, names_in
    from nybble.models.open_file import read_object
    from nybble.models.safetensors_header import read_header

    names = names_in(path)
    if _SINGLE in names:
        return {_SINGLE: read_header(path / _SINGLE)}
    if INDEX not in names:
        return None
    weight_map = read_object(path / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFileError(f"{INDEX} does not say where the weights are", hint=_AGAIN,
                             seen=f"weight_map {show(weight_map)}",
                             allowed="an object of tensor and file names")  # fmt: skip
    parts = set(map(str, weight_map.values()))
    # A plain name: no path leads out of the folder.
    odd = [p for p in parts if not re.fullmatch(r"[\w.-]+\.safetensors", p)]
    if odd or len(parts) > MAX_SHARDS:
        raise ModelFileError(f"{INDEX} names a file that is not one of the folder's",
                             seen=show(min(odd)) if odd else f"{len(parts):,} files",
                             allowed=f"up to {MAX_SHARDS:,} names such as "
                             "model-00001-of-00002.safetensors", hint=_AGAIN)  # fmt: skip
    gone = sorted(parts - set(names))
    if len(gone) == len(parts):
        return None
    if gone:
        raise ModelFileError(f"The model is in {len(parts):,} parts and some are missing",
                             seen=f"missing in {path}: {', '.join(gone[:5])}",
                             allowed=f"all {len(parts):,}, or none",
                             hint="download the missing files into the same folder")  # fmt: skip
    headers: dict[str, SafetensorsHeader] = {}
    seen: set[str] = set()
    for part in sorted(parts):
        headers[part] = read_header(path / part)
        here = {t.name for t in headers[part].tensors}
        if here & seen:
            raise ModelFileError(f"{part} repeats a tensor of another part",
                                 seen=show(min(here & seen)), hint=_AGAIN)  # fmt: skip
        seen |= here
    lacking = weight_map.keys() - seen
    if lacking:
        raise ModelFileError(f"The parts lack a tensor of {INDEX}", seen=show(min(lacking)),
                             hint=_AGAIN)  # fmt: skip
    return headers
