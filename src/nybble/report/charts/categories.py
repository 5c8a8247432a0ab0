"""Category x setting: which kind of text suffers from which cache."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from matplotlib import colormaps
from matplotlib.colors import to_hex, to_rgb
from matplotlib.patches import Rectangle

from nybble.report import format as fmt
from nybble.report import view
from nybble.report.charts import canvas
from nybble.report.charts.canvas import Picture, Theme
from nybble.results.records import Estimate, Measurement, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from nybble.report.view import Group


def draw(m: Measurement, theme: Theme) -> Picture | None:
    """A heat map a model and context, log colour scale, the number in every cell."""
    groups = [g for g in view.groups(m) if any(_cells(r) for r in g.done)]
    if not groups:
        return None
    names = list(dict.fromkeys(n for g in groups for r in g.done for n in _cells(r)))
    if len(names) < 2:  # the main table says it already
        return None
    known = [e.value for g in groups for r in g.done for e in _cells(r).values()]
    low, high = canvas.log_range(known)
    heights = [0.7 + 0.24 * len(g.done) for g in groups]
    figure = canvas.new_figure(0.35 + sum(heights))
    picture = Picture(figure)
    grid = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)
    for axes, group in zip((line[0] for line in grid), groups, strict=True):
        _map(picture, axes, group, names, (low, high), theme)
    canvas.freeze(figure)
    _words(picture, groups, names)
    return picture


def _map(
    picture: Picture,
    axes: Axes,
    group: Group,
    names: list[str],
    span: tuple[float, float],
    theme: Theme,
) -> None:
    canvas.dress(axes, theme)
    axes.grid(False)
    axes.spines["bottom"].set_visible(False)
    axes.set_xlim(0, len(names))
    axes.set_ylim(len(group.done), 0)
    axes.xaxis.tick_top()
    axes.set_xticks([i + 0.5 for i in range(len(names))], [fmt.clean(n, 16) for n in names])
    axes.set_yticks(
        [i + 0.5 for i in range(len(group.done))], [fmt.label(r.setting) for r in group.done]
    )
    axes.tick_params(length=0, labelcolor=theme.fg, labelsize=canvas.SIZE, which="both")
    axes.tick_params(axis="x", which="major", length=0)
    if group.title:
        canvas.title(axes, group.title, theme)
    for y, row in enumerate(group.done):
        for x, name in enumerate(names):
            found = _cells(row).get(name)
            if found is None:
                continue
            fill = _fill(found.value, span)
            cell = Rectangle((x + 0.02, y + 0.05), 0.96, 0.9, facecolor=fill, linewidth=0)
            axes.add_patch(cell)
            picture.tip(
                cell,
                f"{fmt.setting(row.setting)}, {fmt.clean(name, 40)}: mean KLD "
                f"{fmt.kld_with_interval(found)}",
            )
            axes.text(
                x + 0.5,
                y + 0.61,
                fmt.kld(found.value),
                ha="center",
                va="baseline",
                fontsize=canvas.SIZE,
                color=_ink(fill),
            )


def _cells(row: Row) -> dict[str, Estimate]:
    return {s.name: s.metrics["mean_kld"] for s in row.by_category if "mean_kld" in s.metrics}


def _fill(value: float, span: tuple[float, float]) -> str:
    """Colour of a cell; opaque, so that it is the same on both pages."""
    low, high = (math.log(v) for v in span)
    share = (math.log(value) - low) / (high - low) if value > 0 and high > low else 0.0
    return to_hex(colormaps["YlOrBr"](0.06 + 0.76 * min(1.0, max(0.0, share))))


def _ink(fill: str) -> str:
    """Near black or white, whichever has more contrast (WCAG relative luminance)."""
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(fill)]
    light = 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]
    return "#111418" if (light + 0.05) ** 2 > 0.05 * 1.05 else "#fefefe"


def _words(picture: Picture, groups: list[Group], names: list[str]) -> None:
    picture.title = "KLD by kind of text"
    picture.caption = "Mean KLD in nats; darker is more drift, on a log scale."
    worst = []
    for group in groups:
        known = view.named(group)
        for row in group.done:
            found = _cells(row)
            if found and row.setting in known:
                name = max(found, key=lambda n: found[n].value)
                worst.append(
                    f"{group.title + ', ' if group.title else ''}{fmt.setting(row.setting)} "
                    f"drifts most on {fmt.clean(name, 40)} ({fmt.kld(found[name].value)})"
                )
    picture.summary = "Mean KLD by category and KV type. " + "; ".join(worst)
    picture.header = ("KV type", *(fmt.clean(n, 40) for n in names))
    if len(groups) > 1:
        picture.header = ("group", *picture.header)
    picture.rows = [
        (
            *((group.title,) if len(groups) > 1 else ()),
            fmt.setting(row.setting),
            *(fmt.kld_with_interval(_cells(row).get(n)) for n in names),
        )
        for group in groups
        for row in group.done
    ]
