"""Where it hurts: mean KLD of each layer's K and V alone, by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.ticker import MaxNLocator

from nybble.report import format as fmt
from nybble.report import parts
from nybble.report.charts import canvas, labels
from nybble.report.charts.canvas import Picture, Theme
from nybble.results.records import Estimate, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from nybble.report.parts import Split

_SHIFT = 0.13  # layers that K and V stand left and right of their tick, so that whiskers part


def draw(split: Split, theme: Theme) -> Picture | None:
    """One line a side; by head, every head is a mark and the line joins the worst of a layer."""
    if not split.rows:
        return None
    series = {
        side: [r for r in split.rows if parts.part(r).side == side]
        for side in dict.fromkeys(parts.part(r).side for r in split.rows)
    }
    series = dict(sorted(series.items()))
    levels = _levels(split)
    ends = [v for r in split.rows for v in _ends(r)] + [e.value for _, e in levels]
    low, high = canvas.log_range(ends)
    figure = canvas.new_figure(3.6)
    picture = Picture(figure)
    axes = figure.subplots()
    canvas.dress(axes, theme)
    canvas.log_axis(axes, "y", low, high)
    layers = [parts.part(r).layer for r in split.rows]
    axes.set_xlim(min(layers) - 0.6, max(layers) + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(14, integer=True))
    axes.xaxis.set_major_formatter(lambda value, _: fmt.count(value))
    axes.set_xlabel("layer")
    axes.set_ylabel("mean KLD, nats (log scale)")
    canvas.freeze(figure)
    _room_for_labels(axes)
    boxes = labels.around(axes, [(parts.part(r).layer, parts.kld(r)) for r in split.rows])
    last, names, used = [], [], []
    for i, (side, rows) in enumerate(series.items()):
        shift = (i - (len(series) - 1) / 2) * 2 * _SHIFT
        line = _side(picture, axes, rows, shift, i, theme, low)
        boxes += labels.along(axes, line)
        last.append(line[-1])
        names.append(side)
        used.append(theme.line(i))
    for name, estimate in levels:
        labels.settle(canvas.level(picture, axes, estimate, name, theme), boxes)
    labels.at_line_ends(axes, last, [fmt.clean(n, 4) for n in names], used, theme)
    _words(picture, split)
    return picture


def _side(
    picture: Picture, axes: Axes, rows: list[Row], shift: float, i: int, theme: Theme, low: float
) -> list[tuple[float, float]]:
    """Marks with whiskers, and the line through the worst part of every layer."""
    colour, marker = theme.line(i), "os"[i % 2]
    worst: dict[int, Row] = {}
    for row in rows:
        layer = parts.part(row).layer
        if layer not in worst or parts.kld(row) > parts.kld(worst[layer]):
            worst[layer] = row
    line = [(n + shift, max(parts.kld(row), low)) for n, row in sorted(worst.items())]
    axes.plot(*zip(*line, strict=True), color=colour, linewidth=1.0, alpha=0.55, zorder=3)
    for row in rows:
        x = parts.part(row).layer + shift
        top = row is worst[parts.part(row).layer]
        if top:  # whiskers of every head would hide the marks
            ends = [max(v, low) for v in _ends(row)]
            axes.plot([x, x], [min(ends), max(ends)], color=colour, linewidth=1.2, zorder=4)
        (mark,) = axes.plot(
            [x],
            [max(parts.kld(row), low)],
            marker,
            color=colour,
            markersize=4.6 if top else 3.4,
            alpha=1.0 if top else 0.45,
            markeredgecolor=theme.bg,
            markeredgewidth=0.4,
            zorder=5 if top else 4,
            clip_on=False,
        )
        found = fmt.kld_with_interval(row.metrics["mean_kld"])
        picture.tip(mark, f"{parts.where(row)}: mean KLD {found}")
    return line


def _levels(split: Split) -> list[tuple[str, Estimate]]:
    found = [("the whole setting", split.whole), ("noise floor", split.floor)]
    return [(name, e) for name, e in found if e is not None and e.value > 0]


def _room_for_labels(axes: Axes) -> None:
    box = axes.get_position()
    room = (18 + canvas.SIZE) / 72 / canvas.WIDTH  # one letter beside the lines
    axes.set_position((box.x0, box.y0, box.width - room, box.height))


def _ends(row: Row) -> list[float]:
    found = row.metrics["mean_kld"]
    return [v for v in (found.low, found.value, found.high) if v is not None]


def _words(picture: Picture, split: Split) -> None:
    picture.title = split.name
    picture.caption = parts.EXPLAINED
    if split.by_head:
        picture.caption += " Every mark is a KV head; lines join the worst one of each layer."
    if any(len(_ends(r)) == 3 for r in split.rows):
        of = " (of the worst heads)" if split.by_head else ""
        picture.caption += f" Whiskers are 95 % intervals{of}."
    worst = ", ".join(f"{parts.where(r)} {fmt.kld(parts.kld(r))}" for r in split.worst())
    picture.summary = f"Mean KLD of each part of {split.name} alone. Most from {worst}."
    picture.header = parts.header(split)
    picture.rows = parts.texts(split)
