"""Largest contexts and most users: searches over a memory model, which only ever grows."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

from nybble.formats.setting import KVSetting
from nybble.models.geometry import Geometry
from nybble.planning.memory.base import Load, Memory, MemoryModel
from nybble.planning.memory.cards import context_part

STEP = 256  # tokens; contexts are given in llama.cpp's and ExLlama's unit
MOST_USERS = 4096


@dataclass(frozen=True)
class Budget:
    """What the cards hold.

    Attributes:
        card_bytes: memory of one card.
        cards: how many.
        reserve: bytes of each card left free.
        vendor: of the cards.
        unified: whether their memory is the host's too; the driver's context takes a part of
            memory that is not.
    """

    card_bytes: int
    cards: int = 1
    reserve: int = 0
    vendor: str | None = None
    unified: bool = True

    @property
    def total(self) -> int:
        """Bytes that weights, cache and buffers may take on all cards."""
        return self.cards * max(0, self.card_bytes - self.reserve)


@dataclass(frozen=True)
class Solver:
    """One setting in one engine, on a budget.

    Attributes:
        engine: its memory model.
        geometry: of the model.
        setting: that `engine.check` has passed.
        budget: of the cards.
    """

    engine: MemoryModel
    geometry: Geometry
    setting: KVSetting
    budget: Budget

    def memory(self, load: Load) -> Memory:
        """What a load takes on these cards, the driver's context included."""
        of = self.budget
        load = replace(load, cards=of.cards, card_bytes=of.card_bytes if of.vendor else None,
                       vendor=of.vendor, unified=of.unified)  # fmt: skip
        found = self.engine.memory(self.geometry, self.setting, load)
        driver = context_part(load)
        if of.unified or any(part.name == driver.name for part in found.parts):
            return found
        return replace(found, parts=(*found.parts, driver))

    def fits(self, load: Load) -> bool:
        """Whether this load fits."""
        return self.memory(load).total <= self.budget.total

    def largest_context(self, load: Load) -> int:
        """Tokens of each of `load.sequences` that fit, in steps of 256; 0 where none do."""
        longest = self.geometry.context_length

        def size(steps: int) -> int:
            return self.memory(replace(load, context=min(steps * STEP, longest))).total

        return min(_last(size, self.budget.total, -(-longest // STEP)) * STEP, longest)

    def most_users(self, load: Load) -> int:
        """Sequences of `load.context` tokens that fit, up to 4,096."""

        def size(sequences: int) -> int:
            return self.memory(replace(load, sequences=sequences)).total

        return _last(size, self.budget.total, MOST_USERS)


def _last(size: Callable[[int], int], budget: int, most: int) -> int:
    """The largest n in 1..most whose size is within the budget; 0 for none.

    Sizes never fall and are nearly linear, so the straight line between the ends is tried first;
    every third step halves instead, which bounds the worst case.
    """
    low, high = (1, size(1)), (most, size(most))
    if low[1] > budget:
        return 0
    if high[1] <= budget:
        return most
    for i in itertools.count():
        (a, small), (b, large) = low, high
        if b - a <= 1:
            return a
        guess = (a + b) // 2 if i % 3 == 2 else a + (budget - small) * (b - a) // (large - small)
        guess = min(max(guess, a + 1), b - 1)
        found = guess, size(guess)
        if found[1] <= budget:
            low = found
        else:
            high = found
    raise AssertionError("an endless count ended")
