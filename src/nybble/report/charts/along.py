"""KLD along the context: whether drift grows with the tokens already in the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.ticker import MaxNLocator

from nybble.report import format as fmt
from nybble.report import view
from nybble.report.charts import canvas, labels
from nybble.report.charts.canvas import Picture, Theme
from nybble.results.records import Measurement, Row, Slice

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from nybble.report.view import Group

_DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))
_DIM = 0.35  # opacity of what is not named


def draw(m: Measurement, theme: Theme) -> Picture | None:
    """One panel a model and context, one line a setting."""
    groups = [g for g in view.groups(m) if any(len(_parts(r)) > 1 for r in g.done)]
    if not groups:
        return None
    colours = view.colours(m)
    ends = [v for g in groups for r in g.done for _, s in _parts(r) for v in _range(s)]
    low, high = canvas.log_range(ends)
    lines = 1 if len(groups) <= 2 else -(-len(groups) // 2)
    figure = canvas.new_figure(3.6 if lines == 1 else 3.0 * lines)
    picture = Picture(figure)
    panels = canvas.panels(figure, len(groups), theme)
    for axes, group in zip(panels, groups, strict=True):
        canvas.log_axis(axes, "y", low, high)
        middles = [x for r in group.done for x, _ in _parts(r)]
        margin = 0.03 * (max(middles) - min(middles)) or 1.0
        axes.set_xlim(min(middles) - margin, max(middles) + margin)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.xaxis.set_major_formatter(lambda value, _: fmt.count(value))
        axes.set_xlabel("tokens of context before the scored token")
        if group.title:
            canvas.title(axes, group.title, theme)
    panels[0].set_ylabel("mean KLD, nats (log scale)")
    canvas.freeze(figure)
    _room_for_labels(panels, groups)
    for axes, group in zip(panels, groups, strict=True):
        _panel(picture, axes, group, colours, theme, low)
    _words(picture, groups)
    return picture


def _room_for_labels(panels: list[Axes], groups: list[Group]) -> None:
    """Narrow the frozen axes so that the labels beside the lines fit on the canvas."""
    longest = max(len(fmt.clean(s, 16)) for g in groups for s in view.named(g))
    figure = panels[0].get_figure()
    assert figure is not None
    room = (18 + 0.66 * canvas.SIZE * longest) / 72 / canvas.WIDTH  # 0.66 em a letter
    for axes in panels:
        box = axes.get_position()
        axes.set_position((box.x0, box.y0, box.width - room, box.height))


def _panel(
    picture: Picture,
    axes: Axes,
    group: Group,
    colours: dict[str, int],
    theme: Theme,
    low: float,
) -> None:
    ends, texts, used = [], [], []
    known = view.named(group)
    for row in sorted(group.done, key=lambda r: r.setting in known):  # named ones on top
        parts = _parts(row)
        if not parts:
            continue
        number = colours[row.setting]
        named = row.setting in known
        colour = theme.line(number) if named else theme.muted
        xs = [x for x, _ in parts]
        ys = [max(s.metrics["mean_kld"].value, low) for _, s in parts]
        bounds = [_range(s) for _, s in parts]
        alpha = 1.0 if named else _DIM
        if named:
            axes.fill_between(
                xs,
                [max(min(b), low) for b in bounds],
                [max(max(b), low) for b in bounds],
                color=colour,
                alpha=0.16,
                linewidth=0,
            )
        dash = _DASHES[number // len(theme.series) % len(_DASHES)]
        width = 1.6 if named else 0.9
        axes.plot(xs, ys, color=colour, linewidth=width, linestyle=dash, alpha=alpha)
        for (x, part), y in zip(parts, ys, strict=True):
            (mark,) = axes.plot(
                [x], [y], "o", color=colour, markersize=3.6, alpha=alpha, clip_on=False
            )
            picture.tip(
                mark,
                f"{fmt.setting(row.setting)}, tokens {fmt.clean(part.name, 30)}: mean KLD "
                f"{fmt.kld_with_interval(part.metrics['mean_kld'])}",
            )
        if not named:
            continue
        ends.append((xs[-1], ys[-1]))
        texts.append(fmt.clean(row.setting, 16))
        used.append(colour)
    labels.at_line_ends(axes, ends, texts, used, theme)


def _parts(row: Row) -> list[tuple[float, Slice]]:
    found = [(view.middle(s), s) for s in row.by_position if "mean_kld" in s.metrics]
    return sorted(((x, s) for x, s in found if x is not None), key=lambda pair: pair[0])


def _range(part: Slice) -> list[float]:
    found = part.metrics["mean_kld"]
    return [v for v in (found.low, found.value, found.high) if v is not None]


def _words(picture: Picture, groups: list[Group]) -> None:
    picture.title = "KLD along the context"
    known = [s for g in groups for r in g.done for _, s in _parts(r)]
    shaded = any(len(_range(s)) == 3 for s in known)
    shade = " Shading is the 95 % interval of each stretch." if shaded else ""
    picture.caption = (
        f"Each dot is the mean over a stretch of positions.{shade}{labels.dimmed(groups)}"
    )
    said = []
    for group in groups:
        named = view.named(group)
        for row in group.done:
            parts = _parts(row)
            if parts and row.setting in named:
                first, last = (parts[i][1].metrics["mean_kld"].value for i in (0, -1))
                said.append(
                    f"{group.title + ', ' if group.title else ''}{fmt.setting(row.setting)} "
                    f"from {fmt.kld(first)} to {fmt.kld(last)}"
                )
    picture.summary = "Mean KLD by position, first to last stretch: " + "; ".join(said)
    picture.header = ("KV type", "tokens", "mean KLD [low, high]", "same top ↑", "flips ↓")
    if len(groups) > 1:
        picture.header = ("group", *picture.header)
    picture.rows = [
        (
            *((group.title,) if len(groups) > 1 else ()),
            fmt.setting(row.setting),
            fmt.clean(part.name, 30),
            fmt.kld_with_interval(part.metrics["mean_kld"]),
            *(
                fmt.percent(part.metrics[n].value) if n in part.metrics else fmt.NONE
                for n in ("same_top", "flips")
            ),
        )
        for group in groups
        for row in group.done
        for _, part in _parts(row)
    ]
