"""What is known of the server behind `nybble rag serve`: its KV setting, its cache's bytes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from nybble.errors import NybbleError
from nybble.loopback import loopback_url

if TYPE_CHECKING:
    from nybble.engines.known.base import Deployment
    from nybble.formats import KVSetting
    from nybble.models.geometry import Geometry
    from nybble.rag.web.gauge import Cells, Engine
    from nybble.serving.serve import Server

_LLAMACPP = "llama.cpp"


def started(server: Server) -> Engine:
    """The engine of a server that was started here: what it runs, as its log has confirmed."""
    from nybble.rag.web.gauge import Engine

    asked: Deployment = server.deployed.deployment
    cells: tuple[Cells, ...] = ()
    if server.deployed.engine.name == _LLAMACPP:
        cells = _cells(asked.geometry, asked.setting, asked.context, asked.sequences)
    name = asked.name or asked.model
    return Engine(name, str(asked.setting), asked.context, cells, asked.sequences)


def reached(base: str, key: str | None, model: str) -> Engine:
    """The engine of a server that runs already, as far as it, or this machine, tells.

    Args:
        base: its address without /v1.
        key: of the server; None for none.
        model: its name there.
    """
    from nybble.engines.readback.base import Http
    from nybble.engines.readback.registry import recognised
    from nybble.rag.web.gauge import Engine

    http = Http(base, key, 10.0)
    try:
        reader = recognised(http)
        reading = reader.read(http, None) if reader is not None else None
    finally:
        http.close()
    found = Engine(model)
    if reading is not None:
        kv = f"{reading.k}/{reading.v}" if reading.k and reading.v else None
        found = Engine(model or reading.model or "", kv, reading.context,
                       sequences=reading.sequences or 1)  # fmt: skip
    return _ours(base, found)


def _ours(base: str, found: Engine) -> Engine:
    """With what `nybble serve` left behind, where it serves there."""
    from nybble.formats import parse
    from nybble.models.found import find
    from nybble.serving.runs import recall

    place = urlsplit(base)
    run = recall(place.port or 80) if loopback_url(base) else None
    if run is None or run.url.rstrip("/") != base.rstrip("/"):
        return found
    known = replace(found, kv=run.kv, context=run.context, sequences=run.sequences)
    if run.engine != _LLAMACPP:
        return known
    try:
        geometry = find(run.model, None).geometry
    except NybbleError:  # the file is gone since: then its bytes are not told
        return known
    cells = _cells(geometry, parse(run.kv), run.context, run.sequences)
    return replace(known, cells=cells)


def _cells(
    geometry: Geometry, setting: KVSetting, context: int, sequences: int
) -> tuple[Cells, ...]:
    """Tokens and bytes of llama.cpp's caches, by the plan; nothing of layers that hold states."""
    from nybble.planning.memory.base import Load
    from nybble.planning.memory.llamacpp_cells import cells
    from nybble.planning.memory.rows import kv_part, latent_part
    from nybble.rag.web.gauge import Cells

    found = []
    for cache in cells(geometry, Load(context, sequences), unified=False):
        plain = [layer for layer in cache.layers if layer.kind != "latent"]
        latent = tuple(layer for layer in cache.layers if layer.kind == "latent")
        parts = kv_part(plain, setting, 1, "layers")
        parts += latent_part(latent, setting.k_type, setting.k_type, 1)
        if parts:
            found.append(Cells(cache.each, sum(part.n_bytes for part in parts)))
    return tuple(found)
