"""Run the command line as a user does: in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

NYBBLE = (sys.executable, "-m", "nybble")
_TERMINAL = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "CLICOLOR_FORCE")


@dataclass(frozen=True)
class Ran:
    """What a command left: exit code, data, messages."""

    code: int
    out: str
    err: str

    @property
    def record(self) -> Any:
        """Stdout as JSON."""
        return json.loads(self.out)


def _environment(env: Mapping[str, str] | None) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in _TERMINAL}
    return {**kept, **(env or {})}


def _invoke(
    *args: object,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    traceback: bool = False,
    timeout: float = 120,
) -> Ran:
    """Run `nybble ARGS` in `cwd`, without a terminal, and wait for it."""
    done = subprocess.run(
        [*NYBBLE, *map(str, args)],
        cwd=cwd,
        env=_environment(env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=timeout,
    )
    ran = Ran(done.returncode, done.stdout.decode(), done.stderr.decode())
    if not traceback:
        assert "Traceback" not in ran.err, ran.err
    return ran


def _start(*args: object, cwd: Path, env: Mapping[str, str] | None = None) -> Any:
    """Start `nybble ARGS` in a process group of its own, in which Ctrl-C works."""
    return subprocess.Popen(
        [*NYBBLE, *map(str, args)],
        cwd=cwd,
        env=_environment(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell's background job ignores Ctrl-C and hands that on; ours must not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.fixture(scope="session")
def invoke() -> Callable[..., Ran]:
    """Runs a command in a folder that is named."""
    return _invoke


@pytest.fixture(scope="session")
def start() -> Callable[..., Any]:
    """Starts a command and does not wait."""
    return _start


@pytest.fixture
def nybble(tmp_path: Path) -> Callable[..., Ran]:
    """Runs a command in the test's own folder."""

    def run(*args: object, **options: Any) -> Ran:
        return _invoke(*args, **{"cwd": tmp_path, **options})

    return run


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment with a cache folder, for fixtures that live longer than one test."""
    return {"NYBBLE_CACHE": str(tmp_path_factory.mktemp("cli-cache"))}
