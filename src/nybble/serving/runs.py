"""What `nybble serve` leaves behind while it serves, one file a port: `nybble verify` reads it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nybble.environment import cache_dir


@dataclass(frozen=True)
class Run:
    """A server that was started here.

    Attributes:
        url: without a path.
        engine: name.
        model: as the engine was given it.
        kv: KV setting asked for.
        context: tokens of one sequence.
        sequences: held at once.
        bytes_per_token: the plan's, of one sequence once windows are full.
        log: file of its output.
        pid: of the supervisor.
        slots: folder that slots may be saved to; empty for none.
    """

    url: str
    engine: str
    model: str
    kv: str
    context: int
    sequences: int
    bytes_per_token: int
    log: str
    pid: int
    slots: str = ""


def folder() -> Path:
    """Where the files are; only the user may read it."""
    path = cache_dir() / "serving"
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


def remember(run: Run, port: int) -> Path:
    """Write a run down, whole or not at all."""
    path = folder() / f"{port}.json"
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as part:
        json.dump(asdict(run), part)
    os.replace(part.name, path)
    return path


def forget(port: int) -> None:
    """Remove what was written down of this process's server."""
    found = recall(port)
    if found is not None and found.pid == os.getpid():
        (folder() / f"{port}.json").unlink(missing_ok=True)


def recall(port: int) -> Run | None:
    """The server of a port; None where none was written down, or its supervisor is gone."""
    try:
        text = (folder() / f"{port}.json").read_text(encoding="utf-8")
        found = _run(json.loads(text))
    except (OSError, ValueError, TypeError):
        return None
    try:
        os.kill(found.pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return found


def _run(given: Mapping[str, Any]) -> Run:
    found = Run(**given)
    for name, kind in (("url", str), ("kv", str), ("log", str), ("pid", int),
                       ("bytes_per_token", int)):  # fmt: skip
        if not isinstance(getattr(found, name), kind):
            raise TypeError(name)
    return found
