"""What a long-context task is: a context that is long, and questions that have one answer.

Several questions are asked of one context, since reading it is what costs; the context is
therefore the unit that intervals resample. Everything is made from a seed, so that a run needs no
download and can be made again.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Query:
    """One question about a context.

    Attributes:
        text: the question, as it follows the context.
        lead: start of the answer, which the model goes on from, without a space at its end; base
            models need one, and it keeps chat models from small talk.
        answers: what a right answer has in it, all of them.
        options: continuations of `lead` to choose from, each with its leading space, the right one
            first, three or more wrong ones of the same kind after it; all different.
        depth: where in the context the answer lies, 0 (start) to 1 (end); the mean for several.
        most: tokens an answer may take.
        about: what `Task.right` needs besides, for example a JSON schema; plain data.
    """

    text: str
    lead: str
    answers: tuple[str, ...]
    options: tuple[str, ...]
    depth: float
    most: int = 32
    about: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Item:
    """A context and its questions.

    Attributes:
        task: name of the task.
        length: tokens asked for, of context and longest question with its answer together.
        index: number of the item within its task and length, from 0.
        context: the long text, instruction first.
        queries: at least one.
    """

    task: str
    length: int
    index: int
    context: str
    queries: tuple[Query, ...]


@dataclass(frozen=True)
class Room:
    """How much text there is room for.

    Attributes:
        tokens: most tokens of a context.
        count: tokens of a text, by the tokenizer of the model that is asked.
    """

    tokens: int
    count: Callable[[str], int]


class Task(Protocol):
    """A kind of question. One file each, a frozen dataclass, and a line in the registry.

    Attributes:
        name: as on the command line, in lower case with hyphens.
        title: in words, for tables.
        source: the published benchmark in whose manner it is, with its address.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def title(self) -> str: ...  # noqa: D102

    @property
    def source(self) -> str: ...  # noqa: D102

    def make(self, rng: random.Random, room: Room, n_queries: int) -> tuple[str, list[Query]]:
        """A context that fills the room, and up to `n_queries` questions spread over its depths.

        Args:
            rng: the only source of chance.
            room: what there is room for; the context fills at least 95 % of it.
            n_queries: most questions; some tasks have fewer.

        Raises:
            NybbleError: the room is too small for this task; says the least it takes.
        """

    def right(self, query: Query, text: str) -> bool:
        """Whether what a model wrote after `query.lead` answers the question."""

    def solve(self, context: str, query: Query) -> str:
        """The answer found by a script that reads `context`, `query.text` and `query.lead` only.

        It proves that the question can be answered: `right(query, solve(context, query))` holds
        for every item. It must not look at `answers`, `options` or `about`.
        """
