"""Largest contexts and most users: searches over a memory model, which only ever grows."""

from __future__ import annotations

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
        driver: whether the driver's context takes a part of each card: it does on a GPU with
            memory of its own.
    """

    card_bytes: int
    cards: int = 1
    reserve: int = 0
    driver: bool = False

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
        load = replace(load, cards=self.budget.cards, card_bytes=self.budget.card_bytes or None)
        found = self.engine.memory(self.geometry, self.setting, load)
        driver = context_part(load)
        if not self.budget.driver or any(part.name == driver.name for part in found.parts):
            return found
        return replace(found, parts=(*found.parts, driver))

    def fits(self, load: Load) -> bool:
        """Whether this load fits."""
        return self.memory(load).total <= self.budget.total

    def largest_context(self, load: Load) -> int:
        """Tokens of each of `load.sequences` that fit, in steps of 256; 0 where none do."""

        def enough(steps: int) -> bool:
            context = min(steps * STEP, self.geometry.context_length)
            return self.fits(replace(load, context=context))

        steps = _last(enough, -(-self.geometry.context_length // STEP))
        return min(steps * STEP, self.geometry.context_length)

    def most_users(self, load: Load) -> int:
        """Sequences of `load.context` tokens that fit, up to 4,096."""
        return _last(lambda n: self.fits(replace(load, sequences=n)), MOST_USERS)


def _last(good: Callable[[int], bool], most: int) -> int:
    """The largest n in 1..most that is good, when all below it are; 0 for none."""
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        if good(middle):
            low = middle
        else:
            high = middle
    return low
