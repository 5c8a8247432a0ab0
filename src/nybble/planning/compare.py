"""Options side by side for one load, and where one overtakes the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nybble.errors import NybbleError
from nybble.planning.assumptions import ApiPrice
from nybble.planning.cost import Cost, LoadProfile, Option, api, owned, rented
from nybble.planning.interval import Interval
from nybble.planning.terms import Terms


@dataclass(frozen=True)
class BreakEven:
    """When owning has paid for itself.

    Attributes:
        of: name of what is owned.
        against: name of what it is compared with.
        months: until the purchase is earned back; infinite where that never happens.
        within_life: "yes", "no" or "unclear" where the interval spans the end of the life.
    """

    of: str
    against: str
    months: Interval
    within_life: str


@dataclass(frozen=True)
class BreakEvenVolume:
    """From which use on owning is cheaper than an API.

    Attributes:
        of: name of what is owned.
        against: name of the API's model.
        million_out: millions of answer tokens a month, at the load's mix of prompt and answer.
        reached: "yes", "no" or "unclear": whether the owned cards can give that many.
    """

    of: str
    against: str
    million_out: Interval
    reached: str


def compare(
    options: Sequence[Option],
    profile: LoadProfile,
    terms: Terms | None = None,
    apis: Sequence[ApiPrice] = (),
) -> tuple[Cost, ...]:
    """Every option at one load, cheapest a month first; equal quality is the caller's to see to.

    An option is owned where its card's price and power are known, and rented where its rent is.

    Raises:
        NybbleError: nothing to compare, or neither price nor rent of a card is known.
    """
    if not options and not apis:
        raise NybbleError("there is nothing to compare", allowed="at least one option")
    found = [api(price, profile) for price in apis]
    for option in options:
        ways = []
        if option.card.price is not None and option.card.tdp_w is not None:
            ways.append(owned(option, profile, terms))
        if option.card.rent is not None:
            ways.append(rented(option, profile, terms))
        # Neither known: the error that names the price.
        found += ways or [owned(option, profile, terms)]
    return tuple(sorted(found, key=lambda c: (c.month.middle, c.name, c.how)))


def against_rent(own: Cost, other: Cost, terms: Terms | None = None) -> BreakEven:
    """Months after which owning has cost less than renting: purchase / (rent - running cost)."""
    _must_be(own, "owned")
    life = (terms or Terms()).of("life_years")
    saved = other.month.low - own.running.high, other.month.high - own.running.low
    months = Interval(
        own.purchase.low / saved[1] if saved[1] > 0 else math.inf,
        own.purchase.high / saved[0] if saved[0] > 0 else math.inf,
    )
    within = _said(months.high <= 12 * life.low, months.low > 12 * life.high)
    return BreakEven(own.name, other.name, months, within)


def against_api(own: Cost, price: ApiPrice, profile: LoadProfile) -> BreakEvenVolume:
    """Answer tokens a month from which owning costs less: cost of a month / API's price of one.

    The month is the owned cards' at the planned load; what more tokens add in energy is left out.
    """
    _must_be(own, "owned")
    mix = profile.tokens_in / profile.tokens_out
    each = price.usd_in.times(mix) + price.usd_out
    volume = Interval(
        own.month.low / each.high if each.high else math.inf,
        own.month.high / each.low if each.low else math.inf,
    )
    most = own.most_million_out
    reached = _said(volume.high <= most.low, volume.low > most.high)
    return BreakEvenVolume(own.name, price.name, volume, reached)


def _said(yes: bool, no: bool) -> str:
    return "yes" if yes else "no" if no else "unclear"


def _must_be(cost: Cost, how: str) -> None:
    if cost.how != how:
        raise NybbleError(
            "the break-even point is that of owned cards",
            seen=f"{cost.name}, {cost.how}",
            allowed=f"a cost of owning ({how})",
        )
