"""What a card has: memory, bandwidth, rates, power and prices, one line each in `cards.csv`.

A line's columns say where its numbers are from. What has no source is empty there and None here;
a plan that needs it asks the user. A new card is one new line.
"""

from __future__ import annotations

import csv
import functools
import re
from dataclasses import dataclass, replace
from importlib import resources

from nybble.errors import NybbleError, nearest
from nybble.planning.interval import Interval, as_interval, positive

_WORDS = re.compile(r"\b(nvidia|geforce|amd|radeon|instinct|intel|apple)\b|\((r|tm)\)")
_ENDINGS = re.compile(
    r"-(max-q-workstation-edition|workstation-edition|server-edition|graphics|oam)$"
)
_SIZE = r"(?P<memory>\d+(?:\.\d+)?)\s*(?P<unit>gib|gb|mib)"
_WHAT_IF = re.compile(
    _SIZE + r"\s*@\s*(?P<speed>\d+(?:\.\d+)?)\s*(?P<per>[gt])b(?:ps|/s)"
    r"(?:\s*@\s*(?P<rate>\d+(?:\.\d+)?)\s*tflops)?"
)
_UNITS = {"gib": 2**30, "gb": 10**9, "mib": 2**20}
WHAT_IF = "24GiB@936GBps or 24GiB@936GBps@71TFLOPS"


@dataclass(frozen=True)
class Card:
    """One card, or a machine whose memory is shared with its GPU.

    Attributes:
        name: the name users write, for example "rtx-3090".
        vendor: "nvidia", "amd", "intel", "apple", "cpu" or "what-if".
        memory_bytes: what the driver reports as the card's whole memory, which is less than what
            is printed on the box.
        bandwidth_gbs: of the memory, GB/s (10^9), the maker's number.
        fp16_tflops: matrix products of FP16 or BF16 with sums in FP32, dense, TFLOPS.
        int8_tops: the same in INT8, sums in INT32.
        fp8_tflops: the same in FP8; None where the card has none.
        fp4_tflops: the same in FP4; None where the card has none.
        tdp_w: the maker's power limit, W.
        idle_w: W with nothing to do, as the driver shows it.
        unified: whether the memory is the machine's own, shared with the CPU.
        link: how it talks to its neighbours.
        price: USD of one card.
        price_from: where and when the price was read.
        rent: USD an hour of one card, from low to high offers.
        rent_from: where and when the rent was read.
        memory_from: where `memory_bytes` is read from.
        source: where the rates are read from.
        note: what else to know.
        sm: NVIDIA compute capability times ten (developer.nvidia.com/cuda-gpus); None for others.
        given: names of the rates above that a user gave in place of `source`'s.
    """

    name: str
    vendor: str
    memory_bytes: int
    bandwidth_gbs: float | None = None
    fp16_tflops: float | None = None
    int8_tops: float | None = None
    fp8_tflops: float | None = None
    fp4_tflops: float | None = None
    tdp_w: float | None = None
    idle_w: float | None = None
    unified: bool = False
    link: str = ""
    price: Interval | None = None
    price_from: str = ""
    rent: Interval | None = None
    rent_from: str = ""
    memory_from: str = ""
    source: str = ""
    note: str = ""
    sm: int | None = None
    given: tuple[str, ...] = ()

    def origin(self, rate: str) -> str:
        """Where a rate, for example "bandwidth_gbs", is from."""
        return "given" if rate in self.given else self.source or "given"

    @property
    def memory_gib(self) -> float:
        """Memory in GiB (2^30 bytes)."""
        return self.memory_bytes / 2**30


@functools.cache
def cards() -> tuple[Card, ...]:
    """All known cards, in the order of `cards.csv`."""
    return tuple(card for card, _ in _lines())


def card(name: str) -> Card:
    """A card by its name, an alias, the driver's name for it, or as `24GiB@936GBps`.

    Args:
        name: for example "rtx-3090", "3090" or "NVIDIA GeForce RTX 3090"; or a card that does
            not exist: memory, bandwidth and, if wanted, dense FP16 TFLOPS.

    Raises:
        NybbleError: unknown; the nearest names are given.
    """
    if "@" in name:
        return _what_if(name)
    found = known(name)
    if found is None:
        close = nearest(plain(name), _names())
        raise NybbleError(
            "unknown card",
            seen=name,
            allowed=", ".join(c.name for c in cards()),
            hint=f"--gpu {_names()[close].name if close else WHAT_IF}",
        )
    return found


def known(name: str) -> Card | None:
    """The card of this name, alias or driver's name; None if there is none."""
    return _names().get(plain(name))


def change(
    card: Card,
    *,
    memory_gib: float | None = None,
    bandwidth_gbs: float | None = None,
    fp16_tflops: float | None = None,
    int8_tops: float | None = None,
    tdp_w: float | None = None,
    idle_w: float | None = None,
    price: float | Interval | None = None,
    rent: float | Interval | None = None,
) -> Card:
    """The card with the values a user gave in place of its own.

    Args:
        card: to start from.
        memory_gib: GiB (2^30 bytes).
        bandwidth_gbs: GB/s (10^9).
        fp16_tflops: dense TFLOPS of FP16 with FP32 sums.
        int8_tops: dense TOPS of INT8.
        tdp_w: W under load.
        idle_w: W without.
        price: USD a card.
        rent: USD an hour and card.

    Raises:
        NybbleError: a value that is not above zero (at least zero for `idle_w`).
    """
    if memory_gib is not None:
        size = round(positive("the card's memory", memory_gib, "GiB") * 2**30)
        card = replace(card, memory_bytes=size, memory_from="given")
    rates: dict[str, tuple[str, float | None, str]] = {
        "bandwidth_gbs": ("bandwidth", bandwidth_gbs, "GB/s"),
        "fp16_tflops": ("the FP16 rate", fp16_tflops, "TFLOPS"),
        "int8_tops": ("the INT8 rate", int8_tops, "TOPS"),
        "tdp_w": ("power under load", tdp_w, "W"),
        "idle_w": ("idle power", idle_w, "W"),
    }
    given = {
        field: positive(what, value, unit, zero=field == "idle_w")
        for field, (what, value, unit) in rates.items()
        if value is not None
    }
    if given:
        names = tuple(dict.fromkeys((*card.given, *given)))
        card = replace(card, given=names, **given)  # type: ignore[arg-type]
    if price is not None:
        card = replace(card, price=_money("the card's price", price), price_from="given")
    if rent is not None:
        card = replace(card, rent=_money("rent", rent), rent_from="given")
    return card


def plain(name: str) -> str:
    """`NVIDIA GeForce RTX 3090` as `rtx-3090`: no maker, lower case, hyphens."""
    words = _WORDS.sub(" ", re.sub(r"[-_]", " ", name.lower())).split()
    return _ENDINGS.sub("", "-".join(words))


def _money(name: str, value: float | Interval) -> Interval:
    found = as_interval(value)
    positive(name, found.low, "USD")
    positive(name, found.high, "USD")
    return found


def _what_if(text: str) -> Card:
    match = _WHAT_IF.fullmatch(text.strip().lower())
    if match is None:
        raise NybbleError(
            "a card that does not exist is written as memory@bandwidth",
            seen=text,
            allowed=WHAT_IF,
        )
    bare = Card(text.strip(), "what-if", 1, source="given", memory_from="given")
    speed = float(match["speed"]) * (1000 if match["per"] == "t" else 1)
    rate = match["rate"]
    return change(
        bare,
        memory_gib=float(match["memory"]) * _UNITS[match["unit"]] / 2**30,
        bandwidth_gbs=speed,
        fp16_tflops=None if rate is None else float(rate),
    )


@functools.cache
def _names() -> dict[str, Card]:
    return {plain(name): card for card, names in _lines() for name in names}


@functools.cache
def _lines() -> tuple[tuple[Card, tuple[str, ...]], ...]:
    text = resources.files("nybble.planning").joinpath("cards.csv").read_text(encoding="utf-8")
    found = []
    for row in csv.DictReader(text.splitlines()):
        made = Card(
            name=row["name"],
            vendor=row["vendor"],
            memory_bytes=int(row["memory_mib"]) * 2**20,
            bandwidth_gbs=_number(row["bandwidth_gbs"]),
            fp16_tflops=_number(row["fp16_tflops"]),
            int8_tops=_number(row["int8_tops"]),
            fp8_tflops=_number(row["fp8_tflops"]),
            fp4_tflops=_number(row["fp4_tflops"]),
            tdp_w=_number(row["tdp_w"]),
            idle_w=_number(row["idle_w"]),
            unified=bool(row["unified"]),
            link=row["link"],
            price=_range(row["price_low"], row["price_high"]),
            price_from=_dated(row["price_source"], row["price_date"]),
            rent=_range(row["rent_low"], row["rent_high"]),
            rent_from=_dated(row["rent_source"], row["rent_date"]),
            memory_from=row["memory_source"],
            source=row["source"],
            note=row["note"],
            sm=int(row["sm"]) if row["sm"] else None,
        )
        found.append((made, (row["name"], *filter(None, row["aliases"].split(";")))))
    return tuple(found)


def _number(cell: str) -> float | None:
    return float(cell) if cell else None


def _range(low: str, high: str) -> Interval | None:
    return Interval(float(low), float(high)) if low and high else None


def _dated(source: str, date: str) -> str:
    return f"{source}, {date}" if source and date else source
