"""A child process that runs an engine, and the frames spoken with it.

A frame is a 4-byte header length, a JSON header and, if the header names one, a binary
payload. No pickle: what comes back from a process that reads hostile model files is data only.
A crash, an abort, a memory kill or a hang of the child becomes one EngineCrashError here.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

from nybble.errors import CacheNotReadError, EngineError, ModelFileError, NybbleError

_MAX_FRAME = 1 << 31
_GRACE = 10.0  # seconds between the end of a child's output and its own end
_KINDS = {c.__name__: c for c in (NybbleError, EngineError, ModelFileError, CacheNotReadError)}


class EngineCrashError(EngineError):
    """The child died or hung; `where` is the last step it announced."""

    def __init__(self, what: str, *, where: dict[str, Any], **kwargs: Any) -> None:
        self.where = where
        super().__init__(what, **kwargs)


@dataclass(frozen=True)
class Frame:
    """A message: JSON header and binary payload."""

    header: dict[str, Any]
    payload: bytes = b""


def write_frame(stream: IO[bytes], frame: Frame) -> None:
    """Write one frame and flush."""
    header = json.dumps({**frame.header, "bytes": len(frame.payload)}).encode()
    stream.write(struct.pack(">I", len(header)) + header + frame.payload)
    stream.flush()


def read_frame(stream: IO[bytes]) -> Frame | None:
    """Read one frame; None at the end of the stream, also when that cuts the frame off."""
    size = stream.read(4)
    if len(size) < 4:
        return None
    text = stream.read(struct.unpack(">I", size)[0])
    try:
        header = json.loads(text)
        n = int(header.pop("bytes"))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise EngineError("the engine process sent a malformed frame", seen=error) from error
    if not 0 <= n < _MAX_FRAME:
        raise EngineError("the engine process sent a malformed frame", seen=f"{n} bytes")
    payload = stream.read(n) if n else b""
    return Frame(header, payload) if len(payload) == n else None


def error_header(error: NybbleError) -> dict[str, Any]:
    """The header that carries an error to the parent."""
    return {
        "error": type(error).__name__,
        "what": error.what,
        "seen": error.seen,
        "allowed": error.allowed,
        "hint": error.hint,
    }


class EngineProcess:
    """Starts `python -m MODULE` and asks it things, one request at a time.

    Args:
        module: the child's main module; it reads frames from stdin, answers on stdout.
        timeout: seconds without any frame after which the child counts as hung.
    """

    def __init__(self, module: str, *, timeout: float = 1800.0) -> None:
        self._timeout = timeout
        self._stderr = tempfile.TemporaryFile()
        self._where: dict[str, Any] = {}
        # A session of its own: Ctrl-C reaches the parent only, which then ends the child.
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            start_new_session=True,
        )
        self._frames: queue.Queue[Frame | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it can still be asked."""
        return self._process.poll() is None

    @property
    def where(self) -> dict[str, Any]:
        """The last step the child announced."""
        return self._where

    def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            while (frame := read_frame(self._process.stdout)) is not None:
                self._frames.put(frame)
        except (OSError, ValueError, EngineError):
            pass
        self._frames.put(None)

    def request(
        self,
        header: dict[str, Any],
        payload: bytes = b"",
        on_event: Callable[[dict[str, Any]], None] | None = None,
        timeout: float | None = None,
    ) -> Frame:
        """Send a request and wait for its answer, passing events on as they come.

        Raises:
            EngineCrashError: the child died, or was silent for too long and was ended.
            NybbleError: the child answered with an error.
        """
        self._where = {"op": header.get("op")}
        assert self._process.stdin is not None
        try:
            write_frame(self._process.stdin, Frame(header, payload))
        except OSError:
            raise self._crash() from None
        while True:
            try:
                frame = self._frames.get(timeout=timeout or self._timeout)
            except queue.Empty:
                self.kill()
                raise EngineCrashError(
                    "the engine process hung and was ended",
                    where=self._where,
                    seen=f"no sign of life for {timeout or self._timeout:.0f} s",
                    hint="--timeout SECONDS if the model is only slow",
                ) from None
            if frame is None:
                raise self._crash()
            if "event" in frame.header:
                self._where = {**self._where, **frame.header}
                if on_event:
                    on_event(frame.header)
                continue
            if "error" in frame.header:
                kind = _KINDS.get(str(frame.header["error"]), NybbleError)
                detail = {k: frame.header[k] for k in ("seen", "allowed", "hint")}
                raise kind(str(frame.header["what"]), **detail)
            return frame

    def _crash(self) -> EngineCrashError:
        try:
            code = self._process.wait(timeout=_GRACE)
        except subprocess.TimeoutExpired:
            self.kill()
            what = "the engine process sent a malformed frame and was ended"
            return EngineCrashError(what, where=self._where)
        self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, self._stderr.tell() - 4000))
        lines = self._stderr.read().decode("utf-8", "replace").strip().splitlines()
        tail = next((ln for ln in reversed(lines) if "ASSERT" in ln or "Error" in ln), "")
        tail = tail or (lines[-1] if lines else "")
        hint = "download the model again if it may be damaged; nybble doctor examines the engine"
        if code < 0:
            name = signal.Signals(-code).name
            what = f"the engine process was ended by {name}"
            if name == "SIGKILL":
                what += ", most often the kernel's answer to too little memory"
                hint = "fewer settings at once, a shorter --context, or --weights as-shipped"
        else:
            what = f"the engine process ended with code {code}"
        return EngineCrashError(what, where=self._where, seen=tail or None, hint=hint)

    def kill(self) -> None:
        """End the child at once."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End the child and free the pipes."""
        self.kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:
                    pass
        self._stderr.close()
