"""A number that is only known to lie between two ends, as every estimate of a plan is."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from nybble.errors import NybbleError


@dataclass(frozen=True)
class Interval:
    """Two ends, low first; both may be the same.

    Attributes:
        low: the lower end.
        high: the upper end; infinite where there is none.

    Raises:
        NybbleError: the ends are in the wrong order, or one is not a number.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if math.isnan(self.low) or math.isnan(self.high) or self.low > self.high:
            raise NybbleError(
                "an interval is written from low to high",
                seen=f"{self.low} to {self.high}",
                allowed="two numbers, the lower one first",
            )

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __add__(self, other: Interval) -> Interval:
        return Interval(self.low + other.low, self.high + other.high)

    def times(self, factor: float) -> Interval:
        """Both ends times a factor of at least zero."""
        return Interval(self.low * factor, self.high * factor)

    @property
    def middle(self) -> float:
        """Mean of the ends; for sorting, never for showing alone."""
        return (self.low + self.high) / 2


def exact(value: float) -> Interval:
    """A number that is known."""
    return Interval(value, value)


def as_interval(value: float | Interval) -> Interval:
    """A number or an interval, as an interval."""
    return value if isinstance(value, Interval) else exact(value)


def around(values: Iterable[float], margin: float = 0.0) -> Interval:
    """The smallest interval that holds `values`, widened by the share `margin` at both ends."""
    found = list(values)
    return Interval(min(found) * (1 - margin), max(found) * (1 + margin))


def positive(name: str, value: float, unit: str = "", *, zero: bool = False) -> float:
    """Check a number that a user gave.

    Args:
        name: what it is, for the error.
        value: the number.
        unit: its unit, for the error.
        zero: whether 0 is allowed.

    Returns:
        `value`.

    Raises:
        NybbleError: not a number, infinite, negative, or 0 where that means nothing.
    """
    if not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        bad = True
    else:
        bad = value == 0 and not zero
    if bad:
        least = "of at least 0" if zero else "above 0"
        raise NybbleError(
            f"{name} must be a number {least}",
            seen=value,
            allowed=f"a finite number {least}" + (f", in {unit}" if unit else ""),
        )
    return value


def share(name: str, value: float, *, zero: bool = False) -> float:
    """Check a share: above 0 (or from 0 on with `zero`), at most 1.

    Raises:
        NybbleError: outside.
    """
    positive(name, value, zero=zero)
    if value > 1:
        raise NybbleError(
            f"{name} is a share of the whole",
            seen=value,
            allowed=f"from 0{'' if zero else ' (not included)'} to 1, for example 0.6 for 60 %",
        )
    return value
