"""Which process listens on a port of this machine, what it was told, and what it wrote."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from nybble.serving.supervisor import LOGS

_MOST_LOG = 64 << 20  # bytes read of a log's end
# How command lines ask for the types of K and V.
_K = ("--cache-type-k", "-ctk", "--kv-cache-dtype", "--quant-policy", "--kv-bits")
_V = ("--cache-type-v", "-ctv")


@dataclass(frozen=True)
class Listener:
    """The process behind a port.

    Attributes:
        pid: of it.
        command: argument vector.
        parents: process ids of what started it, nearest first.
        output: file its stderr or stdout goes to, where it is one.
    """

    pid: int
    command: tuple[str, ...]
    parents: tuple[int, ...]
    output: Path | None


def listener(port: int) -> Listener | None:
    """The process that listens on a TCP port here; None where none is seen or may be looked at."""
    try:
        for found in psutil.net_connections(kind="tcp"):
            if found.status == psutil.CONN_LISTEN and found.laddr and found.laddr.port == port:
                if found.pid is not None:
                    return _about(found.pid)
    except (psutil.Error, OSError):
        pass
    return None


def _about(pid: int) -> Listener | None:
    try:
        process = psutil.Process(pid)
        command = tuple(process.cmdline())
        parents = tuple(p.pid for p in process.parents())
    except psutil.Error:
        return None
    return Listener(pid, command, parents, _output(pid))


def _output(pid: int) -> Path | None:
    for number in (2, 1):
        try:
            path = Path(f"/proc/{pid}/fd/{number}").resolve(strict=True)
        except OSError:
            continue
        if path.is_file():
            return path
    return None


def asked_types(command: Sequence[str]) -> tuple[str | None, str | None]:
    """K and V types that a command line asks for, as the engine spells them."""
    k, v = _option(command, _K), _option(command, _V)
    one_flag = any(_option(command, (name,)) for name in _K[2:])
    return k, k if v is None and one_flag else v


def _option(command: Sequence[str], names: tuple[str, ...]) -> str | None:
    for at, word in enumerate(command):
        name, equals, value = word.partition("=")
        if name in names:
            if equals:
                return value
            if at + 1 < len(command):
                return command[at + 1]
    return None


def port_of(command: Sequence[str]) -> int | None:
    """The port that a command line names; None for the engine's own default."""
    value = _option(command, ("--port", "-p"))
    return int(value) if value and re.fullmatch(r"\d{1,5}", value) else None


def log_text(path: Path) -> str | None:
    """The end of a log with the files it was rotated into, oldest first; None if unreadable."""
    parts = []
    for file in [*(Path(f"{path}.{n}") for n in range(LOGS, 0, -1)), path]:
        try:
            with file.open("rb") as stream:
                stream.seek(0, 2)
                stream.seek(max(0, stream.tell() - _MOST_LOG))
                parts.append(stream.read().decode("utf-8", "replace"))
        except OSError:
            continue
    return "".join(parts) if parts else None
