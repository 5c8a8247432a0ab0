"""The child process that observes a GGUF: `python -m nybble.hardening.worker`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nybble.engines.child import Frame
from nybble.engines.llamacpp.model import Model
from nybble.engines.llamacpp.observe import observe
from nybble.engines.worker import BaseWorker, serve
from nybble.formats.energies import pack


class Worker(BaseWorker):
    """Loads a model for every request; llama.cpp's aborts end this process only."""

    def do_observe(self, request: Frame) -> Frame:
        """Energies over texts; the payload is their token ids, int32, one after the other."""
        h = request.header
        self.event(step="load", path=h["path"])
        ids = np.frombuffer(request.payload, dtype="<i4").astype(np.int32)
        texts = np.split(ids, np.cumsum(h["lengths"])[:-1]) if h["lengths"] else []
        model = Model(Path(h["path"]))
        self.event(step="observe")
        found = observe(model, texts, h["threads"], lambda n: self.event(step="read", done=n))
        return Frame(*pack(found))


if __name__ == "__main__":
    serve(Worker)
