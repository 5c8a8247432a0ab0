"""A child process that serves: started, watched until it is healthy, restarted when it dies.

Its output goes through a pipe into a log of bounded size, and every line past a listener first,
so that what an engine says of its cache is heard as it is said.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from nybble.errors import EngineError
from nybble.serving.guard import MODULE as GUARD

BACKOFF = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)  # seconds before each restart in a row
STEADY = 60.0  # seconds of life after which a crash counts as the first again
MOST_CRASHES = 6  # in a row
GRACE = 15.0  # seconds between SIGTERM and SIGKILL
_LOG_BYTES = 16 << 20
LOGS = 3  # files a full log is rotated into
_POLL = 0.2
_TAIL = 200  # lines kept for error messages
_TELLING = ("error", "failed", "abort", "assert", "unable", "out of memory", "invalid")


@dataclass(frozen=True)
class Program:
    """What to run.

    Attributes:
        command: argument vector.
        health: URL that answers 200 once requests are served.
        log: file its output is appended to.
        env: variables on top of this process's.
        first_line: written to its stdin, which then stays open; None for no stdin, and a guard
            that ends the program with its supervisor.
        folder: it runs in; None for this process's.
    """

    command: Sequence[str]
    health: str
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)
    first_line: str | None = None
    folder: Path | None = None


class Supervisor:
    """Runs one program until it is stopped.

    Args:
        program: to run.
        on_line: called with every line it prints, from a thread; a restart prints them again.
        on_event: called with what happens to the child, in words.
    """

    def __init__(
        self,
        program: Program,
        *,
        on_line: Callable[[str], None] = lambda _: None,
        on_event: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.program = program
        self.restarts = 0
        self._on_line, self._on_event = on_line, on_event
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._tail: deque[str] = deque(maxlen=_TAIL)
        self._stopped = threading.Event()
        self._started = 0.0
        try:
            program.log.parent.mkdir(parents=True, exist_ok=True)
            self._log = logging.handlers.RotatingFileHandler(
                program.log, maxBytes=_LOG_BYTES, backupCount=LOGS, encoding="utf-8"
            )
        except OSError as error:
            raise EngineError("cannot write the log", seen=str(error),
                              hint="--log A_FILE_OF_YOURS") from error  # fmt: skip

    @property
    def pid(self) -> int | None:
        """Process id of the child; None where none runs."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self) -> None:
        """Start the program.

        Raises:
            EngineError: it is not there or cannot be run.
        """
        given = self.program
        command = list(given.command)
        if given.first_line is None:
            command = [sys.executable, "-m", GUARD, *command]
        self._tail.clear()
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE if given.first_line is not None
                else subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                env={**os.environ, **given.env}, cwd=given.folder,
                # A session of its own: Ctrl-C reaches the supervisor only, which then ends it.
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise EngineError("cannot start the engine", seen=f"{command[0]}: {error}") from error
        self._started = time.monotonic()
        if given.first_line is not None:
            assert self._process.stdin is not None
            try:
                self._process.stdin.write(given.first_line.encode() + b"\n")
                self._process.stdin.flush()
            except OSError:
                pass  # it died at once: seen when its health is waited for
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for raw in process.stdout:
            line = raw.decode("utf-8", "replace").rstrip("\n")
            self._tail.append(line)
            self._write(line)
            self._on_line(line)

    def wait_ready(self, timeout: float, tell: Callable[[float], None] = lambda _: None) -> None:
        """Wait until the health URL answers 200.

        Args:
            timeout: seconds.
            tell: called with the seconds waited so far.

        Raises:
            EngineError: it died first, or is not healthy in time; what it said last is told.
        """
        begun = time.monotonic()
        with httpx.Client(timeout=5, trust_env=False) as client:
            while not self._stopped.is_set():
                process = self._process
                if process is None or process.poll() is not None:
                    raise self._died()
                try:
                    if client.get(self.program.health).status_code == 200:
                        return
                except httpx.HTTPError:
                    pass
                waited = time.monotonic() - begun
                if waited > timeout:
                    raise EngineError(
                        "the engine does not become healthy", seen=f"{self.program.health} after "
                        f"{waited:.0f} s", allowed="200",
                        hint=f"--timeout {2 * timeout:.0f}, or read {self.program.log}",
                    )  # fmt: skip
                tell(waited)
                self._stopped.wait(_POLL)

    def run(self, command: Sequence[str], timeout: float) -> None:
        """Run a command to its end, as the program is run; what it prints goes into the log.

        Raises:
            EngineError: it is not there, fails, or takes longer than `timeout` seconds.
        """
        given = self.program
        try:
            done = subprocess.run(
                list(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, env={**os.environ, **given.env}, cwd=given.folder,
                timeout=timeout, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise EngineError("a command of the engine failed",
                              seen=f"{' '.join(command)}: {error}") from error  # fmt: skip
        lines = done.stdout.decode("utf-8", "replace").splitlines()
        for line in lines:
            self._write(line)
        if done.returncode:
            raise EngineError("a command of the engine failed", seen=f"{' '.join(command)}: code "
                              f"{done.returncode}: {' | '.join(lines[-3:])}",
                              hint=f"read {given.log}")  # fmt: skip

    def _write(self, line: str) -> None:
        self._log.emit(logging.LogRecord("engine", logging.INFO, "", 0, "%s", (line,), None))

    def keep(self, timeout: float) -> None:
        """Restart the program whenever it dies, until `stop` is called from another thread.

        Args:
            timeout: seconds each start may take to become healthy.

        Raises:
            EngineError: it dies again and again.
        """
        crashes = 0
        while not self._stopped.is_set():
            process = self._process
            assert process is not None
            if process.poll() is None:
                self._stopped.wait(_POLL)
                continue
            error = self._died()
            crashes = 1 if time.monotonic() - self._started > STEADY else crashes + 1
            if crashes > MOST_CRASHES:
                error.hint = f"read {self.program.log}"
                raise EngineError(f"{error.what}, {crashes} times in a row", seen=error.seen,
                                  hint=error.hint) from error  # fmt: skip
            pause = BACKOFF[min(crashes, len(BACKOFF)) - 1]
            self._on_event(f"{error.what}; restart in {pause:g} s")
            if self._stopped.wait(pause):
                return
            self.restarts += 1
            self.start()
            try:
                self.wait_ready(timeout)
            except EngineError as failed:
                self._end()
                self._on_event(str(failed.what))
                continue
            if not self._stopped.is_set():
                self._on_event("serving again")

    def stop(self) -> None:
        """End the program: SIGTERM, then SIGKILL where that does not do; closes the log."""
        self._stopped.set()
        self._end()
        self._log.close()

    def _end(self) -> None:
        process = self._process
        if process is None:
            return
        if process.stdin is not None:
            try:
                process.stdin.close()
            except OSError:
                pass
        if process.poll() is None:
            _signal(process, signal.SIGTERM)
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                pass
        _signal(process, signal.SIGKILL)  # the rest of its group, workers of vLLM for one
        process.wait()
        if self._reader is not None:
            self._reader.join(GRACE)

    def _died(self) -> EngineError:
        """What the child's end says."""
        process = self._process
        code = None if process is None else process.poll()
        if self._reader is not None:
            self._reader.join(2)
        said = [line for line in self._tail if any(w in line.lower() for w in _TELLING)]
        last = (said or list(self._tail))[-3:]
        name = f"code {code}"
        if code is not None and code < 0:
            name = signal.Signals(-code).name
        hint = f"read {self.program.log}"
        if name == "SIGKILL":
            hint = f"a shorter --context if memory ran out; {hint}"
        return EngineError(f"the engine ended with {name}", seen=" | ".join(last) or None,
                           hint=hint)  # fmt: skip


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):
        pass
