"""Grouped bars of mean KLD, used for K against V and for model against model."""

from __future__ import annotations

from dataclasses import dataclass

from nybble.report import format as fmt
from nybble.report.charts import canvas
from nybble.report.charts.canvas import Picture, Theme
from nybble.results.records import Estimate

_SPAN = 30  # beyond this ratio the short bars vanish on a linear axis


@dataclass(frozen=True)
class Bar:
    """One bar: its group on the y axis, its name within the group, its number."""

    group: str
    name: str
    estimate: Estimate


def draw(bars: list[Bar], theme: Theme) -> Picture:
    """Horizontal bars from zero; dots on a log axis where the values span more than 30 times.

    A bar's length means nothing on a log axis, hence the dots.
    """
    names = list(dict.fromkeys(b.name for b in bars))
    groups = list(dict.fromkeys(b.group for b in bars))
    values = [b.estimate.value for b in bars]
    ends = [e for b in bars for e in _ends(b.estimate)]
    log = min(values) > 0 and max(values) > _SPAN * min(values)
    per_group = {g: [b for b in bars if b.group == g] for g in groups}
    lines = len(bars) + 0.7 * (len(groups) - 1)
    figure = canvas.new_figure(0.75 + 0.24 * lines)
    picture = Picture(figure)
    axes = figure.subplots()
    canvas.dress(axes, theme)
    axes.grid(False, axis="y")
    axes.grid(True, axis="x", color=theme.grid, linewidth=0.7)
    axes.spines["bottom"].set_visible(False)
    low, high = canvas.log_range(ends)
    if log:
        canvas.log_axis(axes, "x", low, high)
    else:
        axes.set_xlim(0, max(ends) * 1.16 or 1.0)
        axes.xaxis.set_major_formatter(lambda value, _: fmt.tick(value))
    y, ticks = 0.0, []
    axes.set_xlabel("mean KLD, nats" + (" (log scale)" if log else ""))
    spots = []
    for group in groups:
        for bar in per_group[group]:
            ticks.append((y, f"{fmt.label(group)}  {fmt.clean(bar.name, 14)}"))
            spots.append((y, bar))
            y += 1
        y += 0.7
    axes.set_ylim(y - 0.7 - 0.4, -0.6)
    axes.set_yticks([t for t, _ in ticks], [t for _, t in ticks])
    axes.tick_params(axis="y", labelcolor=theme.fg, labelsize=canvas.SIZE)
    axes.tick_params(axis="x", which="major", length=0)
    for y, bar in spots:
        colour = theme.line(names.index(bar.name))
        value = bar.estimate.value
        if log:
            (mark,) = axes.plot([value], [y], "o", color=colour, markersize=6.5, zorder=4)
            picture.tip(mark, _tip(bar))
        else:
            (patch,) = axes.barh([y], [value], height=0.72, color=colour)
            picture.tip(patch, _tip(bar))
        tips = sorted(_ends(bar.estimate))
        if len(tips) > 1:
            shade = colour if log else theme.fg
            axes.plot([tips[0], tips[-1]], [y, y], color=shade, linewidth=1.3, zorder=3)
        axes.annotate(
            fmt.kld(value),
            (tips[-1], y),
            xytext=(7, -0.36 * canvas.SIZE),
            textcoords="offset points",
            fontsize=canvas.SIZE,
            color=theme.fg,
            annotation_clip=False,
        )
    canvas.freeze(figure)
    picture.header = ("KV type", "which", "mean KLD [low, high]")
    picture.rows = [
        (fmt.setting(b.group), fmt.clean(b.name, 60), fmt.kld_with_interval(b.estimate))
        for b in bars
    ]
    return picture


def _ends(estimate: Estimate) -> list[float]:
    return [v for v in (estimate.low, estimate.value, estimate.high) if v is not None]


def _tip(bar: Bar) -> str:
    return (
        f"{fmt.setting(bar.group)}, {fmt.clean(bar.name, 60)}: mean KLD "
        f"{fmt.kld_with_interval(bar.estimate)}"
    )
