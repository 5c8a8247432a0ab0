"""Embedding by an OpenAI-compatible server: `http(s)://HOST/v1` and a model's name."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from nybble.errors import NybbleError
from nybble.rag.embed.base import Vectors, normalised
from nybble.rag.packages import need

_BATCH = 64
_SECONDS = 120.0


class ServedModel:
    """A model behind an address.

    Args:
        name: the address, up to and with /v1.
        model: as the server calls it.
        key: sent as bearer token; OPENAI_API_KEY where None.

    Raises:
        NybbleError: no model is named.
    """

    def __init__(self, name: str, model: str, key: str | None = None) -> None:
        if not model:
            raise NybbleError("an embedding server needs a model's name", seen=name,
                              hint=f"--embedding {name} --embedding-model NAME")  # fmt: skip
        self.name, self.model = name, model
        self._key = key or os.environ.get("OPENAI_API_KEY") or "none"
        self._client: Any = None

    @property
    def fingerprint(self) -> str:
        """Of the model's name: a server tells no more. The address may move."""
        return hashlib.sha256(f"served {self.model}".encode()).hexdigest()

    def tokenizer(self) -> Any:
        """MiniLM's: a server does not tell its own; chunks are of nearly the size asked."""
        from nybble.rag.embed.minilm import minilm

        return minilm().tokenizer()

    def passages(self, texts: Sequence[str]) -> Vectors:
        """Vectors of passages, asked for in batches.

        Raises:
            NybbleError: the server cannot be reached, refuses, or answers with something else.
        """
        rows = [self._ask(list(texts[at : at + _BATCH])) for at in range(0, len(texts), _BATCH)]
        return normalised(np.concatenate(rows))

    def query(self, text: str) -> Vectors:
        """The vector of a question."""
        found: Vectors = self.passages([text])[0]
        return found

    def _ask(self, texts: list[str]) -> Vectors:
        need("openai")
        import openai

        if self._client is None:
            self._client = openai.OpenAI(base_url=self.name, api_key=self._key, timeout=_SECONDS)
        try:
            answer = self._client.embeddings.create(model=self.model, input=texts,
                                                    encoding_format="float")  # fmt: skip
            ordered = sorted(answer.data, key=lambda d: d.index)
            rows = np.array([d.embedding for d in ordered], np.float32)
        except (openai.OpenAIError, TypeError, ValueError, AttributeError) as error:
            raise NybbleError(
                f"the embedding server failed: {str(error)[:200]}",
                seen=f"{self.model} at {self.name}",
                hint="check the address, the model's name and OPENAI_API_KEY",
            ) from error
        if rows.ndim != 2 or len(rows) != len(texts) or not np.isfinite(rows).all():
            raise NybbleError("the embedding server did not answer with one vector a text",
                              seen=f"{rows.shape} for {len(texts)} texts")  # fmt: skip
        return rows
