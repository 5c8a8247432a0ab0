"""Names of marks that stand on top of one another: an ordered list beside each crowd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from nybble.report.charts import labels
from nybble.report.charts.canvas import SMALL, Theme
from nybble.report.charts.labels import Box

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ACROSS, _DOWN = 7.0, 18.0  # points between marks that count as a crowd
_ASIDE = 20.0  # points between a crowd and its list
_LINE = 9.0  # points from one name to the next
_SIZE = SMALL - 0.5
_SHIFTS = range(-14, 15)  # lines by which a list may start above or below its marks
_REACH = 4  # lines that a name may be from its mark, and half a line more for every other one


class _List(NamedTuple):
    """Where the names of a crowd go; `cost` is their squared distance from their marks."""

    cost: float
    boxes: list[Box]
    right: bool


def crowds(pixels: Sequence[tuple[float, float]], unit: float = 1.0) -> list[list[int]]:
    """Indices by groups of marks that are close to one another, each from top to bottom.

    The largest group comes first; a mark that stands alone is a group too.
    """
    found: list[list[int]] = []
    for i, (x, y) in enumerate(pixels):
        near = [
            g for g in found
            if any(
                abs(pixels[k][0] - x) <= _ACROSS * unit and abs(pixels[k][1] - y) <= _DOWN * unit
                for k in g
            )
        ]  # fmt: skip
        found = [g for g in found if g not in near] + [[i, *(k for g in near for k in g)]]
    found = [sorted(g, key=lambda i: (-pixels[i][1], i)) for g in found]
    return sorted(found, key=lambda g: (-len(g), pixels[g[0]]))


def in_lists(
    axes: Axes,
    points: Sequence[tuple[float, float]],
    texts: Sequence[str],
    theme: Theme,
    extra: Sequence[Box] = (),
    least: int = 1,
) -> tuple[list[int], list[Box]]:
    """Write names as lists beside their crowds, each joined to its mark by a line.

    A crowd without a free place on either side stays without names.

    Args:
        axes: where.
        points: in data coordinates.
        texts: a name each.
        theme: colours.
        extra: what must stay uncovered, in pixels.
        least: marks from which a crowd gets a list.

    Returns:
        Indices of the points that have no name yet, and where the names are, in pixels.
    """
    pixels, unit = _pixels(axes, points)
    area = axes.get_window_extent()
    frame = Box(float(area.x0), float(area.y0), float(area.x1), float(area.y1))
    taken, left = list(extra), []
    back = axes.transData.inverted()
    for crowd in crowds(pixels, unit):
        if len(crowd) < least:
            left += crowd
            continue
        drawn = [
            axes.text(0, 0, texts[i], fontsize=_SIZE, color=theme.muted, va="baseline", zorder=6)
            for i in crowd
        ]
        widths = [labels.extent(t).x1 - labels.extent(t).x0 for t in drawn]
        spots = [pixels[i] for i in crowd]
        both = (_listed(spots, widths, taken, frame, unit, right) for right in (True, False))
        best = min((x for x in both if x), key=lambda found: found.cost, default=None)
        if best is None:
            for text in drawn:
                text.remove()
            left += crowd
            continue
        for text, box, (px, py) in zip(drawn, best.boxes, spots, strict=True):
            edge = (box.x0 if best.right else box.x1, (box.y0 + box.y1) / 2)
            x = edge[0] + (unit if best.right else -unit)
            text.set_position(tuple(back.transform((x, box.y0 + 0.28 * (box.y1 - box.y0)))))
            text.set_horizontalalignment("left" if best.right else "right")
            line = back.transform([(px, py), edge])
            axes.plot(line[:, 0], line[:, 1], color=theme.muted, linewidth=0.4, zorder=2)
        taken += best.boxes
    return left, taken[len(extra) :]


def _pixels(
    axes: Axes, points: Sequence[tuple[float, float]]
) -> tuple[list[tuple[float, float]], float]:
    """Points in pixels, and pixels in a point of type."""
    figure = axes.get_figure()
    assert figure is not None
    found = [axes.transData.transform(p) for p in points]
    return [(float(x), float(y)) for x, y in found], figure.get_dpi() / 72


def _listed(
    spots: Sequence[tuple[float, float]],
    widths: Sequence[float],
    taken: Sequence[Box],
    frame: Box,
    unit: float,
    right: bool,
) -> _List | None:
    """The list on one side whose names are nearest to their marks; lines in the way are skipped."""
    step, aside = _LINE * unit, _ASIDE * unit
    x = max(p[0] for p in spots) + aside if right else min(p[0] for p in spots) - aside
    top = sum(p[1] for p in spots) / len(spots) + step * (len(spots) - 1) / 2
    reach = step * (_REACH + len(spots) / 2)
    best: _List | None = None
    for shift in _SHIFTS:
        y, cost, boxes = top + shift * step, 0.0, []
        for (_, mark), width in zip(spots, widths, strict=True):
            while y - step / 2 >= frame.y0:
                box = Box(x, y - step / 2, x + width, y + step / 2)
                box = box if right else Box(x - width, box.y0, x, box.y1)
                y -= step
                if box.inside(frame) and not any(box.overlap(b) > 0 for b in taken):
                    away = abs(mark - (box.y0 + box.y1) / 2)
                    if away <= reach:
                        boxes.append(box)
                    cost += away**2
                    break
        if len(boxes) == len(spots) and (best is None or cost < best.cost):
            best = _List(cost, boxes, right)
    return best
