"""What turns texts into vectors."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]


class Embedder(Protocol):
    """An embedding model; light to make, loaded when first used.

    Attributes:
        name: as the user wrote it, and as the index keeps it.
        model: that a server is asked for; "" for local ones.
        fingerprint: equal for equal models, whatever they are called.
    """

    name: str
    model: str

    @property
    def fingerprint(self) -> str:
        """Equal for equal models."""

    def tokenizer(self) -> Any:
        """A `tokenizers.Tokenizer` that counts as the model does, or nearly."""

    def passages(self, texts: Sequence[str]) -> Vectors:
        """Vectors of length 1, one row a text."""

    def query(self, text: str) -> Vectors:
        """The vector of a question, of length 1."""


class Timed:
    """An embedding whose time is counted.

    Attributes:
        seconds: in the model so far, loading it included.
    """

    def __init__(self, model: Embedder) -> None:
        self.name, self.model = model.name, model.model
        self._inner, self.seconds = model, 0.0

    @property
    def fingerprint(self) -> str:
        """The inner one's."""
        return self._inner.fingerprint

    def tokenizer(self) -> Any:
        """The inner one's."""
        return self._inner.tokenizer()

    def passages(self, texts: Sequence[str]) -> Vectors:
        """The inner one's, timed."""
        begun = time.monotonic()
        try:
            return self._inner.passages(texts)
        finally:
            self.seconds += time.monotonic() - begun

    def query(self, text: str) -> Vectors:
        """The inner one's, timed."""
        begun = time.monotonic()
        try:
            return self._inner.query(text)
        finally:
            self.seconds += time.monotonic() - begun


def normalised(vectors: Vectors) -> Vectors:
    """Rows divided by their length; those of length 0 stay."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.ascontiguousarray(vectors / np.where(length == 0, 1, length), dtype=np.float32)
