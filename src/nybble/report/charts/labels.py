"""Where labels go so that none covers another, a mark, or the edge of the axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from nybble.report.charts.canvas import SIZE, SMALL, Theme
from nybble.report.view import MANY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation, Text

    from nybble.report.view import Group

_ANGLES = (0, 180, 90, 270, 40, 320, 140, 220, 65, 295, 115, 245)
_DISTANCES = (7, 12, 18, 26, 36, 50)  # points
_FAR = 14  # points from which a label needs a line to its mark


class Box(NamedTuple):
    """A rectangle in pixels."""

    x0: float
    y0: float
    x1: float
    y1: float

    def overlap(self, other: Box) -> float:
        """Shared area."""
        width = min(self.x1, other.x1) - max(self.x0, other.x0)
        height = min(self.y1, other.y1) - max(self.y0, other.y0)
        return max(0.0, width) * max(0.0, height)

    def nearest(self, x: float, y: float) -> tuple[float, float]:
        """The point of the box that is closest to x, y."""
        return min(max(x, self.x0), self.x1), min(max(y, self.y0), self.y1)

    def inside(self, other: Box) -> bool:
        """Whether this box lies in the other."""
        return (
            self.x0 >= other.x0
            and self.y0 >= other.y0
            and self.x1 <= other.x1
            and self.y1 <= other.y1
        )


def place(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    obstacles: Sequence[Box],
    frame: Box,
    unit: float = 1.0,
) -> list[Box]:
    """Boxes for labels beside their points: nearest free place, else the least covered.

    Args:
        points: anchors in pixels.
        sizes: width and height of each label in pixels.
        obstacles: what must stay uncovered.
        frame: where labels may be.
        unit: pixels in a point.
    """
    taken = list(obstacles)
    taken += [Box(x - 4 * unit, y - 4 * unit, x + 4 * unit, y + 4 * unit) for x, y in points]
    boxes: list[Box] = []
    for (x, y), (width, height) in zip(points, sizes, strict=True):
        best: tuple[float, Box] | None = None
        for rank, (distance, angle) in enumerate((d, a) for d in _DISTANCES for a in _ANGLES):
            dx, dy = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            cx = x + dx * (distance * unit + width / 2 * abs(dx) ** 0.5)
            cy = y + dy * (distance * unit + height / 2)
            box = Box(cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
            cost = rank + 100 * sum(box.overlap(other) for other in taken)
            cost += 100 * sum(dot.overlap(b) for dot in _leader(x, y, box, unit) for b in boxes)
            if not box.inside(frame):
                cost += 1e6
            if best is None or cost < best[0]:
                best = (cost, box)
            if cost == rank:
                break
        assert best is not None
        boxes.append(best[1])
        taken += [best[1], *_leader(x, y, best[1], unit)]
    return boxes


def _leader(x: float, y: float, box: Box, unit: float) -> list[Box]:
    """The line that joins a far label to its point, as dots; none for a near label."""
    end = box.nearest(x, y)
    if math.dist(end, (x, y)) <= _FAR * unit:
        return []
    found = []
    for k in range(1, 12):  # both ends left out: they touch the point and the label
        px, py = x + (end[0] - x) * k / 12, y + (end[1] - y) * k / 12
        found.append(Box(px - 1, py - 1, px + 1, py + 1))
    return found


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near the wanted ones, in their order, `gap` apart, between low and high.

    Neighbours that are too close are merged into a block centred on the mean of what they
    wanted, until no two blocks touch.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    blocks: list[list[int]] = []

    def centre(block: list[int]) -> float:
        half = gap * (len(block) - 1) / 2
        mean = sum(wanted[i] for i in block) / len(block)
        return min(max(mean, low + half), max(low + half, high - half))

    for i in order:
        blocks.append([i])
        while len(blocks) > 1:
            above, below = blocks[-1], blocks[-2]
            room = centre(above) - centre(below)
            if room >= gap * (len(above) + len(below)) / 2 - 1e-9:
                break
            blocks[-2:] = [below + above]
    out = [0.0] * len(wanted)
    for block in blocks:
        start = centre(block) - gap * (len(block) - 1) / 2
        for k, i in enumerate(block):
            out[i] = start + k * gap
    return out


def around(axes: Axes, points: Sequence[tuple[float, float]], radius: float = 3.5) -> list[Box]:
    """Boxes around marks, as obstacles; the radius is in points."""
    figure = axes.get_figure()
    assert figure is not None
    r = radius * figure.get_dpi() / 72
    pixels = [axes.transData.transform(p) for p in points]
    return [Box(float(x) - r, float(y) - r, float(x) + r, float(y) + r) for x, y in pixels]


def dimmed(groups: Sequence[Group]) -> str:
    """What a caption says where there are too many settings to name all; else nothing."""
    if all(len(g.done) <= MANY for g in groups):
        return ""
    return (
        " Named are the settings that no other one beats in both bits and mean KLD; the others are "
        "dimmed, and the table has all."
    )


def extent(text: Text) -> Box:
    """The pixels that a drawn text covers."""
    return Box(*(float(v) for v in text.get_window_extent().extents))


def along(axes: Axes, line: Sequence[tuple[float, float]], step: float = 4.0) -> list[Box]:
    """Small boxes along a drawn line, as obstacles."""
    pixels = [(float(a), float(b)) for a, b in axes.transData.transform(list(line))]
    found = []
    for (x0, y0), (x1, y1) in zip(pixels, pixels[1:], strict=False):
        n = max(1, round(math.dist((x0, y0), (x1, y1)) / step))
        for k in range(n + 1):
            x, y = x0 + (x1 - x0) * k / n, y0 + (y1 - y0) * k / n
            found.append(Box(x - 1.5, y - 1.5, x + 1.5, y + 1.5))
    return found


def beside_points(
    axes: Axes,
    points: Sequence[tuple[float, float]],
    texts: Sequence[str],
    bars: Sequence[tuple[float, float]],
    theme: Theme,
    extra: Sequence[Box] = (),
    optional: bool = False,
) -> list[Box | None]:
    """Write labels next to data points, clear of points, whiskers and `extra` boxes.

    Args:
        axes: where.
        points: one a label, in data coordinates.
        texts: the labels.
        bars: low and high end of each point's whisker.
        theme: colours.
        extra: what else must stay uncovered, in pixels.
        optional: quieter labels; those without a free place near their point are left out.

    Returns:
        Where each label is, in pixels; None where it was left out.
    """
    figure = axes.get_figure()
    assert figure is not None
    unit = figure.get_dpi() / 72
    pixels = [(float(a), float(b)) for a, b in axes.transData.transform(list(points))]
    obstacles = list(extra)
    for (x, _), (low, high) in zip(points, bars, strict=True):
        ends = axes.transData.transform([(x, low), (x, high)])
        px, y0, y1 = float(ends[0][0]), float(ends[0][1]), float(ends[1][1])
        obstacles.append(Box(px - 2 * unit, y0 - 2 * unit, px + 2 * unit, y1 + 2 * unit))
    size, colour = (SMALL - 0.5, theme.muted) if optional else (SIZE, theme.fg)
    drawn = [
        axes.text(0, 0, t, fontsize=size, color=colour, ha="left", va="baseline", zorder=6)
        for t in texts
    ]
    sizes = []
    for label in drawn:
        box = extent(label)
        sizes.append((box.x1 - box.x0 + 2 * unit, box.y1 - box.y0 + unit))
    area = axes.get_window_extent()
    frame = Box(float(area.x0), float(area.y0), float(area.x1), float(area.y1))
    boxes = place(pixels, sizes, obstacles, frame, unit)
    back = axes.transData.inverted()
    kept: list[Box | None] = []
    for label, box, (px, py) in zip(drawn, boxes, pixels, strict=True):
        far = math.dist(box.nearest(px, py), (px, py)) > _FAR * unit
        if optional and (far or not box.inside(frame) or _covers(box, [*obstacles, *kept])):
            label.remove()
            kept.append(None)
            continue
        kept.append(box)
        middle = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
        side: Literal["left", "center", "right"]
        side = "left" if box.x0 >= px else "right" if box.x1 <= px else "center"
        x = {"left": box.x0 + unit, "right": box.x1 - unit, "center": middle[0]}[side]
        label.set_position(tuple(back.transform((x, box.y0 + 0.28 * (box.y1 - box.y0)))))
        label.set_horizontalalignment(side)
        if far:
            line = back.transform([(px, py), box.nearest(px, py)])
            axes.plot(line[:, 0], line[:, 1], color=theme.muted, linewidth=0.6, zorder=2)
    return kept


def settle(text: Annotation, obstacles: Sequence[Box]) -> None:
    """Move a name along its horizontal line, above or below, to where it covers least."""
    best: tuple[float, float, float] | None = None
    for drop in (3, -10):  # points above the line
        for share in (0.0, 0.2, 0.4, 0.6, 0.8):
            text.xy = (share, text.xy[1])
            text.set_position((4, drop))
            mine = extent(text)
            covered = sum(mine.overlap(box) for box in obstacles)
            if best is None or covered < best[0]:
                best = (covered, share, drop)
    assert best is not None
    text.xy = (best[1], text.xy[1])
    text.set_position((4, best[2]))


def _covers(box: Box, others: Sequence[Box | None]) -> bool:
    return any(other is not None and box.overlap(other) > 0 for other in others)


def at_line_ends(
    axes: Axes,
    ends: Sequence[tuple[float, float]],
    texts: Sequence[str],
    colours: Sequence[str],
    theme: Theme,
) -> None:
    """Write labels to the right of the axes, each joined to the end of its line."""
    figure = axes.get_figure()
    assert figure is not None
    unit = figure.get_dpi() / 72
    area = axes.get_window_extent()
    pixels = axes.transData.transform(list(ends))
    heights = spread(
        [float(y) for _, y in pixels], (SMALL + 3.5) * unit, float(area.y0), float(area.y1)
    )
    back = axes.transData.inverted()
    right = float(area.x1)
    for (px, py), y, text, colour in zip(pixels, heights, texts, colours, strict=True):
        joint = [(float(px), float(py)), (right + 4 * unit, y), (right + 10 * unit, y)]
        line = back.transform(joint)
        axes.plot(line[:, 0], line[:, 1], color=colour, linewidth=0.9, clip_on=False)
        spot = back.transform((right + 13 * unit, y - 0.36 * SMALL * unit))
        axes.text(
            float(spot[0]),
            float(spot[1]),
            text,
            fontsize=SMALL + 0.5,
            color=theme.fg,
            ha="left",
            va="baseline",
            clip_on=False,
        )
