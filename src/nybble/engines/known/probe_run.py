"""Runs a program of this machine for what it prints: bounded in time and size, and ended after."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MAX_OUTPUT = 4 << 20


@dataclass(frozen=True)
class Printed:
    """What a program printed.

    Attributes:
        text: stdout, and stderr where that was asked for.
        problem: why it cannot be relied on; empty where it can.
    """

    text: str
    problem: str = ""


def printed(
    command: Sequence[str],
    timeout: float,
    *,
    env: Mapping[str, str] | None = None,
    errors: bool = False,
) -> Printed:
    """Run a program without input, in a session of its own, and wait for its end.

    Args:
        command: argument vector.
        timeout: seconds.
        env: its whole environment; None for this process's.
        errors: whether stderr is wanted too.
    """
    until = time.monotonic() + timeout
    try:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if errors else subprocess.DEVNULL,
            env=None if env is None else dict(env),
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        return Printed("", f"it cannot be run: {getattr(error, 'strerror', None) or error}")
    found = bytearray()
    assert process.stdout is not None
    stream = process.stdout

    def read() -> None:
        while len(found) <= MAX_OUTPUT and (piece := os.read(stream.fileno(), 1 << 16)):
            found.extend(piece)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(timeout)
    large = len(found) > MAX_OUTPUT
    try:
        left = 0.0 if large or reader.is_alive() else max(0.0, until - time.monotonic())
        problem = _problem(process.wait(left))
        if reader.is_alive():
            problem = "a program it started still held its output"
    except subprocess.TimeoutExpired:
        problem = f"it did not end within {timeout:g} s"
    if large:
        problem = f"it printed more than {MAX_OUTPUT:,} bytes"
    _end(process)
    reader.join(1.0)
    if not reader.is_alive():
        stream.close()
    return Printed(bytes(found[:MAX_OUTPUT]).decode("utf-8", "replace"), problem)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the program and what it started in its session."""
    try:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    except (ProcessLookupError, PermissionError):
        pass
    process.wait()


def _problem(code: int) -> str:
    if code >= 0:
        return f"it ended with code {code}" if code else ""
    try:
        return f"it was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"it was ended by signal {-code}"


def plain(text: str, most: int = 200) -> str:
    """Text without what a terminal would obey, on one line."""
    kept = "".join(" " if c.isspace() else c for c in text[: 4 * most])
    kept = "".join(c for c in kept if unicodedata.category(c)[0] != "C")
    return " ".join(kept.split())[:most]
