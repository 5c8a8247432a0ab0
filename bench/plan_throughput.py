"""How many published speeds lie in the intervals that `nybble plan` gives for them.

Run: python bench/plan_throughput.py. Points are in published_speed.csv, with sources. `use` says
what a point was for: "set" was in view when the intervals of planning/assumptions.py were
chosen, "held out" was not, "old build" predates flash attention, "no" cannot be compared and
says why.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import save
from nybble.formats.setting import parse
from nybble.planning.cards import card
from nybble.planning.throughput import Speed, decode, prefill
from published_models import models

POINTS = Path(__file__).parent / "published_speed.csv"


@dataclass(frozen=True)
class Point:
    """A published speed and what the plan says of it."""

    row: dict[str, str]
    speed: Speed

    @property
    def measured(self) -> float:
        """Tokens/s."""
        return float(self.row["tokens_per_second"])

    @property
    def inside(self) -> bool:
        """Whether the interval holds it."""
        return self.measured in self.speed.tokens

    @property
    def side(self) -> str:
        """inside, or on which side the published speed lies."""
        low = self.measured < self.speed.tokens.low
        return "inside" if self.inside else "slower" if low else "faster"


def points() -> list[Point]:
    """All published speeds, each with its estimate."""
    known = models()
    found = []
    with POINTS.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            geometry, experts = known[row["model"]]
            given: dict[str, Any] = {"cards": int(row["cards"]), "split": row["split"]}
            where = geometry, parse(row["setting"]), card(row["card"])
            context, n = int(row["context"]), int(row["sequences"])
            if row["kind"] == "decode":
                speed = decode(*where, context, sequences=n, experts=experts, **given)
            else:
                speed = prefill(*where, n, depth=context, experts=experts, **given)
            found.append(Point(row, speed))
    return found


def coverage(found: list[Point], kind: str, use: str) -> dict[str, float]:
    """How many of the points lie inside, and how wide their intervals are (geometric mean)."""
    some = [p for p in found if p.row["kind"] == kind and p.row["use"] == use]
    width = 1.0
    for p in some:
        width *= (p.speed.tokens.high / p.speed.tokens.low) ** (1 / len(some))
    sides = [p.side for p in some]
    return {
        "points": len(some),
        "inside": sides.count("inside"),
        "slower": sides.count("slower"),
        "faster": sides.count("faster"),
        "high_over_low": round(width, 2),
    }


def main() -> None:
    """Compare, print and save."""
    found = points()
    table = {
        f"{kind}, {use}": coverage(found, kind, use)
        for kind in ("decode", "prefill")
        for use in ("set", "held out", "old build", "no")
        if any(p.row["kind"] == kind and p.row["use"] == use for p in found)
    }
    for name, row in table.items():
        print(f"{name:22} {row}")
    rows = [
        {
            **p.row,
            "low": round(p.speed.tokens.low, 2),
            "high": round(p.speed.tokens.high, 2),
            "bound": p.speed.bound,
            "published": p.side,
        }
        for p in found
    ]
    print(save("plan_throughput", {"coverage": table, "points": rows}))


if __name__ == "__main__":
    main()
