"""What the pictures of a plan share: an axis of contexts, and names at the ends of lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nybble.report import format as fmt
from nybble.report.charts import canvas, labels
from nybble.report.charts.canvas import SMALL, Theme
from nybble.report.charts.labels import Box

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TICKS = 9  # at most
_SIDE = 17.0  # points from the axes to a name at their right, and a little after it
_DROP = (0, (1.5, 1.5))  # dash of the line from a point down to its name
_BESIDE = 16.0  # points by which they may stand out at the right
_FOOT = 13.0  # points from the x axis to above the names that stand on it
_LIFT = 7.0  # points from the top of the axes to a name above them
_LINE = 10.0  # points between two lines of names above


def tokens(n: float) -> str:
    """Tokens in units of 1,024, rounded down so that what fits does: `8K`, `73K`, `1.5M`."""
    for unit, name in ((2**20, "M"), (2**10, "K")):
        if n >= unit:
            whole = n / unit
            return f"{fmt.count(math.floor(whole)) if whole >= 10 else _tenths(whole)}{name}"
    return fmt.count(n)


def _tenths(value: float) -> str:
    return f"{math.floor(10 * value) / 10:g}"


def context_axis(axes: Axes, left: float, right: float) -> None:
    """A log x axis of tokens with ticks at powers of two."""
    axes.set_xscale("log", base=2)
    axes.set_xlim(left, right)
    first, last = math.ceil(math.log2(left) - 1e-9), math.floor(math.log2(right) + 1e-9)
    step = -(-(last - first + 1) // _TICKS)
    canvas.plain_ticks(axes, "x", [2.0**p for p in range(last, first - 1, -step)], tokens)


def make_room(axes: Axes, texts: Sequence[str]) -> None:
    """Narrow frozen axes so that these names fit between them and the right edge."""
    figure = axes.get_figure()
    assert figure is not None
    unit = figure.get_dpi() / 72
    widest = max((_width(axes, t) for t in texts), default=0.0)
    if not widest:
        return
    box = axes.get_position()
    right = 1 - (widest + _SIDE * unit) / (unit * 72 * canvas.WIDTH)
    axes.set_position((box.x0, box.y0, min(box.x1, right) - box.x0, box.height))


def down_to_axis(
    axes: Axes,
    points: Sequence[tuple[float, float]],
    texts: Sequence[str],
    colours: Sequence[str],
    theme: Theme,
    taken: Sequence[Box] = (),
) -> None:
    """Write names just above the x axis, each under its point and joined to it by a thin line.

    Names that would cover one of the boxes in `taken` start at its right.
    """
    if not texts:
        return
    figure = axes.get_figure()
    assert figure is not None
    unit = figure.get_dpi() / 72
    area = axes.get_window_extent()
    bottom, low = float(area.y0), float(area.x0)
    high = min(float(area.x1) + _BESIDE * unit, float(figure.bbox.x1) - 2 * unit)
    low = max([low, *(b.x1 for b in taken if b.y0 < bottom + _FOOT * unit)])
    width = max(_width(axes, t) for t in texts) + 5 * unit
    pixels = [(float(x), float(y)) for x, y in axes.transData.transform(list(points))]
    centres = labels.spread([x for x, _ in pixels], width, low + width / 2, high - width / 2)
    back = axes.transData.inverted()
    for (x, y), centre, text, colour in zip(pixels, centres, texts, colours, strict=True):
        joint = [(x, y), (x, bottom + (_FOOT + 6) * unit), (centre, bottom + _FOOT * unit)]
        line = back.transform(joint)
        axes.plot(line[:, 0], line[:, 1], color=colour, linewidth=1.0, linestyle=_DROP, zorder=1.5,
            clip_on=False)  # fmt: skip
        spot = back.transform((centre, bottom + 4 * unit))
        axes.text(
            float(spot[0]), float(spot[1]), text, fontsize=SMALL + 0.5, color=theme.fg,
            ha="center", va="baseline", zorder=6,
        )  # fmt: skip


def over_top(
    axes: Axes, exits: Sequence[float], texts: Sequence[str], colours: Sequence[str], theme: Theme
) -> None:
    """Write names above the axes, each joined to where its line leaves through the top.

    Where one row of names is too narrow they stand in two, every other one higher.
    """
    if not texts:
        return
    figure = axes.get_figure()
    assert figure is not None
    unit = figure.get_dpi() / 72
    area = axes.get_window_extent()
    top, low, high = float(area.y1), float(area.x0), float(figure.bbox.x1)
    width = max(_width(axes, t) for t in texts) + 8 * unit
    rows = 1 if width * len(texts) <= 0.8 * (high - low) else 2
    wanted = [float(axes.transData.transform((x, 1))[0]) for x in exits]
    centres = labels.spread(wanted, width / rows, low + width / 2, high - width / 2)
    order = sorted(range(len(texts)), key=lambda i: centres[i])
    back = axes.transData.inverted()
    for i, text in enumerate(texts):
        lift = (_LIFT + _LINE * (order.index(i) % rows)) * unit
        joint = [(wanted[i], top), (centres[i], top + lift)]
        line = back.transform(joint)
        axes.plot(line[:, 0], line[:, 1], color=colours[i], linewidth=0.9, clip_on=False)
        spot = back.transform((centres[i], top + lift + 3 * unit))
        axes.text(
            float(spot[0]), float(spot[1]), text, fontsize=SMALL + 0.5, color=theme.fg,
            ha="center", va="baseline", clip_on=False,
        )  # fmt: skip


def _width(axes: Axes, text: str) -> float:
    """Pixels that a name takes; a little more than measured, which is rounded at another size."""
    drawn = axes.text(0, 0, text, fontsize=SMALL + 0.5, transform=axes.transAxes)
    box = labels.extent(drawn)
    drawn.remove()
    return 1.08 * (box.x1 - box.x0)
