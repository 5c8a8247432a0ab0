"""What a load costs: owned, rented or from an API, a month and a million tokens.

Speeds and prices are intervals, and every result is one: its low end takes the fast, cheap end
of each, its high end the slow, dear one. The number of sequences that fit comes in as a number;
how it was found is not this module's business.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from nybble.errors import NybbleError
from nybble.planning.assumptions import DAYS_A_MONTH, HOURS_A_MONTH, ApiPrice, Assumption
from nybble.planning.cards import Card
from nybble.planning.interval import Interval, exact, positive, share
from nybble.planning.terms import Terms
from nybble.planning.throughput import Line

How = Literal["owned", "rented", "api"]
_MILLION = 1e6


@dataclass(frozen=True)
class LoadProfile:
    """What is asked of a service.

    Attributes:
        tokens_in: prompt tokens of a request.
        tokens_out: tokens of its answer.
        users: requests in work at once at the busiest.
        requests_per_hour: in a busy hour; None if users ask one request after the other.
        hours_per_day: busy hours of a day.
        utilisation: share of the busy hours in which those users have a request in work; for
            `requests_per_hour` None only.
        cached: share of the prompt tokens that are in the cache already and are not read again.
        context: longest request, tokens; None for tokens_in + tokens_out.

    Raises:
        NybbleError: zero, negative or no number where that means nothing, more than 24 hours, or
            a context shorter than a request.
    """

    tokens_in: float
    tokens_out: float
    users: int = 1
    requests_per_hour: float | None = None
    hours_per_day: float = 24.0
    utilisation: float = 1.0
    cached: float = 0.0
    context: int | None = None

    def __post_init__(self) -> None:
        positive("prompt tokens of a request", self.tokens_in, "tokens", zero=True)
        positive("answer tokens of a request", self.tokens_out, "tokens")
        positive("the number of users", self.users)
        positive("busy hours of a day", self.hours_per_day, "hours")
        share("utilisation", self.utilisation)
        share("the cached share of prompts", self.cached, zero=True)
        if self.requests_per_hour is not None:
            positive("requests an hour", self.requests_per_hour)
        if self.hours_per_day > 24:
            raise NybbleError("a day has 24 hours", seen=self.hours_per_day, allowed="up to 24")
        if self.context is not None and self.context < self.tokens_in + self.tokens_out:
            raise NybbleError(
                "a request is longer than the context",
                seen=f"{self.tokens_in:g} + {self.tokens_out:g} tokens in {self.context}",
                allowed=f"a context of at least {self.tokens_in + self.tokens_out:g}",
            )

    @property
    def busy_hours(self) -> float:
        """Busy hours of a month."""
        return self.hours_per_day * DAYS_A_MONTH


@dataclass(frozen=True)
class Option:
    """One way to serve: a card, how many of them, and what they hold and do.

    Attributes:
        name: for people.
        card: each of the cards.
        cards: of one replica.
        sequences: that one replica holds at once.
        decode: tokens/s of one replica with all of them, together.
        prefill: tokens/s of one replica; None where `decode` was measured under the load itself,
            the reading of the prompts included.
        setting: KV setting, for the tables.
        context: tokens of each sequence that `sequences` was counted for; None if not known.

    Raises:
        NybbleError: no card, no sequence, or a speed that is not above zero.
    """

    name: str
    card: Card
    cards: int
    sequences: int
    decode: Interval
    prefill: Interval | None
    setting: str = ""
    context: int | None = None

    def __post_init__(self) -> None:
        positive("cards of a replica", self.cards)
        positive("sequences that fit", self.sequences)
        for name, speed in (("decoding", self.decode), ("prefill", self.prefill)):
            if speed is None:
                continue
            positive(f"the speed of {name}", speed.low, "tokens/s")
            positive(f"the speed of {name}", speed.high, "tokens/s")

    def seconds(self, profile: LoadProfile) -> Interval:
        """Seconds of a replica's time that one request takes: its prompt, then its answer.

        A replica reads prompts and decodes in turn; each answer's share of a step with all
        sequences is 1 / decode seconds a token.
        """
        if self.prefill is None:
            out = profile.tokens_out
            return Interval(out / self.decode.high, out / self.decode.low)
        read = profile.tokens_in * (1 - profile.cached)
        return Interval(
            read / self.prefill.high + profile.tokens_out / self.decode.high,
            read / self.prefill.low + profile.tokens_out / self.decode.low,
        )


@dataclass(frozen=True)
class Cost:
    """What one option costs.

    Attributes:
        name: of the option.
        how: owned, rented or api.
        month: USD a month.
        per_million_out: USD for a million answer tokens, prompts included.
        per_million: USD for a million tokens, prompts and answers together.
        million_out: millions of answer tokens a month.
        replicas: how many are needed, fewest and most.
        cards: of all replicas.
        busy: share of the month in which they work.
        purchase: USD paid at the start.
        running: USD a month after that.
        most_million_out: millions of answer tokens a month that the replicas could give.
        lines: the arithmetic.
        assumptions: what it rests on.
    """

    name: str
    how: How
    month: Interval
    per_million_out: Interval
    per_million: Interval
    million_out: Interval
    replicas: tuple[int, int]
    cards: tuple[int, int]
    busy: Interval
    purchase: Interval
    running: Interval
    most_million_out: Interval
    lines: tuple[Line, ...]
    assumptions: tuple[Assumption, ...]


@dataclass(frozen=True)
class _End:
    """One end of the interval."""

    replicas: int
    requests: float  # a month
    busy: float
    most: float  # requests a month


def owned(option: Option, profile: LoadProfile, terms: Terms | None = None) -> Cost:
    """Own cards for a load.

    A month is (purchase, paid back over the life) + energy + hosting. Energy is
    cards * (busy share * power under load + the rest * idle power) plus the machine's, times PUE.

    Raises:
        NybbleError: the card's price or power is not known, or the sequences were counted for
            another context than the load's.
    """
    terms = terms or Terms()
    _fits(option, profile)
    card = option.card
    if card.price is None:
        raise NybbleError(
            "the card's price is not known",
            seen=card.name,
            allowed="USD of one card",
            hint="--price NUMBER",
        )
    if card.tdp_w is None:
        raise NybbleError(
            "the card's power under load is not known",
            seen=card.name,
            allowed="W of one card",
            hint="--power NUMBER",
        )
    ends = _ends(option, profile, terms)
    purchase, capital, energy, hosting = [], [], [], []
    for i, end in enumerate(ends):
        n = end.replicas * option.cards
        of = _picker(terms, i)
        price = (card.price.low, card.price.high)[i]
        purchase.append(n * (price + of("host_price")))
        # Life, resale and headroom help: their high ends belong to the cheap end.
        life, resale = _picker(terms, 1 - i)("life_years"), _picker(terms, 1 - i)("resale")
        capital.append(_paid_back(purchase[i], n * price * resale, of("interest"), life))
        idle = card.tdp_w * of("idle_power") if card.idle_w is None else card.idle_w
        load = max(card.tdp_w * of("load_power"), idle)
        watts = n * (end.busy * load + (1 - end.busy) * idle + of("host_power"))
        energy.append(watts / 1000 * HOURS_A_MONTH * of("pue") * of("electricity"))
        hosting.append(end.replicas * of("hosting"))
    # Equal ends may come out a rounding error apart, in either order.
    used_up = Interval(min(energy), max(energy))
    running = used_up + Interval(*hosting)
    month = Interval(*capital) + running
    lines = (
        _sized(option, profile, ends),
        Line("purchase", Interval(*purchase), "USD", "cards x (price + machine around it)"),
        Line("paid back", Interval(*capital), "USD/month", "(purchase - resale) over the life"),
        Line("energy", used_up, "USD/month", "W / 1000 x 730.5 h x PUE x USD/kWh"),
        Line("hosting", Interval(*hosting), "USD/month", "replicas x hosting"),
    )
    used = (
        Assumption("price", card.price, "USD a card", card.price_from or "given"),
        Assumption("power limit", card.tdp_w, "W a card", card.origin("tdp_w")),
        *_idle(card),
        *terms.assumptions(*(n for n in _OWNED if n != "idle_power" or card.idle_w is None)),
    )
    return _cost(option, "owned", profile, ends, month, Interval(*purchase), running, lines, used)


def rented(option: Option, profile: LoadProfile, terms: Terms | None = None) -> Cost:
    """Rented cards for a load: USD an hour x cards x hours, busy ones or all of the month.

    Raises:
        NybbleError: the card's rent is not known, or the sequences were counted for another
            context than the load's.
    """
    terms = terms or Terms()
    _fits(option, profile)
    rent = option.card.rent
    if rent is None:
        raise NybbleError(
            "the card's rent is not known",
            seen=option.card.name,
            allowed="USD an hour and card",
            hint="--rent NUMBER",
        )
    ends = _ends(option, profile, terms)
    hours = HOURS_A_MONTH if terms.rent_all_day else profile.busy_hours
    service = terms.of("service")
    month = Interval(
        rent.low * ends[0].replicas * option.cards * hours * (1 + service.low),
        rent.high * ends[1].replicas * option.cards * hours * (1 + service.high),
    )
    lines = (
        _sized(option, profile, ends),
        Line("rent", month, "USD/month", f"cards x {hours:,.4g} h x USD/h x (1 + service)"),
    )
    used = (
        Assumption("rent", rent, "USD an hour and card", option.card.rent_from or "given"),
        *terms.assumptions("headroom", "service"),
    )
    return _cost(option, "rented", profile, ends, month, exact(0.0), month, lines, used)


def api(price: ApiPrice, profile: LoadProfile) -> Cost:
    """The same load bought by the token; the requests an hour must be known.

    Raises:
        NybbleError: the load does not say how many requests there are, or a price is negative.
    """
    if profile.requests_per_hour is None:
        raise NybbleError(
            "an API is paid by the token, and the load does not say how many",
            seen="requests_per_hour is not given",
            allowed="requests an hour",
            hint="--requests-per-hour NUMBER",
        )
    for end in (price.usd_in, price.usd_out):
        positive("an API's price", end.low, "USD a million tokens", zero=True)
    requests = profile.requests_per_hour * profile.busy_hours
    each = price.usd_in.times(profile.tokens_in / _MILLION) + price.usd_out.times(
        profile.tokens_out / _MILLION
    )
    month = each.times(requests)
    million_out = requests * profile.tokens_out / _MILLION
    million = requests * (profile.tokens_in + profile.tokens_out) / _MILLION
    return Cost(
        name=price.name,
        how="api",
        month=month,
        per_million_out=month.times(1 / million_out),
        per_million=month.times(1 / million),
        million_out=exact(million_out),
        replicas=(0, 0),
        cards=(0, 0),
        busy=exact(0.0),
        purchase=exact(0.0),
        running=month,
        most_million_out=exact(math.inf),
        lines=(Line("tokens", month, "USD/month", "requests x (in x USD/in + out x USD/out)"),),
        assumptions=(
            Assumption("input", price.usd_in, "USD a million tokens", price.source),
            Assumption("output", price.usd_out, "USD a million tokens", price.source),
        ),
    )


_OWNED = (
    "electricity", "pue", "life_years", "interest", "resale", "host_price", "host_power",
    "load_power", "idle_power", "hosting", "headroom",
)  # fmt: skip


def _idle(card: Card) -> tuple[Assumption, ...]:
    if card.idle_w is None:
        return ()
    return (Assumption("idle power", card.idle_w, "W a card", card.origin("idle_w")),)


def _fits(option: Option, profile: LoadProfile) -> None:
    needed = profile.context or profile.tokens_in + profile.tokens_out
    if option.context is not None and option.context < needed:
        raise NybbleError(
            "the sequences that fit were counted for a shorter context than the load's",
            seen=f"{option.context} tokens, the load needs {needed:g}",
            allowed=f"an option counted for at least {needed:g} tokens",
        )


def _ends(option: Option, profile: LoadProfile, terms: Terms) -> tuple[_End, _End]:
    """Replicas, requests and busy share at the cheap and at the dear end."""
    seconds, headroom = option.seconds(profile), terms.of("headroom")
    found = []
    for each, planned in ((seconds.low, headroom.high), (seconds.high, headroom.low)):
        fit = math.ceil(profile.users / option.sequences)
        if profile.requests_per_hour is None:
            # As many requests as users and speed allow: full when every sequence is in use.
            used = profile.users / (fit * option.sequences) * profile.utilisation
            hourly, n = fit * 3600 / each * used, fit
        else:
            hourly = profile.requests_per_hour
            n = max(fit, math.ceil(hourly * each / 3600 / planned - 1e-9))
        requests = hourly * profile.busy_hours
        busy = min(requests * each / (n * HOURS_A_MONTH * 3600), 1.0)
        found.append(_End(n, requests, busy, n * planned * HOURS_A_MONTH * 3600 / each))
    return found[0], found[1]


def _cost(
    option: Option,
    how: How,
    profile: LoadProfile,
    ends: tuple[_End, _End],
    month: Interval,
    purchase: Interval,
    running: Interval,
    lines: Sequence[Line],
    used: Sequence[Assumption],
) -> Cost:
    outs = [end.requests * profile.tokens_out / _MILLION for end in ends]
    both = 1 + profile.tokens_in / profile.tokens_out
    most = [end.most * profile.tokens_out / _MILLION for end in ends]
    busy = [end.busy for end in ends]
    replicas = ends[0].replicas, ends[1].replicas
    return Cost(
        name=option.name,
        how=how,
        month=month,
        per_million_out=Interval(month.low / max(outs), month.high / min(outs)),
        per_million=Interval(month.low / max(outs) / both, month.high / min(outs) / both),
        million_out=Interval(min(outs), max(outs)),
        replicas=replicas,
        cards=(replicas[0] * option.cards, replicas[1] * option.cards),
        busy=Interval(min(busy), max(busy)),
        purchase=purchase,
        running=running,
        most_million_out=Interval(min(most), max(most)),
        lines=tuple(lines),
        assumptions=tuple(used),
    )


def _sized(option: Option, profile: LoadProfile, ends: tuple[_End, _End]) -> Line:
    seconds = option.seconds(profile)
    text = f"the more of {profile.users} users / {option.sequences} sequences"
    if profile.requests_per_hour is not None:
        text += (
            f" and {profile.requests_per_hour:g} requests/h x {seconds.low:,.3g} to "
            f"{seconds.high:,.3g} s / 3600 / headroom"
        )
    return Line("replicas", Interval(ends[0].replicas, ends[1].replicas), "", text)


def _paid_back(purchase: float, resale: float, interest: float, years: float) -> float:
    """USD a month that pay back a purchase: evenly, or as an annuity with interest."""
    months = 12 * years
    rate = interest / 12
    if rate < 1e-12:
        return (purchase - resale) / months
    shrunk = -months * math.log1p(rate)  # log of what a dollar at the end is worth today
    return (purchase - resale * math.exp(shrunk)) * rate / -math.expm1(shrunk)


class _picker:
    """The low or the high end of each term."""

    def __init__(self, terms: Terms, end: int) -> None:
        self._terms, self._end = terms, end

    def __call__(self, name: str) -> float:
        value = self._terms.of(name)
        return value.high if self._end else value.low
