"""What a plan says: plain records, as `nybble plan --json` prints them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from nybble.results.records import Estimate

PLAN_SCHEMA_VERSION = 1
Span = tuple[float, float]  # an estimate's low and high end


@dataclass(frozen=True)
class AssumptionRecord:
    """A number that an estimate rests on, and where it is from."""

    name: str
    value: str
    unit: str
    source: str


@dataclass(frozen=True)
class PartRecord:
    """One line of `--explain`: what it is for, bytes on all cards, and the arithmetic."""

    use: str
    name: str
    n_bytes: int
    formula: str
    estimated: bool


@dataclass(frozen=True)
class Quality:
    """What a KV setting cost where it was measured.

    Attributes:
        mean_kld: against the 16-bit cache of the same weights.
        same_top: share of positions with the same most likely token.
        verdict: safe, degraded, broken or unresolved.
        model: name of the model it was measured on.
        same_model: whether that is the planned one; else only its architecture is the same.
        context: tokens of context it was measured at.
        source: the run folder.
        simulated: whether the bytes were only simulated, never packed.
    """

    mean_kld: Estimate
    same_top: Estimate | None
    verdict: str
    model: str
    same_model: bool
    context: int
    source: str
    simulated: bool = False


@dataclass(frozen=True)
class Fit:
    """One KV setting in one engine.

    Attributes:
        engine: name.
        setting: KV setting.
        bits: stored bits an element, mean over the layers that grow.
        bytes_per_token: bytes one more token of one sequence adds once windows are full.
        largest_context: tokens of each sequence that fit; 0 where not even the least does; None
            without a card.
        limited_by: "card" or "model" (its own longest context), None without a card.
        memory: total bytes by context.
        users: sequences that fit by context; empty without a card.
        quality: as measured, or None.
        refused: why the engine does not run it; the other numbers are 0 then.
        notes: what a user should know.
        parts: the total at `explained` tokens taken apart.
        explained: context of `parts`.
        curve: total bytes by context, for a picture; empty where none was asked for.
        decode: tokens/s of one sequence by context: (slow, fast); empty where not known.
        prefill: tokens/s of reading a prompt of that many tokens, likewise.
    """

    engine: str
    setting: str
    bits: float = 0.0
    bytes_per_token: int = 0
    largest_context: int | None = None
    limited_by: str | None = None
    memory: dict[int, int] = field(default_factory=dict)
    users: dict[int, int] = field(default_factory=dict)
    quality: Quality | None = None
    refused: str | None = None
    notes: tuple[str, ...] = ()
    parts: tuple[PartRecord, ...] = ()
    explained: int = 0
    curve: dict[int, int] = field(default_factory=dict)
    decode: dict[int, Span] = field(default_factory=dict)
    prefill: dict[int, Span] = field(default_factory=dict)


@dataclass(frozen=True)
class CardRecord:
    """The cards a plan is for.

    Attributes:
        name: for people.
        count: how many.
        n_bytes: memory of one, in bytes.
        reserve: bytes of one that are left to the driver, the desktop and other programs.
    """

    name: str
    count: int
    n_bytes: int
    reserve: int


@dataclass(frozen=True)
class Choice:
    """The answer to `--context` and `--users`.

    Attributes:
        setting: the KV setting that fits with the least loss; None where none does.
        engine: where.
        why: one sentence.
        changes: what else would make it fit or fit better, cheapest first.
    """

    setting: str | None
    engine: str | None
    why: str
    changes: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """One plan.

    Attributes:
        model: name.
        architecture: of the model.
        weights_bytes: bytes of the weights, 0 where not known.
        weights_source: "tensors", "published", "config" or "unknown".
        context_length: the model's own longest context.
        card: None without one.
        sequences: sequences each row is planned for.
        contexts: contexts of the memory columns.
        fits: one for each engine and KV setting.
        choice: only with a context or a largest KLD asked for.
        about: how the model's geometry and size were resolved.
        notes: what a user should know.
        assumptions: what the estimates of speed rest on.
    """

    model: str
    architecture: str
    weights_bytes: int
    weights_source: str
    context_length: int
    card: CardRecord | None
    sequences: int
    contexts: tuple[int, ...]
    fits: tuple[Fit, ...]
    choice: Choice | None = None
    about: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    assumptions: tuple[AssumptionRecord, ...] = ()
    schema_version: int = PLAN_SCHEMA_VERSION

    @property
    def budget(self) -> int | None:
        """Bytes that weights, cache and buffers may take on all cards; None without a card."""
        if self.card is None:
            return None
        return self.card.count * max(0, self.card.n_bytes - self.card.reserve)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class CostRecord:
    """What serving a load costs one way. Spans are (low, high).

    Attributes:
        name: of the option, for people: cards and KV setting, or the API's model.
        how: owned, rented or api.
        setting: KV setting; "" for an API.
        context: tokens that each sequence has room for.
        sequences: that one replica holds at once; 0 for an API.
        month: USD a month.
        per_million_out: USD for a million answer tokens, prompts included.
        per_million: USD for a million tokens, prompts and answers together.
        million_out: millions of answer tokens a month.
        replicas: fewest and most that are needed; (0, 0) for an API.
        cards: of all replicas.
        busy: share of the month in which they work.
        purchase: USD paid at the start.
        quality: of the KV setting where it was measured, or None.
        lines: (name, span, unit, formula): the arithmetic.
        assumptions: what it rests on.
        refused: why this option cannot serve the load; the numbers are 0 then.
    """

    name: str
    how: str
    setting: str = ""
    context: int = 0
    sequences: int = 0
    month: Span = (0.0, 0.0)
    per_million_out: Span = (0.0, 0.0)
    per_million: Span = (0.0, 0.0)
    million_out: Span = (0.0, 0.0)
    replicas: tuple[int, int] = (0, 0)
    cards: tuple[int, int] = (0, 0)
    busy: Span = (0.0, 0.0)
    purchase: Span = (0.0, 0.0)
    quality: Quality | None = None
    lines: tuple[tuple[str, Span, str, str], ...] = ()
    assumptions: tuple[AssumptionRecord, ...] = ()
    refused: str | None = None


@dataclass(frozen=True)
class BreakEvenRecord:
    """From when or from which use on owning is cheaper.

    Attributes:
        of: name of what is owned.
        against: name of what it is compared with.
        unit: "months" against rented cards, "million answer tokens a month" against an API.
        value: (low, high); infinite where that never happens.
        reached: "yes", "no" or "unclear": within the cards' life, or within what they can give.
    """

    of: str
    against: str
    unit: str
    value: Span
    reached: str


@dataclass(frozen=True)
class CostComparison:
    """All ways to serve one load of one model.

    Attributes:
        model: name.
        load: (what, value) of the load, for people.
        costs: cheapest a month first, refused ones last.
        break_even: of every owned option against each rented one and each API.
        curve: the same load at other contexts, for a picture: one comparison's costs by context.
    """

    model: str
    load: tuple[tuple[str, str], ...]
    costs: tuple[CostRecord, ...]
    break_even: tuple[BreakEvenRecord, ...] = ()
    curve: dict[int, tuple[CostRecord, ...]] = field(default_factory=dict)
    schema_version: int = PLAN_SCHEMA_VERSION

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dataclasses.asdict(self)
