"""Before and after hardening: a pair of marks for each layer or kind of text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nybble.report import format as fmt
from nybble.report.charts import canvas
from nybble.report.charts.canvas import Picture, Theme
from nybble.results.records import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHIFT = 0.16  # how far the marks of a pair stand left and right of their tick
_NAME = 14  # characters of a name on the axis
_ROOM = 470.0  # points that the names below all axes of a line share
_SIZE = 5.0  # of a mark, points
_CROWD = 40  # pairs a line from which on marks are smaller
_WHO = ("before", "after", "promised by the formula")


@dataclass(frozen=True)
class Pair:
    """One layer or kind of text.

    Attributes:
        name: what it is.
        before: mean KLD of the original.
        after: mean KLD of the hardened model.
        promised: what the formula makes of `before`, or None.
    """

    name: str
    before: Estimate
    after: Estimate
    promised: float | None = None

    @property
    def factor(self) -> float | None:
        """How many times lower it is now."""
        return self.before.value / self.after.value if self.after.value > 0 else None


@dataclass(frozen=True)
class Panel:
    """Pairs on common axes; `title` tells them from the next panel's."""

    title: str
    pairs: tuple[Pair, ...]


def draw(panels: Sequence[Panel], of: str, theme: Theme) -> Picture | None:
    """Panels on one log scale, so that equal slopes are equal factors; two a line if names fit.

    Args:
        panels: those without pairs are left out.
        of: what a pair is about, for example "layer".
        theme: colours.

    Returns:
        None without any pair.
    """
    panels = [p for p in panels if p.pairs]
    if not panels:
        return None
    low, high = canvas.log_range([v for p in panels for pair in p.pairs for v in _values(pair)])
    columns = 2 if len(panels) > 1 and all(_fit(p, 2) for p in panels) else 1
    lines = -(-len(panels) // columns)
    figure = canvas.new_figure(0.75 + 2.0 * lines)
    picture = Picture(figure)
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
    flat = [axes for line in grid for axes in line]
    for spare in flat[len(panels) :]:
        spare.remove()
    for line in grid:
        line[0].set_ylabel("mean KLD, nats\n(log scale)")
    for axes, panel in zip(flat, panels, strict=False):
        canvas.dress(axes, theme)
        canvas.log_axis(axes, "y", low, high)
        _names(axes, panel, of, columns)
        if len(panels) > 1:
            canvas.title(axes, panel.title, theme)
        size = _SIZE if len(panel.pairs) * columns <= _CROWD else 0.6 * _SIZE
        for x, pair in enumerate(panel.pairs):
            _pair(picture, axes, x, pair, of, low, size, theme)
    promised = any(r.promised is not None for p in panels for r in p.pairs)
    _legend(grid[0][-1], promised, len(panels) > 1, theme)
    canvas.freeze(figure)
    _words(picture, panels, of)
    return picture


def _pair(
    picture: Picture,
    axes: Axes,
    x: int,
    pair: Pair,
    of: str,
    low: float,
    size: float,
    theme: Theme,
) -> None:
    who = (pair.before, pair.after)
    spots = [(x + s, max(e.value, low)) for s, e in zip((-_SHIFT, _SHIFT), who, strict=True)]
    axes.plot(*zip(*spots, strict=True), color=theme.muted, linewidth=1.0, alpha=0.7, zorder=3)
    if pair.promised is not None:
        (dash,) = axes.plot(
            [x + _SHIFT], [max(pair.promised, low)], "_", color=theme.fg, markersize=1.4 * size,
            markeredgewidth=1.1, zorder=4, clip_on=False,
        )  # fmt: skip
        picture.tip(dash, f"{_where(of, pair)}: {fmt.kld(pair.promised)} promised")
    for i, (spot, estimate) in enumerate(zip(spots, who, strict=True)):
        colour, marker = _look(i, theme)
        ends = [max(v, low) for v in _ends(estimate)]
        axes.plot([spot[0]] * 2, [min(ends), max(ends)], color=colour, linewidth=1.2, zorder=4)
        (mark,) = axes.plot(
            [spot[0]], [spot[1]], marker, color=colour, markersize=size, zorder=5, clip_on=False,
            markeredgecolor=theme.bg, markeredgewidth=0.4,
        )  # fmt: skip
        picture.tip(mark, f"{_where(of, pair)} {_WHO[i]}: {fmt.kld_with_interval(estimate)}")


def _look(i: int, theme: Theme) -> tuple[str, str]:
    return (theme.line(1), "s") if i == 0 else (theme.line(0), "o")


def _fit(panel: Panel, columns: int) -> bool:
    """Whether every name has its place below the axes."""
    return _wide(panel) * len(panel.pairs) <= _ROOM / columns


def _wide(panel: Panel) -> float:
    """Points that the longest name takes, with a gap."""
    return 6 + 4.6 * max(len(fmt.clean(r.name, _NAME)) for r in panel.pairs)


def _names(axes: Axes, panel: Panel, of: str, columns: int) -> None:
    """Of too many names, every second, third, ... is written."""
    n = len(panel.pairs)
    ticks = range(0, n, math.ceil(n * _wide(panel) * columns / _ROOM))
    axes.set_xlim(-0.6, n - 0.4)
    axes.set_xticks(list(ticks), [fmt.clean(panel.pairs[i].name, _NAME) for i in ticks])
    axes.set_xlabel(of)


def _legend(axes: Axes, promised: bool, titled: bool, theme: Theme) -> None:
    """Above the first line and its titles, to the right."""
    marks = []
    for i, name in enumerate(_WHO[: 3 if promised else 2]):
        colour, marker = _look(i, theme) if i < 2 else (theme.fg, "_")
        marks += axes.plot([], [], marker, color=colour, markersize=_SIZE, label=name)
    axes.legend(
        handles=marks, loc="lower right", bbox_to_anchor=(1.0, 1.12 if titled else 1.0), ncols=3,
        frameon=False, fontsize=canvas.SIZE, labelcolor=theme.fg, handletextpad=0.2,
        columnspacing=1.4, borderpad=0.2, borderaxespad=0.2,
    )  # fmt: skip


def _values(pair: Pair) -> list[float]:
    promised = [] if pair.promised is None else [pair.promised]
    return [*_ends(pair.before), *_ends(pair.after), *promised]


def _ends(estimate: Estimate) -> list[float]:
    return [v for v in (estimate.low, estimate.value, estimate.high) if v is not None]


def _where(of: str, pair: Pair) -> str:
    """`layer 3`, but `prose` alone: a kind of text says what it is."""
    name = fmt.clean(pair.name, 40)
    return f"{of} {name}" if name.isdigit() else name


def _words(picture: Picture, panels: Sequence[Panel], of: str) -> None:
    several = len(panels) > 1
    promised = any(r.promised is not None for p in panels for r in p.pairs)
    said = []
    for panel in panels:
        best = max(panel.pairs, key=lambda r: r.before.value)
        said.append(
            f"{panel.title}: most before in {_where(of, best)}, {fmt.kld(best.before.value)}, now "
            f"{fmt.kld(best.after.value)}"
        )
    picture.summary = f"Mean KLD before and after by {of}. " + "; ".join(said)
    picture.header = (
        *(("KV type",) if several else ()), of, "before", "after", "times lower",
        *(("promised",) if promised else ()),
    )  # fmt: skip
    picture.rows = [
        (
            *((panel.title,) if several else ()),
            fmt.clean(r.name, 40),
            fmt.kld_with_interval(r.before),
            fmt.kld_with_interval(r.after),
            fmt.times(r.factor),
            *((fmt.kld(r.promised),) if promised else ()),
        )
        for panel in panels
        for r in panel.pairs
    ]
