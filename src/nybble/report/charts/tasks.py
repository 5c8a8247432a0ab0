"""What each KV type changes, task by task: dots with intervals around zero."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nybble.report import format as fmt
from nybble.report import tasks as tables
from nybble.report.charts import canvas
from nybble.report.charts.canvas import Picture, Theme
from nybble.results.records import Estimate
from nybble.results.tasks import TaskCell, TaskRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LINE = 0.2  # inches


def draw(run: TaskRun, theme: Theme) -> Picture | None:
    """One group of lines for a task and length, one line a candidate; None without any."""
    cells = {
        (c.task, c.length, c.setting): (c, found)
        for c in tables.whole(run)
        if c.role == "candidate" and (found := tables.change(c)) is not None
    }
    if not cells:
        return None
    settings = list(dict.fromkeys(s for _, _, s in cells))
    groups = [
        [(s, *cells[task, length, s]) for s in settings if (task, length, s) in cells]
        for task, length in tables.places(run)
    ]
    groups = [g for g in groups if g]
    n = sum(len(g) + 1 for g in groups)
    figure = canvas.new_figure(1.0 + _LINE * n)
    picture = Picture(figure)
    axes = figure.subplots()
    canvas.dress(axes, theme)
    axes.grid(False, axis="y")
    axes.grid(True, axis="x", color=theme.grid, linewidth=0.7)
    axes.axvline(0, color=theme.muted, linewidth=1.0)
    y, ticks = 0.0, []
    for group in groups:
        first = group[0][1]
        ticks.append((y + (len(group) - 1) / 2, f"{first.task}, {fmt.count(first.length)}"))
        for setting, cell, change in group:
            _mark(picture, axes, y, theme.line(settings.index(setting)), cell, change)
            y += 1
        y += 1
    axes.set_ylim(y - 1.4, -0.6)
    axes.set_yticks([t for t, _ in ticks], [fmt.clean(t, 34) for _, t in ticks])
    axes.tick_params(axis="y", labelcolor=theme.fg, labelsize=canvas.SIZE)
    axes.set_xlabel("change of the share answered rightly, percentage points")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:+g}".replace("-", "−"))
    handles = [
        axes.plot([], [], "o", color=theme.line(i), markersize=5, label=fmt.label(s))[0]
        for i, s in enumerate(settings)
    ]
    axes.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=min(4, len(settings)),
        frameon=False, fontsize=canvas.SIZE, labelcolor=theme.fg, borderaxespad=0.2,
    )  # fmt: skip
    canvas.freeze(figure)
    picture.title = "Change against the 16-bit cache"
    picture.caption = (
        "Dots left of zero: fewer right answers than with the 16-bit cache on the same questions. "
        "Lines are 95 % intervals of a bootstrap over contexts, where there are five or more."
    )
    picture.summary = "Change in percentage points: " + "; ".join(
        f"{fmt.setting(s)} {c.task} at {fmt.count(c.length)} tokens {tables.points(e)}"
        for g in groups for s, c, e in g
    )  # fmt: skip
    grid = tables.changes(run)
    picture.header, picture.rows = grid.header, grid.rows
    return picture


def _mark(
    picture: Picture, axes: Axes, y: float, colour: str, cell: TaskCell, change: Estimate
) -> None:
    if change.low is not None and change.high is not None:
        axes.plot([100 * change.low, 100 * change.high], [y, y], color=colour, linewidth=1.4)
    (mark,) = axes.plot([100 * change.value], [y], "o", color=colour, markersize=5, zorder=4)
    picture.tip(
        mark,
        f"{fmt.setting(cell.setting)}, {cell.task} at {fmt.count(cell.length)} tokens: "
        f"{tables.points(change)} points, +{cell.gained} −{cell.lost}",
    )
