"""Items of a task at a length, from a seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import lru_cache

from nybble.errors import NybbleError
from nybble.scoring.tasks.base import Item, Query, Room, Task
from nybble.scoring.tasks.haystack import TooShort

_FIRST_TRY = 4096  # tokens; long contexts are made once their questions' length is known
_TRIES = 8


def make_items(
    task: Task,
    length: int,
    count_items: int,
    n_queries: int,
    seed: int,
    count: Callable[[str], int],
) -> list[Item]:
    """Contexts with their questions; item i is the same however many are asked for.

    A chat template and a token that begins a text come on top of `length`.

    Args:
        task: of the registry.
        length: tokens of a context, its longest question, lead and longest answer, together.
        count_items: contexts.
        n_queries: most questions a context.
        seed: of all chance.
        count: tokens of a text, by the tokenizer of the model that is asked.

    Raises:
        NybbleError: the length is too short for the task, or no items or questions are asked for.
    """
    for what, value in (("items", count_items), ("questions", n_queries)):
        if value < 1:
            raise NybbleError(
                f"the number of {what} must be positive", seen=value, allowed="1, 2, ..."
            )
    # The finished context is counted where it is made and here: 128K tokens, twice for nothing.
    counted = lru_cache(maxsize=4)(count)
    return [_item(task, length, i, n_queries, seed, counted) for i in range(count_items)]


def _item(
    task: Task, length: int, index: int, n_queries: int, seed: int, count: Callable[[str], int]
) -> Item:
    def make(tokens: int) -> tuple[str, list[Query]]:
        rng = random.Random(f"{seed}/{task.name}/{length}/{index}")
        return task.make(rng, Room(tokens, count), n_queries)

    tokens, over = min(length, _FIRST_TRY), 0
    try:
        while True:
            try:
                _, queries = make(tokens)
                break
            except TooShort:
                if tokens == length:
                    raise
                tokens = min(length, 2 * tokens)
        over = around(queries, count)
        for _ in range(_TRIES):
            context, queries = make(length - over)
            if count(context) + (more := around(queries, count)) <= length:
                return Item(task.name, length, index, context, tuple(queries))
            over = max(over + 1, more)
    except TooShort as error:
        over = over or around(make(8 * error.least)[1], count)
        raise NybbleError(
            f"the length is too short for the task {task.name}",
            seen=f"{length:,} tokens",
            allowed=f"about {error.least + over:,} tokens or more",
            hint="ask for a longer context or fewer questions",
        ) from error
    raise NybbleError(f"no context of the task {task.name} fits", seen=f"{length:,} tokens")


def around(queries: Sequence[Query], count: Callable[[str], int]) -> int:
    """Most tokens that a question takes besides the context: itself, lead and answer."""
    return max(count(f"\n\n{q.text}\n\n{q.lead}") + q.most for q in queries)
