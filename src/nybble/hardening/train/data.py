"""The text of a training: which chunk is read in which step, and which are never trained on."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nybble.errors import NybbleError
from nybble.hardening.train.draws import Purpose, permutation

Tokens = npt.NDArray[np.int32]


@dataclass(frozen=True)
class TokenPool:
    """Chunks of token ids.

    Attributes:
        train: int32 [n, context].
        held_out: int32 [m, context], of documents of which no chunk is in `train`.
        sha256: of both, in hex.
    """

    train: Tokens
    held_out: Tokens
    sha256: str

    @property
    def context(self) -> int:
        """Tokens of a chunk."""
        return int(self.train.shape[1])

    @classmethod
    def split(cls, chunks: Tokens, documents: Sequence[str], held_out: int, seed: int) -> TokenPool:
        """Set whole documents aside, at random.

        They come from several documents where that leaves three quarters of the text to train on.
        Chunks of other documents that equal a held-out one are dropped.

        Args:
            chunks: token ids [n, context].
            documents: the document of every chunk.
            held_out: chunks to set aside.
            seed: of the choice.

        Raises:
            NybbleError: too little text.
        """
        sizes = Counter(documents)
        taken = _choose(sizes, held_out, seed)
        by_document: dict[str, list[int]] = {name: [] for name in taken}
        for i, name in enumerate(documents):
            if name in by_document:
                by_document[name].append(i)
        # The first chunk of every document before the second of any, as scoring takes them.
        turns = [(turn, i) for rows in by_document.values() for turn, i in enumerate(rows)]
        rows = [i for _, i in sorted(turns, key=lambda t: t[0])][:held_out]
        chunks = np.ascontiguousarray(chunks, dtype=np.int32)
        seen = {chunks[i].tobytes() for rows in by_document.values() for i in rows}
        kept = [i for i, name in enumerate(documents)
                if name not in by_document and chunks[i].tobytes() not in seen]  # fmt: skip
        if not kept or len(rows) < max(1, held_out):
            raise NybbleError(
                "too little text to train on and to test it on other documents",
                seen=f"{len(documents):,} chunks of {chunks.shape[-1]:,} tokens, "
                f"{len(sizes):,} documents",
                allowed=f"{4 * held_out:,} chunks or more of 2 documents or more, all different",
                hint="more --text, or a smaller --context",
            )
        return cls(chunks[kept], chunks[rows], _sha256(chunks[kept], chunks[rows]))

    def rows(self, seed: int, step: int, count: int) -> Tokens:
        """The chunks of one step, int32 [count, context].

        Steps read one endless line of epochs, each a new random order of all chunks.
        """
        n = len(self.train)
        places = np.arange(step * count, (step + 1) * count)
        epochs = places // n
        orders = {int(e): permutation(seed, Purpose.ROWS, int(e), n) for e in np.unique(epochs)}
        picked = [orders[int(e)][p] for e, p in zip(epochs, places % n, strict=True)]
        return self.train[picked]


def _choose(sizes: Counter[str], wanted: int, seed: int) -> list[str]:
    """Documents to hold out; at most a quarter of the text, unless a single one is more."""
    names = sorted(sizes)
    names = [names[i] for i in permutation(seed, Purpose.SPLIT, 0, len(names))]
    room = sizes.total() // 4
    small = [name for name in names if sizes[name] <= room]
    if not small:
        return [min(names, key=lambda name: sizes[name])] if names else []
    share = max(1, wanted // 4)  # of one document while others may still come
    taken: list[str] = []
    for name in small:
        if sum(min(sizes[t], share) for t in taken) >= wanted:
            break
        if sizes[name] <= room:
            taken.append(name)
            room -= sizes[name]
    return taken


def _sha256(*parts: Tokens) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(part.shape).encode())
        digest.update(part.astype("<i4").tobytes())
    return digest.hexdigest()
