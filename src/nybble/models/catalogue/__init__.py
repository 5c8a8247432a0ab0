"""Known models: published config.json values and file sizes, so that a plan needs no download.

The index, models.json, names the source of every config and of every size; the configs are
trimmed to the fields that decide the cache and the weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from nybble.errors import ModelFileError
from nybble.models.file_kinds import show
from nybble.models.geometry import Geometry, Weights

_HERE = Path(__file__).parent
AS_CONFIGURED = "safetensors"  # the weights as config.json describes them


@dataclass(frozen=True)
class File:
    """A published file of weights.

    Attributes:
        name: of the file.
        label: its weight type, in small letters: q4_0, q4_k_m.
        n_bytes: its size, or of its tensors where the source counts those.
        source: who says so.
    """

    name: str
    label: str
    n_bytes: int
    source: str


@dataclass(frozen=True)
class Entry:
    """A model of the catalogue.

    Attributes:
        id: its name here, such as gemma-4-31b-qat.
        aliases: hub ids and other names.
        config: name of the file with its config, without .json.
        source: where the config was read.
        files: published files of weights whose size is known.
        usual: name of the file that is meant where none is named; None for the weights as
            config.json describes them.
        loads: hub ids of checkpoints in other weight formats, by quant_method, for engines that
            load no GGUF; published as such, their sizes are not known here.
    """

    id: str
    aliases: tuple[str, ...]
    config: str
    source: str
    files: tuple[File, ...]
    usual: str | None
    loads: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def file(self, name: str | None = None) -> File | None:
        """The published file of a name or a label, None for the weights as in config.json.

        Args:
            name: a file's name or label in any case, "safetensors" for the weights as in
                config.json, or None for the usual file.

        Raises:
            ModelFileError: there is no such file; the error lists those that are known.
        """
        wanted = (self.usual or AS_CONFIGURED) if name is None else name
        if wanted.lower() == AS_CONFIGURED:
            return None
        for file in self.files:
            if wanted.lower() in (file.name.lower(), file.label):
                return file
        raise ModelFileError(
            f"The catalogue knows no such file of {self.id}",
            seen=show(name), allowed=[f.label for f in self.files] + [AS_CONFIGURED],
            hint=f"nybble plan {self.id}, or hf:org/repo/file.gguf for a file of the hub",
        )  # fmt: skip

    def read_config(self) -> dict[str, Any]:
        """The published config.json, trimmed."""
        path = _HERE / "configs" / f"{self.config}.json"
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return config

    def geometry(self, file: str | None = None) -> Geometry:
        """The geometry, with the weights of a published file.

        Args:
            file: see `file`. What a token reads of it is its share by config.json's shapes.

        Raises:
            ModelFileError: there is no such file.
        """
        from nybble.models.config_geometry import geometry_of_config

        chosen = self.file(file)
        made = geometry_of_config(self.read_config(), self.id)
        note = f"config.json: {self.source}"
        if chosen is None or made.weights is None:
            return replace(made, notes=(*made.notes, note))
        return replace(
            made,
            weights=_scaled(made.weights, chosen),
            notes=(*(n for n in made.notes if not n.startswith("bytes of the weights")), note,
                   f"{chosen.name}: {chosen.n_bytes:,} bytes, {chosen.source}"),
        )  # fmt: skip


def names() -> tuple[str, ...]:
    """Ids of all models, families together."""
    return tuple(entry.id for entry in _entries())


def find(name: str) -> Entry | None:
    """The model of an id, a hub id such as google/gemma-4-31B-it or another alias, in any case.

    A hub id is found only under the organisation that published it.
    """
    return _by_name().get(_plain(name))


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", "-").replace(":", "-")


@cache
def _entries() -> tuple[Entry, ...]:
    index = json.loads((_HERE / "models.json").read_text(encoding="utf-8"))
    return tuple(
        Entry(
            id=row["id"],
            aliases=tuple(row["aliases"]),
            config=row["config"],
            source=f"{row['source']}, read {index['read']}",
            files=tuple(File(**file) for file in row["files"]),
            usual=row["usual"],
            loads=MappingProxyType(row.get("loads", {})),
        )
        for row in index["models"]
    )


@cache
def _by_name() -> Mapping[str, Entry]:
    found: dict[str, Entry] = {}
    for entry in _entries():
        for name in (entry.id, *entry.aliases, *(a.rpartition("/")[2] for a in entry.aliases)):
            found.setdefault(_plain(name), entry)
    return MappingProxyType(found)


def _scaled(weights: Weights, file: File) -> Weights:
    """The weights at a file's size: every part in its share by config.json's shapes."""
    share = file.n_bytes / weights.n_bytes
    return Weights(
        n_bytes=file.n_bytes,
        n_params=weights.n_params,
        read_bytes=round(weights.read_bytes * share),
        active_params=weights.active_params,
        source="published",
        types=MappingProxyType({file.label: file.n_bytes}),
        lookup_bytes=round(weights.lookup_bytes * share),
        tied=weights.tied,
    )
