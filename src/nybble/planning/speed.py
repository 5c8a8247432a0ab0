"""Estimates of speed for the rows of a plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from nybble.errors import NybbleError
from nybble.formats.setting import KVSetting
from nybble.models.geometry import Geometry
from nybble.planning.assumptions import Assumption
from nybble.planning.calibration import Calibration
from nybble.planning.interval import Interval
from nybble.planning.memory.registry import known
from nybble.planning.request import PlanRequest
from nybble.planning.roofline import experts_of
from nybble.planning.seats import Seats
from nybble.planning.throughput import Speed, Split, decode, prefill
from nybble.results.plans import AssumptionRecord, Span

_Both = tuple[dict[int, Span], dict[int, Span]]


@dataclass
class Speeds:
    """Decoding and prefill of one model on some cards.

    Attributes:
        geometry: of the model.
        seats: the cards; None where nothing can be said.
        split: how cards share the model; None for each engine's own way.
        calibration: measured rates in place of the assumed ones.
        used: assumptions of all estimates made so far.
    """

    geometry: Geometry
    seats: Seats | None
    split: Split | None = None
    calibration: Calibration | None = None
    used: dict[str, Assumption] = field(default_factory=dict)

    @classmethod
    def of(cls, request: PlanRequest, geometry: Geometry, seats: Seats | None) -> Speeds:
        """For a request; measured rates are read where it names them."""
        calibration = None
        if request.calibration is not None:
            from nybble.planning.measured import load

            if seats is None or seats.card.vendor != "cpu":
                raise NybbleError(
                    "measured rates are those of this machine's CPU, which llama.cpp ran on",
                    seen=f"a plan for {seats.card.name if seats else 'no card'}",
                    allowed="--this-machine, where it has no GPU", hint="leave out --calibration",
                )  # fmt: skip
            calibration = load(request.calibration)
        split: Split | None = None
        if request.split is not None:
            split = "layer" if request.split == "layer" else "tensor"
        return cls(geometry, seats, split, calibration)

    def of_fit(
        self, engine: str, setting: KVSetting, contexts: Sequence[int], largest: int | None
    ) -> _Both:
        """Spans of tokens/s by context, decoding and prefill, for contexts that fit."""
        found: _Both = ({}, {})
        for context in contexts if largest else ():
            if largest and context > largest:
                continue
            for kind, spans in zip(("decode", "prefill"), found, strict=True):
                speed = self.speed(kind, engine, setting, context)
                if speed is not None:
                    spans[context] = (speed.tokens.low, speed.tokens.high)
        return found

    def speed(
        self, kind: str, engine: str, setting: KVSetting, context: int, sequences: int = 1
    ) -> Speed | None:
        """One estimate; None where a number it needs is not known, or nobody timed the engine."""
        if self.seats is None or self.geometry.weights is None or not known(engine).timed:
            return None
        budget, chosen = self.seats.budget, self.seats.card
        split, experts = self.split or known(engine).split, experts_of(self.geometry)
        try:
            if kind == "decode":
                made = decode(self.geometry, setting, chosen, context, sequences=sequences,
                              cards=budget.cards, split=split, experts=experts,
                              calibration=self.calibration)  # fmt: skip
            else:
                made = prefill(self.geometry, setting, chosen, context, cards=budget.cards,
                               split=split, experts=experts,
                               calibration=self.calibration)  # fmt: skip
        except NybbleError:  # the card's bandwidth or rate: its note in the plan says so
            return None
        self.used.update({a.name: a for a in made.assumptions})
        return made

    @property
    def assumptions(self) -> tuple[AssumptionRecord, ...]:
        """What the estimates made so far rest on."""
        return tuple(map(record, self.used.values()))


def record(assumption: Assumption) -> AssumptionRecord:
    """An assumption as a result carries it."""
    value = assumption.value
    if isinstance(value, Interval):
        text = f"{value.low:g}" + (f" to {value.high:g}" if value.high != value.low else "")
    else:
        text = value if isinstance(value, str) else f"{value:g}"
    return AssumptionRecord(assumption.name, text, assumption.unit, assumption.source)
