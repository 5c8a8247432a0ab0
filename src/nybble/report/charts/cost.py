"""Cost against context: USD for a million answer tokens, owned, rented or from an API."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nybble.report import format as fmt
from nybble.report.charts import canvas, labels
from nybble.report.charts.canvas import Picture, Theme
from nybble.report.charts.plan_axes import context_axis, make_room, tokens
from nybble.results.plans import CostComparison, CostRecord, Span

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# How an option is paid for: dash of its line, and the word for it.
_HOW = {
    "owned": ("-", "solid"),
    "rented": ((0, (5, 2)), "dashed"),
    "api": ((0, (1.2, 1.6)), "dotted"),
}
_NOTE = "shaded from the low to the high estimate; the line is their geometric middle"
_MOST = 6  # with more options than this, the cheapest are named and the others dimmed
_DIM = 0.35  # opacity of what is not named


@dataclass(frozen=True)
class _Option:
    """One way to serve the load.

    Attributes:
        name: for people.
        how: owned, rented or api.
        points: context -> (low, middle, high) USD; None where it cannot serve the load.
    """

    name: str
    how: str
    points: dict[int, tuple[float, float, float] | None]

    @property
    def stretches(self) -> list[list[int]]:
        """Contexts without a gap between them."""
        found: list[list[int]] = [[]]
        for context in sorted(self.points):
            if self.points[context] is not None:
                found[-1].append(context)
            elif found[-1]:
                found.append([])
        return [s for s in found if s]

    def at(self, context: int) -> tuple[float, float, float]:
        """What is known there."""
        point = self.points[context]
        assert point is not None
        return point

    @property
    def last(self) -> int:
        """Longest context that it serves."""
        return self.stretches[-1][-1]

    @property
    def label(self) -> str:
        """Name and how, at the end of the line."""
        how = "API" if self.how == "api" else fmt.clean(self.how, 10)
        return f"{fmt.clean(self.name, 30)}, {how}"


def draw(found: CostComparison, theme: Theme) -> Picture | None:
    """One band a option, along the contexts of `found.curve`; None where none has numbers."""
    options = _options(found)
    if not options:
        return None
    known = _named(found, options)
    contexts = sorted(found.curve)
    ends = [v for o in options for p in o.points.values() if p for v in p]
    low, high = canvas.log_range(ends)
    low, high = low * 1.3, high / 1.3
    figure = canvas.new_figure(3.7)
    picture = Picture(figure)
    axes = figure.subplots()
    canvas.dress(axes, theme)
    canvas.log_axis(axes, "y", low, high)
    axes.yaxis.set_major_formatter(lambda value, _: _usd(value))
    margin = (contexts[-1] / contexts[0]) ** 0.015
    context_axis(axes, min(contexts[0] / margin, contexts[-1] / 2), contexts[-1] * margin * 1.01)
    axes.set_xlabel("tokens of context that each sequence has room for (log scale)")
    axes.set_ylabel("USD for a million answer tokens\n(log scale)")
    axes.set_title(
        fmt.clean(found.model, 52), fontsize=canvas.SIZE + 0.5, color=theme.fg, loc="left",
        fontweight="bold", pad=17,
    )  # fmt: skip
    axes.annotate(
        _NOTE, (0, 1), xycoords="axes fraction", xytext=(0, 6), textcoords="offset points",
        fontsize=canvas.SMALL, color=theme.muted,
    )  # fmt: skip
    canvas.freeze(figure)
    late = [o for o in known if o.last == contexts[-1]]
    make_room(axes, [o.label for o in late])
    names = list(dict.fromkeys(o.name for o in known))
    taken: list[labels.Box] = []
    for option in sorted(options, key=lambda o: o in known):  # named ones on top
        colour = theme.line(names.index(option.name)) if option in known else theme.muted
        taken += _band(picture, axes, option, colour, option in known, low)
    if late:
        labels.at_line_ends(
            axes,
            [(o.last, o.at(o.last)[1]) for o in late],
            [o.label for o in late],
            [theme.line(names.index(o.name)) for o in late],
            theme,
        )
    early = [o for o in known if o not in late]
    spots = [(float(o.last), o.at(o.last)[1]) for o in early]
    labels.beside_points(
        axes, spots, [o.label for o in early], [(y, y) for _, y in spots], theme, taken
    )
    _words(picture, found, options, known)
    return picture


def _options(found: CostComparison) -> list[_Option]:
    """Every option that has a number somewhere, cheapest a month at the planned load first."""
    contexts = sorted(found.curve)
    points: dict[tuple[str, str, str], dict[int, tuple[float, float, float] | None]] = {}
    records = [
        *((None, r) for r in found.costs),
        *((c, r) for c in contexts for r in found.curve[c]),
    ]
    for context, record in records:
        key = (record.name, record.how, record.setting)
        mine = points.setdefault(key, dict.fromkeys(contexts))
        if context is not None:
            mine[context] = _point(record)
    return [_Option(k[0], k[1], p) for k, p in points.items() if any(p.values())]


def _point(record: CostRecord) -> tuple[float, float, float] | None:
    """Low end, geometric middle and high end; None where a log axis cannot show them."""
    low, high = record.per_million_out
    if record.refused is not None or not (0 < low <= high < math.inf):
        return None
    return low, math.sqrt(low) * math.sqrt(high), high


def _named(found: CostComparison, options: Sequence[_Option]) -> list[_Option]:
    """All of a few; of many the cheapest of each kind, those cheapest anywhere, then in order."""
    if len(options) <= _MOST:
        return list(options)
    first = [
        next(o for o in options if o.how == how) for how in dict.fromkeys(o.how for o in options)
    ]
    for context in found.curve:
        there = [o for o in options if o.points[context]]
        first += [min(there, key=lambda o: o.at(context)[1])] if there else []
    keys = {id(o): o for o in [*first, *options]}
    chosen = {id(o) for o in list(keys.values())[:_MOST]}
    return [o for o in options if id(o) in chosen]


def _band(
    picture: Picture, axes: Axes, option: _Option, colour: str, named: bool, low: float
) -> list[labels.Box]:
    """Line, band and dots, with gaps; returns the pixels that they cover."""
    dash = _HOW.get(option.how, _HOW["owned"])[0]
    alpha, width = (1.0, 1.7) if named else (_DIM, 0.9)
    covered: list[labels.Box] = []
    for stretch in option.stretches:
        lows, middles, highs = zip(*(option.at(c) for c in stretch), strict=True)
        if named and len(stretch) > 1:
            axes.fill_between(stretch, lows, highs, color=colour, alpha=0.12, linewidth=0)
        elif named:
            axes.plot(stretch * 2, [lows[0], highs[0]], color=colour, linewidth=5, alpha=0.2,
                solid_capstyle="butt")  # fmt: skip
        axes.plot(
            stretch, middles, color=colour, linewidth=width, linestyle=dash, alpha=alpha,
            zorder=3 if named else 2,
        )  # fmt: skip
        covered += labels.along(axes, list(zip(stretch, middles, strict=True)))
        for context, middle in zip(stretch, middles, strict=True):
            (mark,) = axes.plot(
                [context], [middle], "o", color=colour, markersize=3.6 if named else 2.4,
                alpha=alpha, clip_on=False, zorder=4 if named else 2.5,
            )  # fmt: skip
            span = _span((option.at(context)[0], option.at(context)[2]))
            picture.tip(
                mark,
                f"{fmt.clean(option.name, 80)}, {fmt.clean(option.how, 10)}, at "
                f"{fmt.count(context)} tokens: USD {span} a million answer tokens",
            )
    return covered


def _usd(value: float) -> str:
    """Dollars with three significant digits: `0.42`, `12.5`, `1,230`."""
    return fmt.count(value) if value >= 100 else f"{value:.3g}"


def _span(span: Span) -> str:
    low, high = _usd(span[0]), _usd(span[1])
    return low if low == high else f"{low} to {high}"


def _words(
    picture: Picture, found: CostComparison, options: Sequence[_Option], known: Sequence[_Option]
) -> None:
    contexts = sorted(found.curve)
    picture.title = "Cost against context"
    dashes = [
        f"{_HOW[h][1]} {'from an API' if h == 'api' else h}"
        for h in _HOW
        if any(o.how == h for o in options)
    ]
    said = [
        "A million answer tokens, their prompts included.",
        "Shading is from the cheap, fast end of every assumption to the dear, slow one; the line "
        "is the geometric middle.",
        f"Lines are {', '.join(dashes)}." if len(dashes) > 1 else "",
        "A line ends where the load no longer fits."
        if any(p is None for o in options for p in o.points.values())
        else "",
        "Named are the cheapest options; the others are dimmed."
        if len(known) < len(options)
        else "",
    ]
    picture.caption = " ".join(s for s in said if s)
    ends = []
    for o in known:
        here = [c for s in o.stretches for c in s]
        parts = [
            f"{_span((o.at(c)[0], o.at(c)[2]))} at {tokens(c)}"
            for c in dict.fromkeys((here[0], here[-1]))
        ]
        ends.append(f"{fmt.clean(o.name, 80)}, {fmt.clean(o.how, 10)}: {', '.join(parts)}")
    picture.summary = (
        f"USD for a million answer tokens of {fmt.clean(found.model, 60)} by tokens of context: "
        + "; ".join(ends)
    )
    picture.header = ("option", "how", *(tokens(c) for c in contexts))
    picture.rows = [
        (
            fmt.clean(o.name, 80),
            fmt.clean(o.how, 10),
            *(_span((p[0], p[2])) if (p := o.points[c]) else fmt.NONE for c in contexts),
        )
        for o in options
    ]
