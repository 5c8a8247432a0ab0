"""Break-even points worked by hand, and the order of options."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from nybble.errors import NybbleError
from nybble.planning.assumptions import ApiPrice
from nybble.planning.cards import Card
from nybble.planning.compare import against_api, against_rent, compare
from nybble.planning.cost import Cost, LoadProfile, Option, api, owned, rented
from nybble.planning.interval import Interval, exact
from nybble.planning.terms import Terms

CARD = Card("x", "nvidia", 2**34, tdp_w=300, idle_w=20, price=exact(1200.0), rent=exact(0.5))
OPTION = Option("x", CARD, 1, 4, exact(100.0), exact(1000.0))
LOAD = LoadProfile(1000, 200, users=4, requests_per_hour=300, hours_per_day=8)
TERMS = Terms(electricity=0.25, pue=1.2, life_years=4, resale=0, host_price=800, host_power=80,
              load_power=0.8, hosting=10, headroom=0.5, service=0)  # fmt: skip


def plain_cost(month: Interval, purchase: Interval, running: Interval, how: str = "owned") -> Cost:
    base = owned(OPTION, LOAD, TERMS)
    return replace(base, month=month, purchase=purchase, running=running, how=how)  # type: ignore[arg-type]


def test_months_against_rent() -> None:
    # 2,400 USD at once and 50 a month, against 150 a month: 24 months, half of a life of 4 years.
    own = plain_cost(exact(100.0), exact(2400.0), exact(50.0))
    rent = plain_cost(exact(150.0), exact(0.0), exact(150.0), "rented")
    found = against_rent(own, rent, TERMS)
    assert (found.months, found.within_life) == (exact(24.0), "yes")
    # Life is 3 years where nobody says otherwise.
    assert against_rent(own, replace(rent, month=exact(116.0)), TERMS).within_life == "yes"
    assert against_rent(own, replace(rent, month=exact(116.0))).within_life == "no"
    assert (found.of, found.against) == ("x", "x")


def test_months_are_an_interval() -> None:
    own = plain_cost(exact(0.0), Interval(1000, 3000), Interval(40, 60))
    rent = plain_cost(Interval(90, 140), exact(0.0), exact(0.0), "rented")
    # 1,000 / (140 - 40) to 3,000 / (90 - 60).
    assert against_rent(own, rent, TERMS).months == Interval(10, 100)
    assert against_rent(own, rent, TERMS).within_life == "unclear"
    assert against_rent(own, rent, replace(TERMS, life_years=Interval(0.5, 20))).within_life == (
        "unclear"
    )
    assert against_rent(own, rent, replace(TERMS, life_years=0.8)).within_life == "no"


def test_rent_that_is_cheaper_than_running_is_never_earned_back() -> None:
    own = plain_cost(exact(0.0), exact(1000.0), Interval(40, 60))
    for rent, months in ((exact(30.0), exact(math.inf)), (exact(40.0), exact(math.inf)),
                         (exact(50.0), Interval(100.0, math.inf))):  # fmt: skip
        found = against_rent(own, plain_cost(rent, exact(0.0), rent, "rented"), TERMS)
        assert found.months == months
        assert found.within_life == "no"


def test_the_break_even_month_really_is_one() -> None:
    own, rent = owned(OPTION, LOAD, TERMS), rented(OPTION, LOAD, TERMS)
    months = against_rent(own, rent, TERMS).months.low
    paid = own.purchase.low + months * own.running.low
    assert paid == pytest.approx(months * rent.month.low)


def test_volume_against_an_api() -> None:
    # A mix of 5 to 1: an answer token costs 5 x 0.10 + 0.50 = 1 USD a million; 100 USD a month.
    price = ApiPrice("m", exact(0.10), exact(0.50), "here")
    own = replace(plain_cost(exact(100.0), exact(0.0), exact(0.0)), most_million_out=exact(150.0))
    found = against_api(own, price, LOAD)
    assert found.million_out == exact(100.0)
    assert (found.of, found.against, found.reached) == ("x", "m", "yes")
    assert against_api(replace(own, most_million_out=exact(99.0)), price, LOAD).reached == "no"
    spread = replace(own, most_million_out=Interval(90, 150))
    assert against_api(spread, price, LOAD).reached == "unclear"
    wide = against_api(own, replace(price, usd_out=Interval(0.5, 1.5)), LOAD)
    assert wide.million_out == Interval(50.0, 100.0)
    free = replace(price, usd_in=exact(0.0), usd_out=exact(0.0))
    assert against_api(own, free, LOAD).million_out == exact(math.inf)
    assert against_api(own, free, LOAD).reached == "no"


def test_at_the_break_even_volume_both_cost_the_same() -> None:
    price = ApiPrice("m", exact(2.0), exact(6.0), "here")
    own = owned(OPTION, LOAD, TERMS)
    volume = against_api(own, price, LOAD).million_out
    requests = volume.low * 1e6 / LOAD.tokens_out
    load = replace(LOAD, requests_per_hour=requests / LOAD.busy_hours)
    assert api(price, load).month.low == pytest.approx(own.month.low)


def test_only_owned_cards_break_even() -> None:
    rent = rented(OPTION, LOAD, TERMS)
    price = ApiPrice("m", exact(1.0), exact(1.0), "here")
    for call in (lambda: against_rent(rent, rent), lambda: against_api(rent, price, LOAD)):
        with pytest.raises(NybbleError, match="owned cards") as caught:
            call()
        assert caught.value.seen == "x, rented"


def test_cheapest_first() -> None:
    dear = replace(OPTION, name="dear", card=replace(CARD, price=exact(9000.0), rent=None))
    only_rent = replace(OPTION, name="cloud", card=replace(CARD, price=None))
    no_power = replace(OPTION, name="no power", card=replace(CARD, tdp_w=None))
    price = ApiPrice("m", exact(0.1), exact(0.5), "here")
    found = compare([dear, OPTION, only_rent, no_power], LOAD, TERMS, [price])
    months = [c.month.middle for c in found]
    assert months == sorted(months)
    assert sorted((c.name, c.how) for c in found) == [
        ("cloud", "rented"), ("dear", "owned"), ("m", "api"), ("no power", "rented"),
        ("x", "owned"), ("x", "rented"),
    ]  # fmt: skip
    assert [c.how for c in found[:2]] == ["api", "owned"]


def test_nothing_to_compare() -> None:
    with pytest.raises(NybbleError, match="nothing to compare"):
        compare([], LOAD)
    bare = replace(OPTION, card=replace(CARD, price=None, rent=None))
    with pytest.raises(NybbleError, match="price is not known"):
        compare([OPTION, bare], LOAD, TERMS)
