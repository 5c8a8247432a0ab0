"""How long prompts and answers are: one number, a range, or the skewed lengths of real traffic."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from nybble.errors import NybbleError

_ALLOWED = ("512", "128..1024", "lognormal:400,3000 (median, 95th percentile)")
_MOST = 10_000_000  # tokens; longer than any context there is
_P95 = NormalDist().inv_cdf(0.95)


@dataclass(frozen=True)
class Lengths:
    """A distribution over whole numbers of tokens.

    Attributes:
        kind: "fixed", "uniform" or "lognormal".
        low: the number, the shortest, or the median.
        high: the same number, the longest, or the 95th percentile; a lognormal length is cut at
            four times that, so that a run has a longest request.

    Raises:
        NybbleError: below 1, absurdly long, or in the wrong order.
    """

    kind: str
    low: int
    high: int

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.high <= _MOST:
            raise NybbleError(
                "a length is at least one token, the shorter one first",
                seen=str(self),
                allowed=_ALLOWED,
            )

    @classmethod
    def parse(cls, text: str, name: str = "a length") -> Lengths:
        """Read `512`, `128..1024` or `lognormal:P50,P95`.

        Raises:
            NybbleError: none of these.
        """
        kind, low, high = "fixed", text.strip(), text.strip()
        if low.startswith("lognormal:"):
            kind = "lognormal"
            low, _, high = low.removeprefix("lognormal:").partition(",")
        elif ".." in low:
            kind = "uniform"
            low, _, high = low.partition("..")
        try:
            ends = int(low), int(high)
        except ValueError as error:
            raise NybbleError(f"{name} is a number of tokens", seen=text,
                              allowed=_ALLOWED) from error  # fmt: skip
        return cls(kind, *ends)

    def __str__(self) -> str:
        if self.kind == "fixed":
            return str(self.low)
        dots = f"{self.low}..{self.high}"
        return dots if self.kind == "uniform" else f"lognormal:{self.low},{self.high}"

    @property
    def longest(self) -> int:
        """No draw is longer."""
        return min(4 * self.high, _MOST) if self.kind == "lognormal" else self.high

    def draw(self, rng: np.random.Generator) -> int:
        """One length."""
        if self.kind == "fixed":
            return self.low
        if self.kind == "uniform":
            return int(rng.integers(self.low, self.high + 1))
        sigma = math.log(self.high / self.low) / _P95
        drawn = math.exp(math.log(self.low) + sigma * rng.standard_normal())
        return min(self.longest, max(1, round(drawn)))
