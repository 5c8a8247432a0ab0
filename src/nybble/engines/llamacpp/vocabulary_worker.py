"""The child that reads a GGUF's vocabulary: `python -m nybble.engines.llamacpp.vocabulary_worker`.

llama.cpp aborts the process on a vocabulary it cannot stand; then it is this one.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import IO

import numpy as np

from nybble.engines.child import Frame
from nybble.engines.llamacpp.model import Model
from nybble.engines.worker import BaseWorker, serve


class VocabularyWorker(BaseWorker):
    """State of the child: one model without weights."""

    def __init__(self, out: IO[bytes]) -> None:
        super().__init__(out)
        self._model: Model | None = None

    def do_open(self, request: Frame) -> Frame:
        """Read the vocabulary; the payload is every token's piece, behind their lengths (<i4)."""
        model = self._model = Model(Path(request.header["path"]), no_alloc=True)
        pieces = model.pieces()
        header = {
            "vocabulary": asdict(model.vocabulary),
            "context_length": model.context_length,
            "ends": model.ends(),
        }
        lengths = np.array([len(piece) for piece in pieces], dtype="<i4")
        return Frame(header, lengths.tobytes() + b"".join(pieces))

    def do_tokenize(self, request: Frame) -> Frame:
        """Token ids (<i4) of the payload's text."""
        assert self._model is not None
        text = request.payload.decode("utf-8")
        ids = self._model.tokenize(text, special=request.header["special"])
        return Frame({}, ids.astype("<i4").tobytes())


if __name__ == "__main__":
    serve(VocabularyWorker)
