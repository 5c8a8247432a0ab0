"""A cell in words: the same on every page, with its interval beside every value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nybble.report import format as fmt
from nybble.report.site import entries
from nybble.results.base.cell import Cell
from nybble.results.records import Estimate

NO_INTERVAL = "no interval"  # fewer than five documents


@dataclass(frozen=True)
class Number:
    """A value as a page shows it.

    Attributes:
        value: to sort by; None where there is none.
        text: as read.
        interval: `[low, high]`, or why there is none.
    """

    value: float | None
    text: str
    interval: str


@dataclass(frozen=True)
class Metric:
    """A metric with a column: its name, its title and how it is written."""

    name: str
    title: str
    write: Callable[[float | None], str]

    def of(self, cell: Cell) -> Number:
        """This metric of a cell."""
        found = number(cell.metrics.get(self.name), self.write)
        bound = cell.top_k and self.name.endswith("_kld") and found.value is not None
        return Number(found.value, f"≥ {found.text}", found.interval) if bound else found


METRICS = (
    Metric("mean_kld", "mean KLD", fmt.kld),
    Metric("p999_kld", "p99.9 KLD", fmt.kld),
    Metric("same_top", "same top", fmt.percent),
    Metric("flips", "flips", fmt.percent),
)
KLD = METRICS[0]


def number(found: Estimate | None, write: Callable[[float | None], str] = fmt.kld) -> Number:
    """An estimate as a page shows it."""
    if found is None:
        return Number(None, fmt.NONE, "")
    if found.low is None or found.high is None:
        return Number(found.value, write(found.value), "" if found.value == 0 else NO_INTERVAL)
    return Number(found.value, write(found.value), f"[{write(found.low)}, {write(found.high)}]")


def setting(cell: Cell) -> str:
    """A KV setting with its mark: * simulated, † a server's lower bound."""
    mark = {entries.SIMULATED: "\u00a0*", entries.BOUND: "\u00a0†"}.get(entries.kind(cell), "")
    return fmt.setting(cell.setting) + mark


def engine(cell: Cell) -> str:
    """Engine with its version."""
    return f"{fmt.clean(cell.engine, 40)} {fmt.clean(cell.engine_version, 40)}".rstrip()


def hardware(cell: Cell) -> str:
    """Processor, and the device of torch where there is one."""
    return " · ".join(fmt.clean(t, 60) for t in (cell.device, cell.cpu) if t) or fmt.NONE


def scoring(cell: Cell) -> str:
    """How a cell was scored, for a heading: what tells apart numbers that do not compare."""
    words = {
        entries.STORED: "packed cache",
        entries.SIMULATED: "simulated cache *",
        entries.BOUND: f"through a server, top {fmt.count(cell.top_k)} tokens †",
    }[entries.kind(cell)]
    parts = [fmt.clean(cell.engine, 40), words]
    parts += [f"read by {fmt.clean(cell.via, 20)}"] if cell.via else []
    parts += [f"{fmt.clean(cell.scored, 40)} weights"] if cell.scored else []
    return ", ".join(parts)
