"""How an engine allocates: one file per engine, each a `MemoryModel` that `registry.py` lists.

A memory model turns a geometry, a KV setting and a load into parts that add up, each with the
arithmetic behind it, so that any number a plan shows can be taken apart.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from nybble.formats.setting import KVSetting
from nybble.models.geometry import Geometry

Use = Literal["weights", "cache", "state", "scratch", "compute", "reserve"]


@dataclass(frozen=True)
class Load:
    """What is asked of an engine.

    Attributes:
        context: tokens of one sequence, prompt and answer.
        sequences: sequences held at once (slots, users); each as long as `context`.
        cards: cards that the model is split over, evenly.
        ubatch: tokens of one micro-batch of the prefill; None for the engine's default.
        card_bytes: memory of one card, for engines that set aside a share of it or choose their
            defaults by it; None where no card is chosen, which leaves such shares out.
        vendor: of the cards, for engines that work otherwise on another's; None as `card_bytes`.
        unified: whether the cards' memory is the host's too.
    """

    context: int
    sequences: int = 1
    cards: int = 1
    ubatch: int | None = None
    card_bytes: int | None = None
    vendor: str | None = None
    unified: bool = False


@dataclass(frozen=True)
class Part:
    """One line of `--explain`.

    Attributes:
        use: what it is for. "cache" grows with tokens or windows, "state" with sequences,
            "scratch" is a copy of cache that the engine makes while it computes, "compute" its
            buffers, "reserve" what it leaves free or the driver takes.
        name: for people, for example "K of 10 global layers".
        n_bytes: bytes on all cards together.
        formula: the arithmetic, with its numbers.
        estimated: whether it is a rule of thumb; False for bytes the engine allocates exactly.
    """

    use: Use
    name: str
    n_bytes: int
    formula: str
    estimated: bool = False


@dataclass(frozen=True)
class Memory:
    """What one setting takes at one load.

    Attributes:
        parts: what adds up to it.
        notes: what a user should know, for example that a type is not applied to some layers.
    """

    parts: tuple[Part, ...]
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Bytes on all cards together."""
        return sum(part.n_bytes for part in self.parts)

    def of(self, *uses: Use) -> int:
        """Bytes of the parts of these uses."""
        return sum(part.n_bytes for part in self.parts if part.use in uses)


class MemoryModel(ABC):
    """One engine's allocation.

    Attributes:
        engine: name, for example "llama.cpp".
        version: version whose source was read.
        source: where the rules are read from.
        settings: KV settings a plan lists by default, best quality first.
    """

    engine: str
    version: str
    source: str
    settings: tuple[str, ...]

    def listed(self, geometry: Geometry) -> tuple[str, ...]:
        """KV settings that a plan of this model lists by default; `settings` for most engines."""
        return self.settings

    @abstractmethod
    def check(self, geometry: Geometry, setting: KVSetting) -> None:
        """Refuse what the engine refuses.

        Raises:
            NybbleError: the model or the KV setting does not run there, and why.
        """

    @abstractmethod
    def memory(self, geometry: Geometry, setting: KVSetting, load: Load) -> Memory:
        """Bytes that `setting` takes at `load`; `check` has passed."""
