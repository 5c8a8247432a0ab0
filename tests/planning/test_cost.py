"""Costs worked by hand: own cards, rented ones, an API."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nybble.errors import NybbleError
from nybble.planning.assumptions import API_PRICES, ApiPrice
from nybble.planning.cards import Card, card, change
from nybble.planning.cost import Cost, LoadProfile, Option, api, owned, rented
from nybble.planning.interval import Interval, exact
from nybble.planning.terms import Terms

CARD = Card(
    "x", "nvidia", 24 * 2**30, tdp_w=300, idle_w=20, price=exact(1200.0), rent=Interval(0.5, 1.0)
)
# 4 sequences at once, 100 tokens/s together; prompts at 1,000 tokens/s.
OPTION = Option("q4_0 on x", CARD, 1, 4, exact(100.0), exact(1000.0))
KNOWN = Terms(
    electricity=0.25, pue=1.2, life_years=4, interest=0, resale=0.25, host_price=800,
    host_power=80, load_power=0.8, hosting=10, headroom=0.5, service=0.1,
)  # fmt: skip
# A prompt of 1,000 tokens and an answer of 200: 1 s + 2 s of the replica's time.
LOAD = LoadProfile(1000, 200, users=4, requests_per_hour=300, hours_per_day=8)


def lines(cost: Cost) -> dict[str, Interval]:
    return {line.name: line.value for line in cost.lines}


def near(found: Interval, low: float, high: float | None = None) -> bool:
    ends = low, low if high is None else high
    return (found.low, found.high) == (pytest.approx(ends[0]), pytest.approx(ends[1]))


def test_owned_by_hand() -> None:
    cost = owned(OPTION, LOAD, KNOWN)
    # 300 requests/h x 3 s = 900 s of each busy hour; at a headroom of 0.5 one replica has 1,800.
    assert cost.replicas == cost.cards == (1, 1)
    assert near(cost.purchase, 2000)
    # (2,000 - 0.25 x 1,200) / 48 months.
    assert near(lines(cost)["paid back"], 1700 / 48)
    # Busy 8 h a day x 0.25: a twelfth of the month. Load 0.8 x 300 W, idle 20 W, machine 80 W:
    # (240 / 12 + 20 x 11 / 12 + 80) W x 730.5 h x 1.2 x 0.25 USD/kWh.
    assert near(cost.busy, 1 / 12)
    energy = (20 + 20 * 11 / 12 + 80) / 1000 * 730.5 * 1.2 * 0.25
    assert near(lines(cost)["energy"], energy)
    assert near(cost.running, energy + 10)
    assert near(cost.month, 1700 / 48 + energy + 10)
    # 300 x 8 x 30.4375 requests x 200 tokens.
    million = 300 * 8 * 30.4375 * 200 / 1e6
    assert near(cost.million_out, million)
    assert near(cost.per_million_out, cost.month.low / million)
    assert near(cost.per_million, cost.month.low / million / 6)
    # At a headroom of 0.5 all month, 3 s and 200 tokens a request.
    assert near(cost.most_million_out, 0.5 * 730.5 * 3600 / 3 * 200 / 1e6)


def test_electricity_alone() -> None:
    # A card that works all day draws 500 W for 730.5 h at 0.20 USD: 73.05 USD a month.
    full = Terms(electricity=0.2, pue=1, load_power=1, host_power=0, hosting=0)
    option = replace(OPTION, card=change(CARD, tdp_w=500))
    cost = owned(option, LoadProfile(0, 100, users=4), full)
    assert near(cost.busy, 1)
    assert near(cost.running, 73.05)
    # Idle all but never: 20 W.
    rare = owned(option, LoadProfile(0, 1e-6, users=4, requests_per_hour=1e-6), full)
    assert near(rare.running, 20 / 1000 * 730.5 * 0.2)
    # Idle power is 10 % of the limit where it is not known; a share of load below it is lifted.
    unknown = replace(option, card=replace(option.card, idle_w=None))
    idle = owned(
        unknown, LoadProfile(0, 1e-6, requests_per_hour=1e-6), replace(full, idle_power=0.1)
    )
    assert near(idle.running, 50 / 1000 * 730.5 * 0.2)
    assert any("idle" in x.name and x.given for x in idle.assumptions)
    assert next(x for x in cost.assumptions if x.name == "idle power").value == 20


def test_each_end_takes_its_own_terms() -> None:
    # 0.20 to 0.40 USD/kWh, a life of 5 to 2 years, 500 to 1,500 USD of machine.
    terms = replace(KNOWN, electricity=Interval(0.2, 0.4), life_years=Interval(2, 5), resale=0,
                    host_price=Interval(500, 1500))  # fmt: skip
    cost = owned(OPTION, LOAD, terms)
    energy = lines(owned(OPTION, LOAD, KNOWN))["energy"].low / 0.25
    assert near(lines(cost)["energy"], 0.2 * energy, 0.4 * energy)
    assert near(lines(cost)["paid back"], 1700 / 60, 2700 / 24)
    assert near(cost.purchase, 1700, 2700)


def test_working_draws_no_less_than_idling() -> None:
    # 5 % of 300 W are fewer than the 20 W of an idle card.
    low, none = (owned(OPTION, LOAD, replace(KNOWN, load_power=p)) for p in (0.05, 20 / 300))
    assert low.running == none.running


def test_ends_that_differ_by_rounding_alone() -> None:
    # Half of all places in use: as busy at 44 as at 190 tokens/s, but for the last digit.
    load = LoadProfile(1000, 200, users=2)
    energy = lines(owned(replace(OPTION, decode=Interval(44, 190)), load, KNOWN))["energy"]
    assert near(energy, (240 / 2 + 20 / 2 + 80) / 1000 * 730.5 * 1.2 * 0.25)


def test_interest_is_an_annuity() -> None:
    # 2,000 USD at 6 % over 4 years, nothing got back: 46.97 USD a month.
    terms = replace(KNOWN, interest=0.06, resale=0)
    assert near(lines(owned(OPTION, LOAD, terms))["paid back"], 46.97005)
    # 300 USD got back at the end are worth 300 / 1.005^48 today.
    back = replace(KNOWN, interest=0.06)
    worth = 46.97005 * (1 - 300 / 2000 / 1.005**48)
    found = lines(owned(OPTION, LOAD, back))["paid back"]
    assert found.low == pytest.approx(worth, rel=1e-6)
    # Next to no interest is none.
    least = replace(KNOWN, interest=1e-99)
    assert owned(OPTION, LOAD, least).month == owned(OPTION, LOAD, KNOWN).month


def test_users_decide_where_they_are_more() -> None:
    assert owned(OPTION, replace(LOAD, users=9), KNOWN).replicas == (3, 3)
    assert owned(replace(OPTION, cards=2), replace(LOAD, users=9), KNOWN).cards == (6, 6)
    # 1,800 requests/h x 3 s / 3,600 / 0.5 = 3 replicas, exactly.
    assert owned(OPTION, replace(LOAD, requests_per_hour=1800), KNOWN).replicas == (3, 3)
    assert owned(OPTION, replace(LOAD, requests_per_hour=1801), KNOWN).replicas == (4, 4)
    # 2,520 x 3 s / 3,600 / 0.7 is 3 too, and 3.0000000000000004 in floats.
    full = replace(KNOWN, headroom=0.7)
    assert owned(OPTION, replace(LOAD, requests_per_hour=2520), full).replicas == (3, 3)


def test_requests_follow_from_users() -> None:
    # 2 users of 4 places, in use 60 % of 8 h a day: 0.3 of the replica's 1,200 requests an hour.
    load = LoadProfile(1000, 200, users=2, hours_per_day=8, utilisation=0.6)
    cost = owned(OPTION, load, KNOWN)
    assert near(cost.million_out, 0.3 * 1200 * 8 * 30.4375 * 200 / 1e6)
    assert near(cost.busy, 0.3 / 3)


def test_cached_prompts_are_not_read_again() -> None:
    assert near(OPTION.seconds(LOAD), 3.0)
    assert near(OPTION.seconds(replace(LOAD, cached=0.75)), 2.25)
    assert near(replace(OPTION, decode=Interval(50, 100)).seconds(LOAD), 3.0, 5.0)


def test_rented_by_hand() -> None:
    # 8 h x 30.4375 days at 0.50 to 1.00 USD and 10 % on top.
    cost = rented(OPTION, LOAD, KNOWN)
    assert near(cost.month, 0.5 * 243.5 * 1.1, 1.0 * 243.5 * 1.1)
    assert cost.running == cost.month
    assert cost.purchase == exact(0.0)
    kept = rented(OPTION, LOAD, replace(KNOWN, rent_all_day=True))
    assert near(kept.month, 0.5 * 730.5 * 1.1, 730.5 * 1.1)
    assert near(rented(replace(OPTION, cards=3), LOAD, KNOWN).month, *(
        3 * end for end in (cost.month.low, cost.month.high)))  # fmt: skip


def test_api_by_hand() -> None:
    price = ApiPrice("m", exact(0.10), Interval(0.40, 0.50), "here")
    cost = api(price, LOAD)
    requests = 300 * 8 * 30.4375
    # 1,000 tokens at 0.10 and 200 at 0.40 to 0.50 USD a million.
    assert near(cost.month, requests * 180e-6, requests * 200e-6)
    assert near(cost.per_million_out, 0.9, 1.0)
    assert near(cost.per_million, 0.15, 1 / 6)
    assert cost.replicas == (0, 0)
    with pytest.raises(NybbleError, match="does not say how many") as caught:
        api(price, LoadProfile(1000, 200))
    assert caught.value.hint == "--requests-per-hour NUMBER"
    with pytest.raises(NybbleError, match="API's price"):
        api(replace(price, usd_in=Interval(-1, 1)), LOAD)
    assert near(api(replace(price, usd_in=exact(0.0), usd_out=exact(0.0)), LOAD).month, 0)
    assert api(API_PRICES["gemma-4-31b"], LOAD).assumptions[0].source


@pytest.mark.parametrize(
    "wrong",
    [{"tokens_in": -1}, {"tokens_out": 0}, {"tokens_out": -5}, {"users": 0}, {"users": -1},
     {"requests_per_hour": 0}, {"requests_per_hour": -3}, {"hours_per_day": 0},
     {"hours_per_day": 24.5}, {"hours_per_day": -1}, {"utilisation": 0}, {"utilisation": 1.1},
     {"cached": -0.1}, {"cached": 1.1}, {"context": 1199}, {"context": 0},
     {"tokens_in": math.nan}, {"users": math.inf}],
)  # fmt: skip
def test_wrong_loads_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(NybbleError) as caught:
        replace(LOAD, **wrong)
    assert caught.value.allowed


@pytest.mark.parametrize(
    "wrong",
    [{"cards": 0}, {"sequences": 0}, {"sequences": -1}, {"decode": Interval(0, 5)},
     {"prefill": Interval(-1, 5)}, {"decode": Interval(1, math.inf)}],
)  # fmt: skip
def test_wrong_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(NybbleError):
        replace(OPTION, **wrong)


def test_what_is_not_known_is_asked_for() -> None:
    for field, call, hint in (("price", owned, "--price"), ("tdp_w", owned, "--power"),
                              ("rent", rented, "--rent")):  # fmt: skip
        bare = replace(OPTION, card=replace(CARD, **{field: None}))
        with pytest.raises(NybbleError, match="not known") as caught:
            call(bare, LOAD)
        assert str(caught.value.hint).startswith(hint)


def test_sequences_of_another_context_are_refused() -> None:
    counted = replace(OPTION, context=4096)
    assert (
        owned(counted, replace(LOAD, context=4096), KNOWN).month == owned(OPTION, LOAD, KNOWN).month
    )
    for call in (owned, rented):
        with pytest.raises(NybbleError, match="shorter context"):
            call(counted, replace(LOAD, context=4097))


def spans(low: float, high: float) -> st.SearchStrategy[Interval]:
    ends = st.tuples(st.floats(low, high), st.floats(low, high))
    return ends.map(lambda p: Interval(min(p), max(p))) | st.floats(low, high).map(exact)


TERMS = st.builds(
    Terms, electricity=spans(0, 1), pue=spans(1, 2), life_years=spans(0.5, 10),
    interest=spans(0, 0.3), resale=spans(0, 1), host_price=spans(0, 5000),
    host_power=spans(0, 500), load_power=spans(0.1, 1), hosting=spans(0, 100),
    headroom=spans(0.1, 1), service=spans(0, 1),
)  # fmt: skip
LOADS = st.builds(
    LoadProfile, st.integers(0, 100_000), st.integers(1, 10_000), st.integers(1, 500),
    st.none() | st.floats(0.01, 5000), st.floats(0.1, 24), st.floats(0.01, 1), st.floats(0, 1),
)  # fmt: skip
OPTIONS = st.builds(
    Option, st.just("o"), st.sampled_from([CARD, replace(CARD, idle_w=None), card("h100-sxm")]),
    st.integers(1, 8), st.integers(1, 64), spans(1, 5000), spans(10, 50_000),
)  # fmt: skip


@settings(max_examples=150)
@given(OPTIONS, LOADS, TERMS)
def test_intervals_are_ordered_and_add_up(option: Option, load: LoadProfile, terms: Terms) -> None:
    for call in (owned, rented):
        cost = call(option, load, terms)  # an Interval with ends in the wrong order raises
        assert 0 <= cost.month.low
        assert 0 <= cost.busy.low <= cost.busy.high <= 1
        assert 1 <= cost.replicas[0] <= cost.replicas[1]
        assert cost.cards[1] == cost.replicas[1] * option.cards
        assert cost.replicas[0] * option.sequences >= load.users
        assert cost.per_million.high <= cost.per_million_out.high * (1 + 1e-9)
        if call is owned:
            parts = lines(cost)
            total = parts["paid back"] + parts["energy"] + parts["hosting"]
            assert near(cost.month, total.low, total.high)


@settings(max_examples=100)
@given(OPTIONS, LOADS, TERMS, st.floats(1, 3))
def test_more_costs_no_less(option: Option, load: LoadProfile, terms: Terms, more: float) -> None:
    here = owned(option, load, terms).month

    def no_cheaper(other: Interval) -> bool:
        return other.low >= here.low * (1 - 1e-9) and other.high >= here.high * (1 - 1e-9)

    price = option.card.price
    assert price is not None
    dear = change(option.card, price=price.times(more))
    assert no_cheaper(owned(replace(option, card=dear), load, terms).month)
    power = terms.of("electricity").times(more)
    assert no_cheaper(owned(option, load, replace(terms, electricity=power)).month)
    assert no_cheaper(owned(option, replace(load, users=load.users * 3), terms).month)
    if load.requests_per_hour is not None:
        busier = replace(load, requests_per_hour=load.requests_per_hour * more)
        assert no_cheaper(owned(option, busier, terms).month)
        slow = replace(option, decode=option.decode.times(1 / more))
        assert no_cheaper(owned(slow, load, terms).month)
