"""Quality against bytes: what each KV setting costs, and what it buys."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from matplotlib.ticker import MaxNLocator

from nybble.report import format as fmt
from nybble.report import view
from nybble.report.charts import canvas, labels
from nybble.report.charts.canvas import Picture, Theme
from nybble.results.records import Measurement, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from nybble.report.view import Group

_DIM = 0.35  # opacity of what is not named


def draw(m: Measurement, theme: Theme) -> Picture | None:
    """One panel a context; x is bits an element where bytes follow it, else bytes a token."""
    groups = [g for g in view.groups(m) if g.done]
    if not groups:
        return None
    contexts = sorted({g.context for g in groups})
    rows = [r for g in groups for r in g.done]
    scale = _bytes_per_bit(rows)
    limits = view.limits(m, "mean_kld")
    values = [v for r in rows for v in _ends(r)] + [g.floor.value for g in groups if g.floor]
    values += [limits.safe, limits.broken * 1.6] if limits else []
    low, high = canvas.log_range(values)

    lines = 1 if len(contexts) <= 3 else -(-len(contexts) // 2)
    figure = canvas.new_figure(4.3 if lines == 1 else 3.4 * lines)
    picture = Picture(figure)
    panels = canvas.panels(figure, len(contexts), theme, share_x=True)
    xs = [_x(r, scale) for r in rows]
    margin = 0.08 * (max(xs) - min(xs)) or 0.5 * max(max(xs), 1)
    columns = len(contexts) if lines == 1 else 2
    longest = max(len(_name(m, r)) for g in groups for r in _named(g, scale))
    # Labels stand to the right of their points; the last ones need room: 0.62 em a letter.
    most = 0.4 if max(len(g.done) for g in groups) <= view.MANY else 0.15
    share = min(most, (14 + 0.62 * canvas.SIZE * longest) * columns / (72 * canvas.WIDTH))
    right = share / (1 - share) * (max(xs) - min(xs) + margin) if len(set(xs)) > 1 else margin
    for i, (axes, context) in enumerate(zip(panels, contexts, strict=True)):
        canvas.log_axis(axes, "y", low, high)
        axes.set_xlim(min(xs) - margin, max(xs) + max(right, margin))
        _x_axis(axes, scale)
        if i % columns == 0:
            axes.set_ylabel("mean KLD, nats (log scale)")
        if len(contexts) > 1:
            canvas.title(axes, f"context {fmt.count(context)}", theme)
    canvas.freeze(figure)
    for axes, context in zip(panels, contexts, strict=True):
        here = [g for g in groups if g.context == context]
        names = canvas.bands(axes, limits, low, high, theme) if limits else []
        _panel(m, picture, axes, here, scale, theme, low, [labels.extent(t) for t in names])
    _words(m, picture, groups, scale is not None)
    return picture


def _panel(
    m: Measurement,
    picture: Picture,
    axes: Axes,
    groups: list[Group],
    scale: float | None,
    theme: Theme,
    low: float,
    boxes: list[labels.Box],
) -> None:
    points, texts, bars, others = [], [], [], []
    order = list(dict.fromkeys([x.label for x in m.models] + [g.model for g in groups]))
    floor = max((g.floor for g in groups if g.floor), key=lambda e: e.value, default=None)
    if floor is not None and floor.value > low:
        boxes.append(labels.extent(canvas.level(picture, axes, floor, "noise floor", theme)))
    for group in groups:
        number = order.index(group.model)
        colour = theme.line(number)
        spots = [(_x(r, scale), max(r.metrics["mean_kld"].value, low)) for r in group.done]
        front = [spots[i] for i in view.pareto(spots)]
        if len(front) > 1:
            axes.plot(*zip(*front, strict=True), color=colour, linewidth=1.1, alpha=0.55, zorder=3)
            boxes += labels.along(axes, front)
        known = {r.setting for r in _named(group, scale)}
        for row, (x, y) in zip(group.done, spots, strict=True):
            named = row.setting in known
            bottom, top = (max(v, low) for v in (min(_ends(row)), max(_ends(row))))
            axes.plot(
                [x, x], [bottom, top], color=colour, linewidth=1.4 if named else 1.0,
                alpha=1.0 if named else _DIM, zorder=4 if named else 2,
            )  # fmt: skip
            (mark,) = axes.plot(
                [x],
                [y],
                marker="os"[number % 2],
                markersize=6.5 if named else 5.0,
                color=colour,
                alpha=1.0 if named else _DIM,
                markeredgecolor=theme.bg,
                markeredgewidth=0.5,
                zorder=5 if named else 2.5,
                clip_on=False,
            )
            picture.tip(mark, _tip(m, row))
            if named:
                points.append((x, y))
                bars.append((bottom, top))
                texts.append(_name(m, row))
            else:
                others.append((x, y))
    boxes += labels.around(axes, others)
    labels.beside_points(axes, points, texts, bars, theme, boxes)


def _x_axis(axes: Axes, scale: float | None) -> None:
    """Bits below and, where bytes follow bits, bytes per token above."""
    if scale is None:
        axes.set_xlabel("bytes per token")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(lambda value, _: fmt.size(value))
        return
    axes.set_xlabel("stored bits an element, scales included")
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(lambda value, _: fmt.tick(value))
    if not scale:
        return
    low, high = (scale * bits for bits in axes.get_xlim())
    power = min(3, max(0, math.floor(math.log(high, 1024))))
    unit = 1024.0**power
    ticks = [v for v in MaxNLocator(5).tick_values(max(low, 0) / unit, high / unit)]
    ticks = [v for v in ticks if low <= v * unit <= high]
    top = axes.secondary_xaxis("top")
    top.spines["top"].set_visible(False)
    muted = axes.spines["bottom"].get_edgecolor()
    top.tick_params(length=0, labelsize=canvas.SMALL, labelcolor=muted)
    top.set_xticks([v * unit / scale for v in ticks], [fmt.tick(float(v)) for v in ticks])
    top.set_xlabel(f"{('bytes', 'KiB', 'MiB', 'GiB')[power]} per token", color=muted)


def _name(m: Measurement, row: Row) -> str:
    name = fmt.label(row.setting)
    return f"{row.model}: {name}" if len(m.models) > 1 else name


def _named(group: Group, scale: float | None) -> list[Row]:
    known = view.named(group, lambda r: _x(r, scale))
    return [r for r in group.done if r.setting in known]


def _x(row: Row, scale: float | None) -> float:
    return row.bytes_per_token if scale is None else row.bits


def _bytes_per_bit(rows: list[Row]) -> float | None:
    """Bytes per token for one bit an element.

    Where K and V sizes differ too much for one, None (x is bytes), or 0 (x is bits, without an
    axis of bytes) where bytes are unknown or simulated: bytes a token then leave out every layer
    with a window, which settings by layer may store in another type.
    """
    known = [r.bytes_per_token / r.bits for r in rows if r.bits and r.bytes_per_token]
    if len(known) < len(rows) or max(known) > 1.01 * min(known):
        bits = any(r.simulated or not r.bytes_per_token for r in rows)
        return 0.0 if bits else None
    return sum(known) / len(known)


def _ends(row: Row) -> list[float]:
    found = row.metrics["mean_kld"]
    return [v for v in (found.low, found.value, found.high) if v is not None]


def _tip(m: Measurement, row: Row) -> str:
    which = f"model {row.model}, " if len(m.models) > 1 else ""
    label = f", {fmt.clean(row.verdict.label, 12)}" if row.verdict else ""
    return (
        f"{which}{fmt.setting(row.setting)}: mean KLD "
        f"{fmt.kld_with_interval(row.metrics['mean_kld'])}, {fmt.bits(row.bits)} bits, "
        f"{fmt.size(row.bytes_per_token)} per token{label}"
    )


def _words(m: Measurement, picture: Picture, groups: list[Group], bits: bool) -> None:
    picture.title = "Quality against bytes"
    picture.summary = (
        f"Mean KLD against {'stored bits an element' if bits else 'bytes per token'}, log scale. "
        + "; ".join(_tip(m, r) for g in groups for r in _named(g, 1.0 if bits else None))
    )
    whiskers = "Whiskers are 95 % intervals. " if view.has_intervals(m) else ""
    front = (
        "The line joins the settings that no other measured one beats in both. "
        if any(len(g.done) > 1 for g in groups)
        else ""
    )
    picture.caption = (
        f"Lower is closer to the 16-bit cache, further left is smaller. {front}{whiskers}"
    ).strip() + labels.dimmed(groups)
    found = m.protocol.get("thresholds")
    if isinstance(found, dict) and "mean_kld" in found and len(found) > 1:
        picture.caption += " Bands show the mean KLD limits alone; verdicts use other limits too."
    picture.header = ("KV type", "bits", "bytes/token", "mean KLD [low, high]", "verdict")
    several = len(groups) > 1
    if several:
        picture.header = ("group", *picture.header)
    picture.rows = [
        (
            *((group.title,) if several else ()),
            fmt.setting(r.setting),
            fmt.bits(r.bits),
            fmt.size(r.bytes_per_token),
            fmt.kld_with_interval(r.metrics["mean_kld"]),
            fmt.clean(r.verdict.label, 12) if r.verdict else "",
        )
        for group in groups
        for r in group.done
    ]
