"""Token ids and text of a GGUF by llama.cpp itself, in a child process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from nybble.engines.child import EngineProcess
from nybble.engines.vocabulary import Vocabulary

WORKER = "nybble.engines.llamacpp.vocabulary_worker"


class GGUFTokenizer:
    """Text to token ids and back, as engines.transformers.tokenizer.Tokenizer offers the one.

    Args:
        path: a GGUF file, of which the metadata is read.
        timeout: seconds of silence after which the child counts as hung.

    Attributes:
        vocabulary: sizes and special ids.
        context_length: tokens the model was trained for.
        ends: ids that end an answer, as llama.cpp finds them.
        pieces: what each token adds to a text, as bytes of UTF-8; control tokens add nothing.

    Raises:
        EngineError: llama.cpp cannot read the file, or ended over it.
    """

    def __init__(self, path: Path, timeout: float = 600.0) -> None:
        self._child = EngineProcess(WORKER, timeout=timeout)
        try:
            reply = self._child.request({"op": "open", "path": str(path)})
        except BaseException:
            self._child.close()
            raise
        self.vocabulary = Vocabulary(**reply.header["vocabulary"])
        self.context_length = int(reply.header["context_length"])
        self.ends = frozenset(map(int, reply.header["ends"]))
        n = self.vocabulary.n_tokens
        stops = np.cumsum(np.frombuffer(reply.payload, dtype="<i4", count=n)) + 4 * n
        starts = [4 * n, *stops[:-1].tolist()]
        self.pieces = [reply.payload[a:b] for a, b in zip(starts, stops.tolist(), strict=True)]

    def tokenize(self, text: str, *, special: bool) -> npt.NDArray[np.int32]:
        """Token ids of `text`, without BOS.

        Args:
            text: any text.
            special: read control tokens written in the text (chat templates) as such.

        Raises:
            EngineError: llama.cpp cannot tokenize it.
        """
        reply = self._child.request({"op": "tokenize", "special": special}, text.encode("utf-8"))
        ids: npt.NDArray[np.int32] = np.frombuffer(reply.payload, dtype="<i4").astype(np.int32)
        return ids

    def close(self) -> None:
        """End the child."""
        self._child.close()
