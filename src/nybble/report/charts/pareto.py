"""Every format on one model: mean KLD against stored bits, coloured by the engine it is of."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from matplotlib.ticker import MaxNLocator

from nybble.errors import NybbleError
from nybble.report import format as fmt
from nybble.report import view
from nybble.report.charts import callouts, canvas, labels
from nybble.report.charts.canvas import Picture, Theme
from nybble.report.charts.families import Family, family
from nybble.report.charts.family_marks import colour, legend, style
from nybble.results.records import Measurement, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from nybble.report.view import Group

_FAMILIES = 3  # with fewer the picture of quality against bytes says it all
_SHARED = 4  # letters that K and V type must share to be written once: kivi_k4/v4
_CROWD = 4  # marks close together from which their names go into a list
_DIM = 0.55  # opacity of what is not on the front


class _Spot(NamedTuple):
    row: Row
    bits: float
    kld: float
    family: Family


def draw(m: Measurement, theme: Theme) -> Picture | None:
    """The picture, where there are many settings of several families."""
    group = _group(m)
    if group is None or len(group.done) <= view.MANY:
        return None
    return picture(m, theme) if len({family(r) for r in group.done}) >= _FAMILIES else None


def picture(m: Measurement, theme: Theme, at: int | None = None) -> Picture | None:
    """The picture, whatever was measured; None without a finished setting.

    Args:
        m: the measurement.
        theme: colours.
        at: tokens of context at which bits are counted; the rows' own bits without.

    Raises:
        NybbleError: no bytes were recorded at this context.
    """
    group = _group(m)
    if group is None:
        return None
    spots = _spots(group, at)
    front = [spots[i] for i in view.pareto([(s.bits, s.kld) for s in spots])]
    limits = view.limits(m, "mean_kld")
    values = [v for s in spots for v in _ends(s.row)] + [group.floor.value if group.floor else 0.0]
    low, high = canvas.log_range([*values, limits.safe] if limits else values)
    figure = canvas.new_figure(5.6)
    found = Picture(figure)
    axes = figure.subplots()
    canvas.dress(axes, theme)
    canvas.log_axis(axes, "y", low, high)
    xs = [s.bits for s in spots]
    span = max(xs) - min(xs) or 1.0
    axes.set_xlim(min(xs) - 0.08 * span, max(xs) + 0.17 * span)
    axes.xaxis.set_major_locator(MaxNLocator(9, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(lambda value, _: fmt.tick(value))
    where = f", at {fmt.count(at)} tokens of context" if at else ""
    axes.set_xlabel(f"stored bits an element, scales included{where}")
    axes.set_ylabel("mean KLD, nats (log scale)")
    legend(axes, [s.family for s in spots], theme)
    canvas.freeze(figure)
    boxes = (
        [labels.extent(t) for t in canvas.bands(axes, limits, low, high, theme)] if limits else []
    )
    if group.floor and group.floor.value > low:
        floor = canvas.level(found, axes, group.floor, "noise floor", theme)
        boxes.append(labels.extent(floor))
    boxes += _front(axes, front, theme)
    _marks(found, axes, spots, front, theme, low)
    _names(axes, spots, front, theme, low, boxes)
    _words(m, found, spots, front, at)
    return found


def _group(m: Measurement) -> Group | None:
    """The first model at its longest context."""
    groups = [g for g in view.groups(m) if g.done]
    return max(
        (g for g in groups if g.model == groups[0].model), key=lambda g: g.context, default=None
    )


def _spots(group: Group, at: int | None) -> list[_Spot]:
    found = []
    f16 = next((r for r in group.references if r.role == "identity"), None)
    for row in group.done:
        bits = row.bits
        if at is not None:
            whole = f16.cache_bytes_at.get(str(at)) if f16 else None
            mine = row.cache_bytes_at.get(str(at))
            if not whole or mine is None:
                raise NybbleError(
                    "no cache bytes were recorded at this context", seen=f"{at:,} tokens",
                    allowed=", ".join(row.cache_bytes_at) or "none", hint=f"--memory-at {at}",
                )  # fmt: skip
            bits = 16 * mine / whole
        found.append(_Spot(row, bits, row.metrics["mean_kld"].value, family(row)))
    return found


def _front(axes: Axes, front: list[_Spot], theme: Theme) -> list[labels.Box]:
    """A step line: what is on it or above and right of it is beaten, or is the front itself."""
    steps = _steps(axes, front)
    axes.plot(*zip(*steps, strict=True), color=theme.fg, linewidth=1.0, alpha=0.5, zorder=3)
    return labels.along(axes, steps)


def _steps(axes: Axes, front: list[_Spot]) -> list[tuple[float, float]]:
    steps = [(front[0].bits, axes.get_ylim()[1])]
    for spot in front:
        steps += [(spot.bits, steps[-1][1]), (spot.bits, spot.kld)]
    return [*steps, (axes.get_xlim()[1], front[-1].kld)]


def _marks(
    found: Picture, axes: Axes, spots: list[_Spot], front: list[_Spot], theme: Theme, low: float
) -> None:
    for spot in spots:
        best = spot in front
        alpha = 1.0 if best else _DIM
        ends = [max(v, low) for v in _ends(spot.row)]
        axes.plot(
            [spot.bits, spot.bits], [min(ends), max(ends)], color=colour(spot.family, theme),
            linewidth=1.2, alpha=alpha, zorder=4,
        )  # fmt: skip
        (mark,) = axes.plot(
            [spot.bits], [max(spot.kld, low)], alpha=alpha, zorder=6 if best else 5, clip_on=False,
            linestyle="none", **style(spot.family, theme, 7.0 if best else 6.0),
        )  # fmt: skip
        found.tip(mark, _tip(spot))


def _names(
    axes: Axes,
    spots: list[_Spot],
    front: list[_Spot],
    theme: Theme,
    low: float,
    boxes: list[labels.Box],
) -> None:
    """The front's names first; of the others crowds in lists, and what finds a place."""
    places = {id(s): (s.bits, max(s.kld, low)) for s in spots}
    boxes = boxes + labels.around(axes, list(places.values()))
    for spot in spots:
        ends = [max(v, low) for v in _ends(spot.row)]
        boxes += labels.along(axes, [(spot.bits, min(ends)), (spot.bits, max(ends))])

    def name(some: list[_Spot], optional: bool) -> list[_Spot]:
        points, texts = [places[id(s)] for s in some], [_short(s.row) for s in some]
        bars = [(y, y) for _, y in points]  # whiskers are among the boxes
        found = labels.beside_points(axes, points, texts, bars, theme, boxes, optional)
        boxes.extend(box for box in found if box)
        return [s for s, box in zip(some, found, strict=True) if box is None]

    name(front, optional=False)

    def listed(some: list[_Spot], more: list[labels.Box], least: int) -> list[_Spot]:
        points, texts = [places[id(s)] for s in some], [_short(s.row) for s in some]
        left, found = callouts.in_lists(axes, points, texts, theme, [*more, *boxes], least)
        boxes.extend(found)
        return [some[i] for i in left]

    rest = listed([s for s in spots if s not in front], _beyond(axes, front), _CROWD)
    listed(name(rest, optional=True), [], 1)


def _beyond(axes: Axes, front: list[_Spot]) -> list[labels.Box]:
    """The pixels left of and below the front, as boxes: no measured setting is there."""
    corners = [(float(x), float(y)) for x, y in map(axes.transData.transform, _steps(axes, front))]
    area = axes.get_window_extent()
    return [
        labels.Box(min(a[0], b[0]), float(area.y0), max(a[0], b[0]), min(a[1], b[1]))
        for a, b in zip(corners, corners[1:], strict=False)
    ]


def _short(row: Row) -> str:
    """A type that K and V share is written once, and so is a beginning that they share."""
    k, slash, rest = row.setting.partition("/")
    v = rest[: next((i for i, c in enumerate(rest) if c in "+-"), len(rest))]
    if slash and k == v:
        return fmt.label(k + rest[len(v) :])
    same = k.rfind("_") + 1
    if same > _SHARED and v.startswith(k[:same]):
        return fmt.label(f"{k}/{rest[same:]}")
    return fmt.label(row.setting)


def _ends(row: Row) -> list[float]:
    found = row.metrics["mean_kld"]
    return [v for v in (found.low, found.value, found.high) if v is not None]


def _tip(spot: _Spot) -> str:
    return (
        f"{fmt.setting(spot.row.setting)} ({spot.family.name}): mean KLD "
        f"{fmt.kld_with_interval(spot.row.metrics['mean_kld'])}, {fmt.bits(spot.bits)} bits"
    )


def _words(
    m: Measurement, found: Picture, spots: list[_Spot], front: list[_Spot], at: int | None
) -> None:
    found.title = "Formats by engine"
    found.summary = (
        f"Mean KLD against stored bits of {fmt.plural(len(spots), 'setting')} on {view.names(m)}. "
        "No other one beats in both: " + "; ".join(map(_tip, front))
    )
    found.caption = (
        "The step line is the Pareto front: no other measured setting is smaller and closer to "
        "the 16-bit cache than those on it."
    )
    if any(len(_ends(s.row)) == 3 for s in spots):
        found.caption += " Whiskers are 95 % intervals."
    bits = f"bits at {fmt.count(at)} tokens" if at else "bits"
    found.header = ("KV type", "engine", bits, "mean KLD [low, high]", "on the front")
    found.rows = [
        (
            fmt.setting(s.row.setting),
            s.family.name,
            fmt.bits(s.bits),
            fmt.kld_with_interval(s.row.metrics["mean_kld"]),
            "yes" if s in front else "",
        )
        for s in sorted(spots, key=lambda s: (s.bits, s.kld))
    ]
