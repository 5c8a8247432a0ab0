"""Several continuations of one prompt over one cache.

The prompt is decoded once, as sequence 0. A branch is a copy of it (llama_memory_seq_cp), which
shares its cells instead of taking cells of its own; all branches then go on side by side, each
token of theirs in a cell of its own. Cells that two sequences share are not reused by a sliding
window, so ending the branches leaves sequence 0 as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nybble.engines.llamacpp.model import Context
from nybble.errors import EngineError

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Part:
    """Tokens that one branch goes on with.

    Attributes:
        branch: 0-based.
        tokens: ids, at least one.
        wanted: how many of the last tokens' logits are returned, 1 to len(tokens).
    """

    branch: int
    tokens: Sequence[int]
    wanted: int = 1


class Branches:
    """A context made with `sequences` > 1, used as one prompt and its continuations.

    Args:
        context: of `Model.context(..., sequences=n)`; holds up to n - 1 branches.
        sequences: that n.
        rows: the `rows` it was made with; bounds the logits of one call.
    """

    def __init__(self, context: Context, sequences: int, rows: int) -> None:
        self._context = context
        self.most = sequences - 1
        self._rows = rows
        self._prompt = 0
        self._lengths: list[int] = []

    def prompt(self, tokens: Sequence[int]) -> Iterator[int]:
        """Empty the cache and decode a prompt as sequence 0; yields tokens done per call."""
        self._context.clear()
        self._lengths = []
        self._prompt = len(tokens)
        yield from self._context.prefill(tokens, 0)

    def split(self, n: int) -> None:
        """Make n branches of the prompt, in place of those there were."""
        if not 0 < n <= self.most:
            raise EngineError("too many branches", seen=n, allowed=f"1 to {self.most}")
        for branch in range(len(self._lengths)):
            self._context.forget(branch + 1)
        for branch in range(n):
            self._context.copy(0, branch + 1)
        self._lengths = [self._prompt] * n

    def fork(self, branch: int, n: int) -> int:
        """Make n more branches as copies of one.

        Returns:
            The first of them; the others follow.
        """
        first = len(self._lengths)
        if not 0 < n <= self.most - first:
            raise EngineError("too many branches", seen=first + n, allowed=f"up to {self.most}")
        for i in range(n):
            self._context.copy(branch + 1, first + i + 1)
        self._lengths += [self._lengths[branch]] * n
        return first

    def cut(self, n: int) -> None:
        """End the branches from number n on."""
        for branch in range(n, len(self._lengths)):
            self._context.forget(branch + 1)
        del self._lengths[n:]

    def go_on(self, parts: Sequence[Part]) -> list[Logits]:
        """Decode what the branches go on with, in as few calls as the buffers allow.

        Returns:
            For each part float32 [wanted, n_vocab], a copy.
        """
        found: list[list[Logits]] = [[] for _ in parts]
        batch: list[tuple[int, int, int, int]] = []  # part, token, position, whether logits
        rows = 0
        for i, part in enumerate(parts):
            start = self._lengths[part.branch]
            for j, token in enumerate(part.tokens):
                logits = j >= len(part.tokens) - part.wanted
                if len(batch) == self._context.ubatch or rows + logits > self._rows:
                    self._flush(batch, parts, found)
                    batch, rows = [], 0
                batch.append((i, int(token), start + j, int(logits)))
                rows += logits
            self._lengths[part.branch] += len(part.tokens)
        self._flush(batch, parts, found)
        return [np.stack(rows) for rows in found]

    def _flush(
        self,
        batch: Sequence[tuple[int, int, int, int]],
        parts: Sequence[Part],
        found: list[list[Logits]],
    ) -> None:
        if not batch:
            return
        self._context.decode(
            [(token, at, parts[i].branch + 1, bool(w)) for i, token, at, w in batch]
        )
        for place, (i, _, _, wanted) in enumerate(batch):
            if wanted:
                found[i].append(self._context.row(place).copy())
