"""Terms of owning and renting: defaults, given values, and what is refused."""

from __future__ import annotations

import math

import pytest

from nybble.errors import NybbleError
from nybble.planning import assumptions as a
from nybble.planning.interval import Interval, exact
from nybble.planning.terms import NAMES, Terms


def test_defaults_are_the_assumptions() -> None:
    terms = Terms()
    assert terms.of("electricity") == Interval(0.146, 0.1872)
    assert terms.of("life_years") == exact(3.0)
    found = terms.assumptions()
    assert len(found) == len(NAMES) == 12
    assert a.ELECTRICITY in found
    assert not any(x.given for x in found)
    assert all(x.source for x in found)


def test_given_values_replace_them() -> None:
    terms = Terms(electricity=0.3, resale=Interval(0.1, 0.3), hosting=0)
    assert terms.of("electricity") == exact(0.3)
    assert terms.of("resale") == Interval(0.1, 0.3)
    assert terms.of("hosting") == exact(0)
    power, pue = terms.assumptions("electricity", "pue")
    assert (power.value, power.unit, power.source) == (0.3, "USD/kWh", "given")
    assert power.given
    assert pue == a.PUE


@pytest.mark.parametrize("name", NAMES)
def test_wrong_values_are_refused(name: str) -> None:
    for bad in (-0.1, math.nan, math.inf, Interval(-1, 1), Interval(1, math.inf)):
        with pytest.raises(NybbleError):
            Terms(**{name: bad})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [{"life_years": 0}, {"headroom": 0}, {"load_power": 0}, {"pue": 0}, {"pue": 0.99},
     {"pue": Interval(0.9, 1.2)}, {"resale": 1.2}, {"headroom": 70}, {"idle_power": 1.1},
     {"load_power": Interval(0.5, 1.5)}],
)  # fmt: skip
def test_values_without_meaning_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(NybbleError) as caught:
        Terms(**wrong)  # type: ignore[arg-type]
    assert caught.value.allowed


def test_zero_where_it_means_something() -> None:
    free = {"electricity", "interest", "resale", "host_price", "host_power", "idle_power",
            "hosting", "service"}  # fmt: skip
    assert Terms(**dict.fromkeys(free, 0.0)).of("interest") == exact(0.0)  # type: ignore[arg-type]
    assert Terms(pue=1, headroom=1, resale=1).of("pue") == exact(1)


def test_every_assumption_of_the_module_is_sound() -> None:
    found = [x for x in vars(a).values() if isinstance(x, a.Assumption)]
    assert len(found) >= 20
    assert len({x.name for x in found}) >= len(found) - 2  # "the same past", "for each card"
    for each in found:
        assert each.source
        assert not each.given
        if isinstance(each.value, Interval):
            assert 0 <= each.value.low < each.value.high
    assert a.HOURS_A_MONTH == 730.5
    assert math.isclose(a.DAYS_A_MONTH, 30.4375)
    for price in a.API_PRICES.values():
        assert 0 < price.usd_in.low <= price.usd_out.low
        assert "2026" in price.source
