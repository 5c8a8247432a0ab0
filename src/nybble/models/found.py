"""The geometry of a model, however it is named: a file, a folder, a remote one, or a known one.

Only headers and config.json are read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from nybble.errors import ModelFileError, nearest
from nybble.models.file_kinds import show
from nybble.models.geometry import Geometry
from nybble.models.hub_cache import is_hub_id, snapshot
from nybble.models.remote_names import is_remote, names_gguf

_LONGEST_NAME = 60  # characters


@dataclass(frozen=True)
class Found:
    """A model that can be planned.

    Attributes:
        geometry: what its layers keep, and its weights.
        kind: where the geometry is from: "gguf", "folder" or "catalogue".
        weights: kind of file its weights are in: "gguf" or "safetensors".
        path: of a local model.
        file: name of the GGUF; None for a folder or a model of the catalogue.
        size_bytes: of the GGUF, all its files.
    """

    geometry: Geometry
    kind: Literal["gguf", "folder", "catalogue"]
    weights: Literal["gguf", "safetensors"]
    path: Path | None = None
    file: str | None = None
    size_bytes: int | None = None


def find(model: str, file: str | None = None) -> Found:
    """Find a model and read its geometry.

    Args:
        model: a GGUF; a folder with config.json, or that file; hf:org/repo[/file.gguf] or a URL; a
            name of the catalogue, such as gemma-4-31b-qat; the id of a model in the local hub
            cache. A path that exists goes first.
        file: of a model of the catalogue, which of its published files; None for the usual one.

    Raises:
        ModelFileError: it is not there, damaged, hostile, or of a kind that cannot be planned.
    """
    found = _find(model, file)
    return replace(found, geometry=replace(found.geometry, name=_printable(found.geometry.name)))


def _printable(name: str) -> str:
    """A name that a file gives itself, fit for a terminal and for one line."""
    return "".join(c if c.isprintable() else " " for c in name[:_LONGEST_NAME]).strip() or "model"


def _find(model: str, file: str | None) -> Found:
    path = Path(model)
    try:
        there = path.exists()
    except (OSError, ValueError) as error:  # a name too long, a zero byte in it
        raise ModelFileError("Cannot look for the model", seen=f"{model[:60]!r}: {error}",
                             hint="check the path") from error  # fmt: skip
    if there and model or model.lower().endswith(".gguf") and not is_remote(model):
        return _local(path)
    if is_remote(model):
        return _remote(model)
    from nybble.models import catalogue

    entry = catalogue.find(model)
    if entry is not None:
        chosen = entry.file(file)
        kind: Literal["gguf", "safetensors"] = "safetensors"
        if chosen is not None and chosen.name.endswith(".gguf"):
            kind = "gguf"
        return Found(entry.geometry(file), "catalogue", kind)
    if is_hub_id(model) and "/" in model:
        try:
            return _local(snapshot(model))
        except ModelFileError as error:
            raise ModelFileError(
                "This model is in neither the catalogue nor the local hub cache", seen=model,
                allowed=", ".join(catalogue.names()), hint=f"nybble plan hf:{model}",
            ) from error  # fmt: skip
    near = nearest(model, catalogue.names())
    raise ModelFileError(
        "There is no such file or folder, and no such model in the catalogue", seen=show(model),
        allowed=", ".join(catalogue.names()) + "; a GGUF, a folder, hf:org/repo",
        hint=f"nybble plan {near or 'gemma-4-31b-qat'}",
    )  # fmt: skip


def _local(path: Path) -> Found:
    if path.is_dir() or path.name == "config.json":
        from nybble.models.config_geometry import geometry_of_folder

        folder = path if path.is_dir() else path.parent
        return Found(geometry_of_folder(folder), "folder", "safetensors", folder)
    from nybble.models.gguf_geometry import geometry_of_headers
    from nybble.models.gguf_shards import read_shards

    headers = read_shards(path)
    size = sum(header.file_size for header in headers)
    return Found(geometry_of_headers(headers, path), "gguf", "gguf", path, path.name, size)


def _remote(model: str) -> Found:
    from nybble.models import remote

    if names_gguf(model):
        from nybble.models.gguf_geometry import geometry_of_headers

        headers = remote.remote_gguf(model)
        name = model.partition("?")[0].rsplit("/", 1)[-1]
        size = sum(header.file_size for header in headers)
        made = geometry_of_headers(headers, Path(name))
        return Found(made, "gguf", "gguf", None, name, size)
    from nybble.models.config_geometry import geometry_of_remote

    return Found(geometry_of_remote(remote.remote_folder(model)), "folder", "safetensors")
