"""Where it hurts: what one layer's (or KV head's) K or V alone costs, everything else in f16."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nybble.report import format as fmt
from nybble.report import view
from nybble.results.records import Estimate, Measurement, Part, Row

if TYPE_CHECKING:
    from rich.table import Table

WORST = 8  # parts that the terminal lists
TITLE = "Where it hurts"
EXPLAINED = "Each part is stored as in the setting, everything else in f16."
_ADD_UP = 1.25  # sum and whole that differ by less than this factor "roughly add up"


@dataclass(frozen=True)
class Split:
    """One setting taken apart, on one model at one context.

    Attributes:
        of: the setting.
        title: what sets it apart from the same setting elsewhere; empty when it is alone.
        rows: parts with numbers, by layer, head and side.
        failed: parts without.
        whole: mean KLD of the setting as a whole, when it was measured.
        floor: mean KLD of the noise floor.
    """

    of: str
    title: str
    rows: tuple[Row, ...]
    failed: tuple[Row, ...]
    whole: Estimate | None
    floor: Estimate | None

    @property
    def by_head(self) -> bool:
        """Whether the parts are KV heads."""
        return any(part(r).head is not None for r in self.rows)

    @property
    def total(self) -> float:
        """Sum of the parts' mean KLD."""
        return sum(kld(r) for r in self.rows)

    def share(self, row: Row) -> float | None:
        """A part's share of the sum."""
        return kld(row) / self.total if self.total > 0 else None

    def worst(self, n: int = WORST) -> list[Row]:
        """The parts that cost most, the worst first."""
        return sorted(self.rows, key=kld, reverse=True)[:n]

    @property
    def name(self) -> str:
        """The setting, and where it was measured if there are several places."""
        return fmt.setting(self.of) + (f", {self.title}" if self.title else "")


def splits(m: Measurement) -> list[Split]:
    """Every setting that was taken apart, in the order of the measurement's groups."""
    found = []
    for group in view.groups(m):
        mine = [r for r in view.own(m, group.model, group.context) if r.part is not None]
        for of in dict.fromkeys(part(r).of for r in mine):
            rows = [r for r in mine if part(r).of == of]
            whole = next((r for r in group.done if r.setting == of), None)
            found.append(
                Split(
                    of,
                    group.title,
                    tuple(sorted((r for r in rows if "mean_kld" in r.metrics), key=_place)),
                    tuple(r for r in rows if "mean_kld" not in r.metrics),
                    whole.metrics["mean_kld"] if whole else None,
                    group.floor,
                )
            )
    return found


def part(row: Row) -> Part:
    """What a row of role "part" is about."""
    assert row.part is not None
    return row.part


def kld(row: Row) -> float:
    """Mean KLD of a part; below zero it is rounding."""
    return max(0.0, row.metrics["mean_kld"].value)


def where(row: Row) -> str:
    """`layer 3 K`, or `layer 3 head 1 K`."""
    found = part(row)
    head = "" if found.head is None else f" head {fmt.clean(found.head, 12)}"
    return f"layer {fmt.clean(found.layer, 12)}{head} {fmt.clean(found.side, 4)}"


def sentence(split: Split) -> str:
    """Where most of it comes from, and how far the parts add up to the whole."""
    if not split.rows:
        return f"Not one part of {split.name} could be measured."
    n = fmt.plural(len(split.rows), "part")
    words = ""
    if split.total > 0:
        first = split.worst(1)[0]
        words = f"{_capital(where(first))} alone is {fmt.percent(split.share(first))} of the sum"
        words += f"{_sides(split)}. "
    summed = f"The {n} sum to a mean KLD of {fmt.kld(split.total)}"
    whole = split.whole.value if split.whole else 0.0
    if whole > 0 and split.total > 0:
        ratio = split.total / whole
        if 1 / _ADD_UP <= ratio <= _ADD_UP:
            verdict = "errors roughly add up here"
        elif ratio < 1:
            verdict = "together they do more than one by one"
        else:
            verdict = "together they do less than one by one"
        words += f"{summed}, {ratio:.2f} times the {fmt.kld(whole)} of the whole: {verdict}."
    else:
        words += f"{summed}; the whole was not measured."
    if split.failed:
        words += f" {fmt.plural(len(split.failed), 'part')} failed and count nothing: "
        words += f"{where(split.failed[0])}: {view.short_error(split.failed[0])}."
    return words


def header(split: Split) -> tuple[str, ...]:
    """Column titles of a split's table."""
    head = ("head",) if split.by_head else ()
    span = " [low, high]" if any(fmt.interval(r.metrics["mean_kld"]) for r in split.rows) else ""
    return ("layer", *head, "side", f"mean KLD{span}", "of the sum", "same top ↑", "flips ↓")


def texts(split: Split, rows: list[Row] | None = None, gap: str = ", ") -> list[tuple[str, ...]]:
    """The table of these parts (all of them without), matching `header`."""
    return [
        (
            fmt.clean(part(row).layer, 12),
            *((fmt.clean(part(row).head, 12),) if split.by_head else ()),
            fmt.clean(part(row).side, 4),
            fmt.kld_with_interval(row.metrics["mean_kld"], gap),
            fmt.percent(split.share(row)),
            *(
                fmt.percent(row.metrics[n].value) if n in row.metrics else fmt.NONE
                for n in ("same_top", "flips")
            ),
        )
        for row in (split.rows if rows is None else rows)
    ]


def rich_parts(m: Measurement) -> list[Table]:
    """For a terminal, the worst parts of every setting that was taken apart; often none."""
    from rich.table import Table
    from rich.text import Text

    found = []
    for split in splits(m):
        rows = split.worst()
        count = f"the worst {len(rows)} of " if len(rows) < len(split.rows) else ""
        table = Table(
            box=None,
            padding=(0, 2, 0, 0),
            title=Text(
                f"{TITLE}: {split.name}, {count}{fmt.plural(len(split.rows), 'part')}",
                style="bold",
            ),
            title_justify="left",
            caption=Text(sentence(split), style="dim"),
            caption_justify="left",
            header_style="bold",
        )
        for name in header(split):
            table.add_column(name, justify="left" if name == "side" else "right", no_wrap=True)
        for cells in texts(split, rows, gap=","):
            table.add_row(*(Text(text) for text in cells))
        found.append(table)
    return found


def _sides(split: Split) -> str:
    """How K and V share the sum, where both were measured."""
    sums = {s: sum(kld(r) for r in split.rows if part(r).side == s) for s in ("K", "V")}
    if {part(r).side for r in split.rows} != set(sums):
        return ""
    side = max(sums, key=lambda s: sums[s])
    return f", all of {side} {fmt.percent(sums[side] / split.total)}"


def _place(row: Row) -> tuple[int, int, str]:
    found = part(row)
    return found.layer, -1 if found.head is None else found.head, found.side


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
