"""The request loop of an engine's child: reads frames from stdin, answers on stdout."""

from __future__ import annotations

import os
import sys
import threading
from typing import IO, Any

from nybble.engines.child import Frame, error_header, read_frame, write_frame
from nybble.errors import NybbleError


class BaseWorker:
    """Dispatches requests to its `do_` methods and tells the parent where the work is."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self._lock = threading.Lock()

    def event(self, **fields: Any) -> None:
        """Tell the parent where the work is; lanes call this from their own threads."""
        with self._lock:
            write_frame(self._out, Frame({"event": True, **fields}))

    def answer(self, request: Frame) -> Frame:
        """Dispatch one request to its `do_` method."""
        handler = getattr(self, f"do_{request.header['op']}")
        result: Frame = handler(request)
        return result


def serve(kind: type[BaseWorker]) -> None:
    """Answer requests until the parent closes the pipe or is killed."""
    # The engine may print to stdout; keep the frames on a descriptor of their own.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        worker = kind(out)
        while (request := read_frame(sys.stdin.buffer)) is not None:
            try:
                reply = worker.answer(request)
            except NybbleError as error:
                reply = Frame(error_header(error))
            except OSError as error:
                reply = Frame(
                    error_header(NybbleError("reading or writing failed", seen=str(error)))
                )
            write_frame(out, reply)
    except BrokenPipeError:  # the parent was killed; there is nobody to tell
        os._exit(1)
