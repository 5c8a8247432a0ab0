"""What ownership and rent are reckoned with: a user's own values, else those of assumptions.py."""

from __future__ import annotations

from dataclasses import dataclass, fields

from nybble.planning import assumptions as a
from nybble.planning.assumptions import Assumption
from nybble.planning.interval import Interval, as_interval, positive, share

_DEFAULTS = {
    "electricity": a.ELECTRICITY,
    "pue": a.PUE,
    "life_years": a.LIFE,
    "interest": a.INTEREST,
    "resale": a.RESALE,
    "host_price": a.HOST_PRICE,
    "host_power": a.HOST_POWER,
    "load_power": a.LOAD_POWER,
    "idle_power": a.IDLE_SHARE,
    "hosting": a.HOSTING,
    "headroom": a.HEADROOM,
    "service": a.SERVICE,
}
_ABOVE_ZERO = ("life_years", "headroom", "load_power", "pue")
_SHARES = ("resale", "headroom", "load_power", "idle_power")


@dataclass(frozen=True)
class Terms:
    """Terms of owning and renting; None takes the assumption of the same name.

    Attributes:
        electricity: USD/kWh.
        pue: energy of the room for each of the machine, at least 1.
        life_years: years that hardware is used.
        interest: on the purchase, share a year.
        resale: share of the cards' price got back at the end.
        host_price: USD of the machine around the cards, for each card.
        host_power: W of it, for each card, working or not.
        load_power: share of the cards' power limit drawn while they work.
        idle_power: share drawn idle, for cards whose own is not known.
        hosting: USD a month and replica.
        headroom: share of a replica's capacity that is planned for.
        service: on top of the rent, share of it.
        rent_all_day: whether rented cards are kept all month, not in busy hours only.

    Raises:
        NybbleError: a negative number, a share above 1, or 0 where that means nothing.
    """

    electricity: float | Interval | None = None
    pue: float | Interval | None = None
    life_years: float | Interval | None = None
    interest: float | Interval | None = None
    resale: float | Interval | None = None
    host_price: float | Interval | None = None
    host_power: float | Interval | None = None
    load_power: float | Interval | None = None
    idle_power: float | Interval | None = None
    hosting: float | Interval | None = None
    headroom: float | Interval | None = None
    service: float | Interval | None = None
    rent_all_day: bool = False

    def __post_init__(self) -> None:
        for name, default in _DEFAULTS.items():
            value = self.of(name)
            for end in (value.low, value.high):
                check = share if name in _SHARES else positive
                check(f"{name} ({default.name})", end, zero=name not in _ABOVE_ZERO)
        if self.of("pue").low < 1:
            positive("PUE less 1", self.of("pue").low - 1, zero=True)

    def of(self, name: str) -> Interval:
        """The value that counts: given, else assumed."""
        given: float | Interval | None = getattr(self, name)
        assumed = _DEFAULTS[name].value
        assert not isinstance(assumed, str)
        return as_interval(assumed if given is None else given)

    def assumptions(self, *names: str) -> tuple[Assumption, ...]:
        """What these stand for, to be shown with a result; all without names."""
        found = []
        for name in names or _DEFAULTS:
            default = _DEFAULTS[name]
            given: float | Interval | None = getattr(self, name)
            found.append(
                default if given is None else Assumption(default.name, given, default.unit, "given")
            )
        return tuple(found)


NAMES = tuple(f.name for f in fields(Terms) if f.name in _DEFAULTS)
