"""What a sweep is asked to do: grids and how to run them, from a TOML file or from options.

place = "sweeps/first"          # a folder all nodes see, or an address such as s3://bucket/x
[run]
workers = 2                     # see Running
[[grid]]
model = ["a.gguf", "b.gguf"]
kv = ["q8_0/q8_0", "q4_0/q4_0"]
context = [1024, 4096]
categories = ["prose", "code"]  # see Grid
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from nybble.errors import NybbleError, unknown
from nybble.formats import KVSetting, expand, rotations
from nybble.scoring.request import DEFAULT_CONTEXT, DEFAULT_SETTINGS
from nybble.toml import read_toml

_TOP = ("place", "run", "grid")


@dataclass(frozen=True)
class Grid:
    """Models x settings x contexts x text x draws; what is left out is measure's default.

    Attributes:
        model: GGUFs, folders or hub ids.
        kv: settings, as `nybble measure --kv`.
        k: K types, crossed with `v`, as --k.
        v: V types.
        rotation: "on", "off" or "on,off".
        context: tokens.
        categories: built-in ones; empty for all, unless text is given.
        text: UTF-8 files of the user's.
        jsonl: a file of texts or conversations.
        documents: of each category.
        seeds: draws of documents: seed 0 is the first `documents`, 1 the next as many.
        engine: "auto", "llama.cpp" or "transformers".
        device: where torch runs.
        via: "prefill" or "decode".
        weights: what quantized weights are scored as.
        framing: how text is framed.
        score_from: fraction of the context that is not scored.
        split_kv: also K alone and V alone.
        thresholds: TOML file with the limits of verdicts.
        name: part of the run folders' names; needed where two grids measure one model alike.
    """

    model: tuple[str, ...]
    kv: tuple[str, ...] = ()
    k: tuple[str, ...] = ()
    v: tuple[str, ...] = ()
    rotation: str = "on"
    context: tuple[int, ...] = (DEFAULT_CONTEXT,)
    categories: tuple[str, ...] = ()
    text: tuple[str, ...] = ()
    jsonl: str = ""
    documents: int = 0
    seeds: tuple[int, ...] = (0,)
    engine: str = "auto"
    device: str = "auto"
    via: str = "prefill"
    weights: str = "f16"
    framing: str = "auto"
    score_from: float = 0.5
    split_kv: bool = False
    thresholds: str = ""
    name: str = ""

    @property
    def settings(self) -> tuple[KVSetting, ...]:
        """KV settings, crossed and expanded.

        Raises:
            NybbleError: an unknown type.
        """
        if not (self.kv or self.k or self.v):
            return tuple(expand(",".join(DEFAULT_SETTINGS), None, None, (True,)))
        kv, k, v = (",".join(x) or None for x in (self.kv, self.k, self.v))
        return tuple(expand(kv, k, v, rotations(self.rotation)))


@dataclass(frozen=True)
class Running:
    """How a sweep is run; nothing of this changes its numbers but `threads`, if the engine minds.

    Attributes:
        workers: groups scored at once on this machine; 0 for as many as cores allow.
        threads: CPU threads of each; 0 for the usable cores over the workers.
        memory_gib: memory that all workers here may need together; 0 for what is free.
        gpus: of each group; -1 for 1 where its grid says device = "cuda", else 0.
        attempts: how often a group is tried whose process or node died.
        timeout: seconds of an engine's silence after which it counts as hung.
        price_per_hour: of one worker, for the estimate of --dry-run; any currency.
    """

    workers: int = 0
    threads: int = 0
    memory_gib: float = 0.0
    gpus: float = -1.0
    attempts: int = 2
    timeout: float = 1800.0
    price_per_hour: float = 0.0


@dataclass(frozen=True)
class Spec:
    """A whole sweep.

    Attributes:
        grids: one or more.
        place: folder or address that its results go to.
        running: how it is run.
        source: the file it was read from, empty for options.
    """

    grids: tuple[Grid, ...]
    place: str = ""
    running: Running = field(default_factory=Running)
    source: str = ""


def read(path: Path) -> Spec:
    """Read a sweep's TOML file. Paths in it are relative to the file's folder.

    Raises:
        NybbleError: unreadable, no TOML, an unknown key, or a value of the wrong kind.
    """
    found, _ = read_toml(path, "the sweep", "a TOML file with [[grid]] tables",
                         "nybble sweep --help shows one")  # fmt: skip
    _known(found, _TOP, "the sweep")
    tables = found.get("grid", [])
    tables = [tables] if isinstance(tables, dict) else tables
    if not isinstance(tables, list) or not tables:
        raise NybbleError("a sweep needs a grid", seen=str(path),
                          hint='[[grid]] with model = ["model.gguf"]')  # fmt: skip
    grids = tuple(_made(Grid, t, "[[grid]]") for t in tables)
    running = _made(Running, found.get("run", {}), "[run]")
    place = _text(found.get("place", ""), "place")
    folder = path.parent
    return Spec(
        tuple(_resolved(g, folder) for g in grids),
        str(folder / place) if place and "://" not in place else place,
        running,
        str(path),
    )


def check(spec: Spec) -> None:
    """Refuse numbers out of range.

    Raises:
        NybbleError: names the key, the value and the allowed values.
    """
    run = spec.running
    for name, value, least, most in (
        ("workers", run.workers, 0, 4096), ("threads", run.threads, 0, 512),
        ("memory_gib", run.memory_gib, 0, 1 << 20), ("attempts", run.attempts, 1, 100),
        ("price_per_hour", run.price_per_hour, 0, 1e6), ("gpus", run.gpus, -1, 64),
        ("timeout", run.timeout, 1, threading.TIMEOUT_MAX),
    ):  # fmt: skip
        if not least <= value <= most:
            raise NybbleError(f"{name} of [run] is out of range", seen=value,
                              allowed=f"{least} to {most:g}")  # fmt: skip
    for grid in spec.grids:
        if not grid.model:
            raise NybbleError("a grid names no model", hint='model = ["model.gguf"]')
        if not grid.seeds or len(set(grid.seeds)) < len(grid.seeds):
            raise NybbleError("seeds are whole numbers, each once", seen=list(grid.seeds))
        if grid.engine not in ("auto", "llama.cpp", "transformers"):
            raise NybbleError("a sweep runs engines that it can start itself", seen=grid.engine,
                              allowed="auto, llama.cpp, transformers",
                              hint="nybble measure --url scores running servers")  # fmt: skip


def _resolved(grid: Grid, folder: Path) -> Grid:
    def at(name: str) -> str:
        return str(folder / name) if name else ""

    # A hub id has no file here; a name that is a file does not stay one.
    models = tuple(at(m) if (folder / m).exists() else m for m in grid.model)
    text = tuple(at(t) for t in grid.text)
    return replace(grid, model=models, text=text, jsonl=at(grid.jsonl),
                   thresholds=at(grid.thresholds))  # fmt: skip


def _known(table: object, names: Iterable[str], where: str) -> Mapping[str, Any]:
    if not isinstance(table, dict):
        raise NybbleError(f"{where} must be a table", seen=repr(table)[:60])
    allowed = list(names)
    for key in table:
        if key not in allowed:
            raise unknown(f"unknown key in {where}", key, allowed)
    return table


def _made(kind: type[Any], table: object, where: str) -> Any:
    """Build a dataclass of plain values from a TOML table; one value may stand for a list."""
    defaults = {f.name: f for f in fields(kind)}
    given = {}
    for key, value in _known(table, defaults, where).items():
        wanted = str(defaults[key].type)
        given[key] = _value(value, wanted, f"{key} of {where}")
    if kind is Grid and "model" not in given:
        raise NybbleError(f"{where} names no model", hint='model = ["model.gguf"]')
    return kind(**given)


def _value(value: object, wanted: str, name: str) -> object:
    if wanted.startswith("tuple"):
        items = value if isinstance(value, list) else [value]
        one = _whole if "int" in wanted else _text
        return tuple(one(item, name) for item in items)
    if wanted == "str":
        return _text(value, name)
    if wanted == "bool":
        if not isinstance(value, bool):
            raise NybbleError(f"{name} is true or false", seen=repr(value)[:60])
        return value
    if wanted == "int":
        return _whole(value, name)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise NybbleError(f"{name} is a number", seen=repr(value)[:60])
    return float(value)


def _whole(value: object, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise NybbleError(f"{name} is a whole number", seen=repr(value)[:60])
    return value


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise NybbleError(f"{name} is a text in quotes", seen=repr(value)[:60])
    return value
