"""Memory against context: how many tokens each KV setting leaves room for on the cards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.ticker import MaxNLocator

from nybble.report import format as fmt
from nybble.report.charts import canvas, labels, memory_lines
from nybble.report.charts.canvas import Picture, Theme
from nybble.report.charts.memory_lines import GIB, Line
from nybble.report.charts.plan_axes import (
    context_axis,
    down_to_axis,
    make_room,
    over_top,
    tokens,
)
from nybble.results.plans import Fit, Plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation

_DIM = 0.35  # opacity of what is not named
_BEYOND = 0.5  # opacity of a line above the limit
_TWIN = (0, (4, 4))  # dash of a line that lies on another one


def draw(plan: Plan, theme: Theme, engine: str | None = None) -> Picture | None:
    """One line a KV setting of one engine.

    Args:
        plan: fits without a `curve`, and refused ones, are left out.
        theme: colours.
        engine: whose fits; None for that of the first one that can be drawn.

    Returns:
        None without any line.
    """
    fits = [f for f in plan.fits if f.curve and not f.refused]
    fits = [f for f in fits if f.engine == (engine or fits[0].engine)]
    if not fits:
        return None
    fits.sort(key=lambda f: (-f.bytes_per_token, f.setting))
    limit = plan.budget / GIB if plan.budget is not None else None
    left, right = memory_lines.span(fits)
    top, far = memory_lines.upper(fits, limit, left, right)
    lines = [memory_lines.line(f, limit, left, right, top) for f in fits]
    known = memory_lines.named(plan, fits)
    figure = canvas.new_figure(3.9)
    picture = Picture(figure)
    axes = figure.subplots()
    canvas.dress(axes, theme)
    context_axis(axes, left, right)
    axes.set_ylim(0, top)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 4, 5, 10]))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    each = f", each of {fmt.count(plan.sequences)} sequences" if plan.sequences > 1 else ""
    axes.set_xlabel(f"tokens of context{each} (log scale)")
    axes.set_ylabel("memory, GiB")
    exits = sum(line.exit is not None and line.fit.setting in known for line in lines)
    axes.set_title(
        f"{fmt.clean(plan.model, 48)} in {fmt.clean(fits[0].engine, 14)}",
        fontsize=canvas.SIZE + 0.5, color=theme.fg, loc="left", fontweight="bold",
        pad=28 if exits > 3 else 18 if exits else 6,
    )  # fmt: skip
    canvas.freeze(figure)
    make_room(axes, [_name(x.fit) for x in lines if x.exit is None and x.fit.setting in known])
    _marks(picture, axes, plan, lines, known, limit, far, theme)
    _words(picture, plan, fits, known, limit)
    return picture


def _marks(
    picture: Picture,
    axes: Axes,
    plan: Plan,
    lines: Sequence[Line],
    known: set[str],
    limit: float | None,
    far: bool,
    theme: Theme,
) -> None:
    order = [x.fit.setting for x in lines if x.fit.setting in known]
    taken = [b for x in lines for b in labels.along(axes, list(zip(x.xs, x.ys, strict=True)))]
    dots: dict[int, str] = {}  # context -> colour
    ends: list[tuple[Line, str]] = []
    for i, line in enumerate(lines):
        fit, named = line.fit, line.fit.setting in known
        colour = theme.line(order.index(fit.setting)) if named else theme.muted
        twin = any(line.ys == x.ys for x in lines[:i])
        _curve(picture, axes, line, limit, colour, named, twin)
        if named:
            ends.append((line, colour))
        if limit is None or not memory_lines.met(fit) or fit.largest_context is None:
            continue
        (dot,) = axes.plot(
            [fit.largest_context], [limit], "o", color=colour, markersize=5.5 if named else 3.5,
            alpha=1.0 if named else _DIM, markeredgecolor=theme.bg, markeredgewidth=0.5, zorder=5,
            clip_on=False,
        )  # fmt: skip
        picture.tip(dot, f"{fmt.setting(fit.setting)}: {_said(fit)}")
        if named:
            dots[fit.largest_context] = colour
    below = _weights(picture, axes, plan, theme)
    if limit is not None:
        name = _limit(picture, axes, plan, limit, far, theme)
        spots = [(x, limit) for x in dots]
        if not far:
            labels.settle(name, [*taken, *below, *labels.around(axes, spots, 9)])
        down_to_axis(axes, spots, [tokens(c) for c in dots], list(dots.values()), theme, below)
    edge = 0.99 * axes.get_xlim()[1]
    right = [(x, c) for x, c in ends if x.exit is None and x.xs[-1] >= edge]
    if right:
        labels.at_line_ends(
            axes, [(x.xs[-1], x.ys[-1]) for x, _ in right], [_name(x.fit) for x, _ in right],
            [c for _, c in right], theme,
        )  # fmt: skip
    short = [x for x, _ in ends if x.exit is None and x.xs[-1] < edge]  # a joint would be long
    tips = [(x.xs[-1], x.ys[-1]) for x in short]
    labels.beside_points(
        axes, tips, [_name(x.fit) for x in short], [(y, y) for _, y in tips], theme, taken
    )
    up = [(x, c, x.exit) for x, c in ends if x.exit is not None]
    over_top(
        axes, [at for *_, at in up], [_name(x.fit) for x, *_ in up], [c for _, c, _ in up], theme
    )


def _curve(
    picture: Picture,
    axes: Axes,
    line: Line,
    limit: float | None,
    colour: str,
    named: bool,
    twin: bool,
) -> None:
    """A line, fainter where it is above the limit."""
    high = math.inf if limit is None else limit
    split = next((i for i, y in enumerate(line.ys) if y > high), len(line.ys))
    alpha, width = (1.0, 1.8) if named else (_DIM, 0.9)
    dash = _TWIN if twin else "-"
    (whole,) = axes.plot(
        line.xs[:split], line.ys[:split], color=colour, linewidth=width, alpha=alpha,
        linestyle=dash, zorder=3 if named else 2,
    )  # fmt: skip
    (rest,) = axes.plot(
        line.xs[max(0, split - 1) :], line.ys[max(0, split - 1) :], color=colour,
        linewidth=0.6 * width, alpha=alpha * _BEYOND, linestyle=dash, zorder=2,
    )  # fmt: skip
    for part in (whole, rest):
        picture.tip(part, f"{fmt.setting(line.fit.setting)}: {_said(line.fit)}")


def _limit(
    picture: Picture, axes: Axes, plan: Plan, limit: float, far: bool, theme: Theme
) -> Annotation:
    """The cards' line and its name; only a name at the top where the line is far above."""
    text = f"{_cards(plan)}, {fmt.size(limit * GIB)} usable"
    if not far:
        line = axes.axhline(limit, color=theme.fg, linewidth=1.0, linestyle=(0, (4, 3)), zorder=2.5)
        picture.tip(line, text)
    return axes.annotate(
        f"{text}, far above" if far else text,
        (0, axes.get_ylim()[1] if far else limit),
        xycoords=("axes fraction", "data"),
        xytext=(4, -10 if far else 3),
        textcoords="offset points",
        fontsize=canvas.SMALL + 0.5,
        color=theme.fg,
        zorder=6,
        bbox={"facecolor": theme.bg, "edgecolor": "none", "pad": 1} if far else None,
    )


def _weights(picture: Picture, axes: Axes, plan: Plan, theme: Theme) -> list[labels.Box]:
    """A quiet band that every setting shares; returns where its name is."""
    size = plan.weights_bytes / GIB
    if not size:
        return []
    band = axes.axhspan(0, size, color=theme.muted, alpha=0.11, linewidth=0, zorder=0)
    picture.tip(band, f"weights: {fmt.size(plan.weights_bytes)}")
    figure = axes.get_figure()
    assert figure is not None
    if band.get_window_extent().height < 1.2 * canvas.SMALL * figure.get_dpi() / 72:
        return []  # too thin for a name
    name = axes.annotate(
        f"weights, {fmt.size(plan.weights_bytes)}", (0, min(size, axes.get_ylim()[1])),
        xycoords=("axes fraction", "data"), xytext=(4, -1), textcoords="offset points",
        va="top", fontsize=canvas.SMALL, color=theme.muted,
    )  # fmt: skip
    return [labels.extent(name)]


def _cards(plan: Plan) -> str:
    assert plan.card is not None
    many = f"{fmt.count(plan.card.count)} x " if plan.card.count > 1 else ""
    return many + fmt.clean(plan.card.name, 32)


def _name(fit: Fit) -> str:
    return fmt.clean(fit.setting, 20)


def _said(fit: Fit) -> str:
    """`18.0 KiB a token, up to 73,472 tokens on the card`."""
    each = f"{fmt.size(fit.bytes_per_token)} a token"
    if fit.largest_context is None:
        return each
    if not fit.largest_context:
        return f"{each}, does not fit"
    why = "the card holds no more" if fit.limited_by == "card" else "the model's own longest"
    return f"{each}, up to {fmt.count(fit.largest_context)} tokens ({why})"


def _words(
    picture: Picture, plan: Plan, fits: Sequence[Fit], known: set[str], limit: float | None
) -> None:
    picture.title = "Memory against context"
    said = ["All of weights, KV cache and buffers." if plan.weights_bytes else "Without weights."]
    if any(memory_lines.met(f) for f in fits):
        said.append(
            "A dot is the longest context that fits, in units of 1,024 tokens; what is above the "
            "line of the cards does not run."
        )
    if any(f.limited_by == "model" for f in fits):
        said.append(f"The model's own longest context is {fmt.count(plan.context_length)} tokens.")
    if len(known) < len(fits):
        said.append("Named are the most useful settings; the others are dimmed.")
    out = sum(f.engine == fits[0].engine and f.refused is not None for f in plan.fits)
    if out:
        said.append(f"{fmt.plural(out, 'setting')} that the engine does not run left out.")
    picture.caption = " ".join(said)
    usable = f", {_cards(plan)} with {fmt.size(limit * GIB)} usable" if limit is not None else ""
    picture.summary = (
        f"Memory of {fmt.clean(plan.model, 60)} in {fmt.clean(fits[0].engine, 24)} by tokens of "
        f"context{usable}: "
        + "; ".join(f"{fmt.setting(f.setting)} {_said(f)}" for f in fits if f.setting in known)
    )
    contexts = [c for c in plan.contexts if any(c in f.memory for f in fits)]
    picture.header = (
        "KV setting", "bits", "bytes/token", "largest context", *(tokens(c) for c in contexts)
    )  # fmt: skip
    picture.rows = [
        (
            fmt.setting(f.setting),
            fmt.bits(f.bits),
            fmt.size(f.bytes_per_token),
            fmt.NONE if f.largest_context is None else fmt.count(f.largest_context),
            *(fmt.size(f.memory.get(c)) for c in contexts),
        )
        for f in fits
    ]
