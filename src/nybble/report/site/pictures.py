"""Stored bits against mean KLD: one picture a way of scoring, and one over all models."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from matplotlib.ticker import MaxNLocator

from nybble.report import format as fmt
from nybble.report import view
from nybble.report.charts import canvas, labels, svg
from nybble.report.charts.canvas import Picture, Theme
from nybble.report.charts.families import FAMILIES, OTHER, Family
from nybble.report.charts.family_marks import colour, legend, style
from nybble.report.plots import Chart
from nybble.report.site import entries, texts
from nybble.report.site.entries import Model
from nybble.results.base.cell import Cell
from nybble.results.records import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDE = ("f16", "bf16", "f32")
_MOST = 2  # pictures of a model; the tables below them have everything
_LEAST = 3  # settings that make a picture
_DIM = 0.55  # opacity of what is not on the front
_SHARE = 0.5  # of the models, at least, that a setting over all of them was measured on


class Spot(NamedTuple):
    """A mark: a setting, where it is, and what its row in the table says more."""

    name: str
    bits: float
    kld: Estimate
    family: Family
    more: tuple[str, ...] = ()


def of_model(model: Model) -> list[Chart]:
    """Pictures of a model, stored caches first, then the way of scoring with most settings."""
    ways: dict[tuple[object, ...], dict[tuple[int, str], list[Cell]]] = {}
    for c in model.ranked:
        if "mean_kld" in c.metrics:
            way = (c.engine, c.simulated, c.top_k, c.via, c.scored)
            ways.setdefault(way, {}).setdefault((c.context, c.text_sha256), []).append(c)

    def settings(group: list[Cell]) -> int:
        return len({c.setting for c in group})

    best = [
        max(groups.values(), key=lambda g: (settings(g), g[0].context, g[0].text_sha256))
        for groups in ways.values()
    ]
    shown = [g for g in best if settings(g) >= _LEAST]
    shown.sort(key=lambda g: (entries.way(g[0]), -settings(g), texts.scoring(g[0])))
    shown = shown[:_MOST]
    return [_of_cells(group, f"front{i}", model.label) for i, group in enumerate(shown)]


def _of_cells(group: list[Cell], name: str, label: str) -> Chart:
    first = group[0]
    spots = [
        Spot(texts.setting(c), c.bits, c.metrics["mean_kld"], family(c), (entries.verdict(c),))
        for c in group
    ]
    way = f"{texts.scoring(first)}, at {fmt.count(first.context)} tokens of context"
    caption = (
        "The step line is the Pareto front: no other setting measured this way is smaller and "
        "closer to the 16-bit cache than those on it. Whiskers are 95 % intervals."
    )
    if first.top_k:
        caption += " Each value is a lower bound."
    return _chart(
        spots, name, title=f"Bits against drift: {way}", caption=caption, of=label,
        header=("KV type", "engine of the type", "bits", "mean KLD [low, high]", "verdict"),
    )  # fmt: skip


def of_all(found: Sequence[Model]) -> Chart | None:
    """Every setting's median over the models; None with fewer than two models or three settings.

    A model counts once a setting, with the context that it was worst at.
    """
    groups: dict[tuple[str, bool], dict[str, Cell]] = {}
    for model in found:
        for cell in model.ranked:
            if cell.top_k or "mean_kld" not in cell.metrics:
                continue
            mine = groups.setdefault((cell.setting, cell.simulated), {})
            if model.id not in mine or entries.kld(cell) > entries.kld(mine[model.id]):
                mine[model.id] = cell
    most = max(map(len, groups.values()), default=0)
    kept = [list(g.values()) for g in groups.values() if len(g) >= _SHARE * most]
    if most < 2 or len(kept) < _LEAST:
        return None
    spots = [_over(cells) for cells in kept]
    caption = (
        "Each mark is the median over the models that a setting was measured on (half of them at "
        "least), each model at the context it was worst at; whiskers reach from the lowest end of "
        "any model's interval to the highest. The step line is the Pareto front. * simulated."
    )
    return _chart(
        spots, "overall", title="Bits against drift, over all models", caption=caption,
        of=fmt.plural(len(found), "model"),
        header=("KV type", "engine of the type", "bits", "mean KLD, median [lowest, highest]",
                "models"),
    )  # fmt: skip


def _over(cells: list[Cell]) -> Spot:
    found = [c.metrics["mean_kld"] for c in cells]
    ends = [v for e in found for v in (e.low, e.value, e.high) if v is not None]
    middle = statistics.median(e.value for e in found)
    bits = statistics.median(c.bits for c in cells)
    spread = Estimate(middle, min(ends), max(ends))
    return Spot(texts.setting(cells[0]), bits, spread, family(cells[0]), (str(len(cells)),))


def family(cell: Cell) -> Family:
    """The family of a cell's K type, or of its V type where K is left at 16 bits."""
    name = cell.v_type if cell.k_type in _WIDE else cell.k_type
    return next((f for f in FAMILIES if name.startswith(f.prefixes)), OTHER)


def _chart(
    spots: list[Spot], name: str, *, title: str, caption: str, of: str, header: tuple[str, ...]
) -> Chart:
    spots = sorted(spots, key=lambda s: (s.bits, s.kld.value, s.name))
    front = [spots[i] for i in view.pareto([(s.bits, s.kld.value) for s in spots])]
    with canvas.style(f"nybble-{name}"):
        picture = _draw(spots, front, canvas.MARKED)
        picture.title, picture.caption = title, caption
        picture.summary = (
            f"Mean KLD against stored bits of {fmt.plural(len(spots), 'setting')} on {of}. "
            "No other one beats in both: " + "; ".join(map(_tip, front))
        )
        drawn = svg.inline(picture, f"chart-{name}")
    rows = [
        (s.name, s.family.name, fmt.bits(s.bits), fmt.kld_with_interval(s.kld), *s.more,
         "yes" if s in front else "")
        for s in spots
    ]  # fmt: skip
    return Chart(name, title, drawn, picture.summary, caption, (*header, "on the front"), rows)


def _draw(spots: list[Spot], front: list[Spot], theme: Theme) -> Picture:
    ends = [v for s in spots for v in _ends(s)]
    low, high = canvas.log_range(ends)
    figure = canvas.new_figure(4.6)
    found = Picture(figure)
    axes = figure.subplots()
    canvas.dress(axes, theme)
    canvas.log_axis(axes, "y", low, high)
    xs = [s.bits for s in spots]
    span = max(xs) - min(xs) or 1.0
    axes.set_xlim(min(xs) - 0.08 * span, max(xs) + 0.14 * span)
    axes.xaxis.set_major_locator(MaxNLocator(9, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(lambda value, _: fmt.tick(value))
    axes.set_xlabel("stored bits an element, scales included")
    axes.set_ylabel("mean KLD, nats (log scale)")
    legend(axes, [s.family for s in spots], theme)
    canvas.freeze(figure)
    steps = [(front[0].bits, high)]
    for spot in front:
        y = max(spot.kld.value, low)
        steps += [(spot.bits, steps[-1][1]), (spot.bits, y)]
    steps.append((axes.get_xlim()[1], steps[-1][1]))
    axes.plot(*zip(*steps, strict=True), color=theme.fg, linewidth=1.0, alpha=0.5, zorder=3)
    for spot in spots:
        _mark(found, axes, spot, spot in front, theme, (low, high))
    _names(axes, spots, front, steps, theme, (low, high))
    return found


def _mark(
    found: Picture, axes: Axes, spot: Spot, best: bool, theme: Theme, limits: tuple[float, float]
) -> None:
    alpha = 1.0 if best else _DIM
    low, high = _bar(spot, limits)
    axes.plot([spot.bits] * 2, [low, high], color=colour(spot.family, theme), linewidth=1.2,
              alpha=alpha, zorder=4)  # fmt: skip
    (mark,) = axes.plot(
        [spot.bits], [max(spot.kld.value, limits[0])], alpha=alpha, zorder=6 if best else 5,
        clip_on=False, linestyle="none", **style(spot.family, theme, 7.0 if best else 5.5),
    )  # fmt: skip
    found.tip(mark, _tip(spot))


def _names(
    axes: Axes,
    spots: list[Spot],
    front: list[Spot],
    steps: list[tuple[float, float]],
    theme: Theme,
    limits: tuple[float, float],
) -> None:
    """The front's names, and of the others those that find a place where there are few."""
    boxes = labels.along(axes, steps)
    boxes += labels.around(axes, [(s.bits, max(s.kld.value, limits[0])) for s in spots])

    def name(some: list[Spot], optional: bool) -> None:
        points = [(s.bits, max(s.kld.value, limits[0])) for s in some]
        bars = [_bar(s, limits) for s in some]
        kept = labels.beside_points(
            axes, points, [_short(s.name) for s in some], bars, theme, boxes, optional
        )
        boxes.extend(box for box in kept if box)

    name(front, optional=False)
    if len(spots) <= 2 * view.MANY:
        name([s for s in spots if s not in front], optional=True)


def _bar(spot: Spot, limits: tuple[float, float]) -> tuple[float, float]:
    ends = [min(max(v, limits[0]), limits[1]) for v in _ends(spot)]
    return min(ends), max(ends)


def _ends(spot: Spot) -> list[float]:
    return [v for v in (spot.kld.low, spot.kld.value, spot.kld.high) if v is not None]


def _short(name: str) -> str:
    """A type that K and V share is written once."""
    k, slash, rest = name.partition("/")
    same = slash and rest.startswith(k) and rest[len(k) : len(k) + 1] in ("", "\u00a0", "+", "-")
    return fmt.label(k + rest[len(k) :] if same else name)


def _tip(spot: Spot) -> str:
    value = fmt.kld_with_interval(spot.kld)
    return f"{spot.name} ({spot.family.name}): mean KLD {value}, {fmt.bits(spot.bits)} bits"
