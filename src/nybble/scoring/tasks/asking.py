"""Ask every question of one context: the context is read once, then all goes on from it.

What a cache does with so many continuations at once is its engine's business (`Tree`); the order
of the work is the same for all, and so are the shapes of all batches: answers that have ended go
on unheard until the last one ends, since the sums of a matrix product depend on its shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from nybble.engines.llamacpp.branches import Part
from nybble.errors import EngineError
from nybble.scoring.tasks.frames import Asked, AskedQuery

Logits = npt.NDArray[np.float32]

STOP = "\n\n"  # ends an answer as an end token does


class Tree(Protocol):
    """One prompt and branches of it; engines.llamacpp.branches.Branches is one."""

    def prompt(self, tokens: Sequence[int]) -> Iterator[int]:
        """Read a prompt into an empty cache; yields tokens done."""

    def split(self, n: int) -> None:
        """Make n branches of the prompt."""

    def fork(self, branch: int, n: int) -> int:
        """Make n more branches, copies of one; returns the first."""

    def cut(self, n: int) -> None:
        """End the branches from number n on."""

    def go_on(self, parts: Sequence[Part]) -> list[Logits]:
        """Let branches read on; returns the logits wanted of each, [wanted, n_vocab]."""


@dataclass(frozen=True)
class Writing:
    """How ids become an answer's text, and where it ends.

    Attributes:
        text: the text of ids.
        ends: ids that end an answer.
    """

    text: Callable[[Sequence[int]], str]
    ends: frozenset[int]


@dataclass(frozen=True)
class Answered:
    """What one cache makes of one question.

    Attributes:
        logprobs: natural logarithm of each option's probability behind the lead, summed over its
            tokens.
        text: the model's own answer, greedy.
        tokens: of that answer, the end token not counted.
        ended: whether it ended by itself, with an end token or an empty line.
    """

    logprobs: tuple[float, ...]
    text: str
    tokens: int
    ended: bool


def ask(
    tree: Tree, asked: Asked, writing: Writing, on_done: Callable[[int], None]
) -> list[Answered]:
    """Read the context, weigh the options of every question, and let the model answer.

    Args:
        tree: empty or not; its prompt is replaced.
        asked: context and questions.
        writing: of the model.
        on_done: told tokens done since its last call.

    Raises:
        EngineError: the engine cannot, or gives logits that are not finite.
    """
    for done in tree.prompt(asked.context.tolist()):
        on_done(done)
    queries = asked.queries
    tree.split(len(queries))
    behind = tree.go_on([Part(i, q.stem) for i, q in enumerate(queries)])
    on_done(sum(len(q.stem) for q in queries))
    logprobs = []
    for i, query in enumerate(queries):
        logprobs.append(_weigh(tree, i, query, behind[i][-1], len(queries)))
        on_done(sum(map(len, query.options)))
    texts = _write(tree, queries, behind, writing, on_done)
    return [Answered(p, *t) for p, t in zip(logprobs, texts, strict=True)]


def _weigh(tree: Tree, branch: int, query: AskedQuery, behind: Logits, n: int) -> tuple[float, ...]:
    first = _log_softmax(behind)
    found = [first[o[0]] for o in query.options]
    longer = [i for i, o in enumerate(query.options) if len(o) > 1]
    if longer:
        start = tree.fork(branch, len(longer))
        parts = [
            Part(start + j, query.options[i][:-1], len(query.options[i]) - 1)
            for j, i in enumerate(longer)
        ]
        for i, logits in zip(longer, tree.go_on(parts), strict=True):
            for row, token in zip(logits, query.options[i][1:], strict=True):
                found[i] += _log_softmax(row)[token]
        tree.cut(n)
    if not all(map(math.isfinite, found)):
        raise EngineError("the engine's logits are not finite", seen=f"question {branch + 1}")
    return tuple(map(float, found))


def _log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    exact = logits.astype(np.float64)
    exact -= exact.max()
    out: npt.NDArray[np.float64] = exact - math.log(np.exp(exact).sum())
    return out


def _write(
    tree: Tree, queries: Sequence[AskedQuery], behind: list[Logits], writing: Writing,
    on_done: Callable[[int], None],
) -> list[tuple[str, int, bool]]:  # fmt: skip
    """Each question's greedy answer, its tokens, and whether it ended."""
    lagging = [i for i, q in enumerate(queries) if q.rest]
    if lagging:
        for i, logits in zip(
            lagging, tree.go_on([Part(i, queries[i].rest) for i in lagging]), strict=True
        ):
            behind[i] = logits
    tokens: list[list[int]] = [[] for _ in queries]
    texts = [""] * len(queries)
    ended = [False] * len(queries)
    most = max(q.most for q in queries)
    for step in range(most):
        following = [int(logits[-1].argmax()) for logits in behind]
        for i, token in enumerate(following):
            if ended[i] or step >= queries[i].most:
                continue
            if token in writing.ends:
                ended[i] = True
                continue
            tokens[i].append(token)
            texts[i] = writing.text(tokens[i])
            ended[i] = STOP in texts[i].lstrip()
        left = [not e and step + 1 < q.most for e, q in zip(ended, queries, strict=True)]
        if not any(left):
            break
        behind = tree.go_on([Part(i, [t]) for i, t in enumerate(following)])
        on_done(len(queries))
    return [(t, len(ids), e) for t, ids, e in zip(texts, tokens, ended, strict=True)]
