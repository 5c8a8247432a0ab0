"""Pictures of free generation: answers still the same, and KLD along the answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nybble.report import format as fmt
from nybble.report import generation as tables
from nybble.report.charts import canvas, labels
from nybble.report.charts.canvas import Picture, Theme
from nybble.results.records import Estimate
from nybble.results.tasks import Divergence, GenerationRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))


def _shown(run: GenerationRun) -> list[Divergence]:
    """Candidates and the noise floor, as far as they have numbers."""
    rows = [r for r in run.rows if r.role in ("candidate", "floor") and r.status == "done"]
    return [r for r in rows if r.first_at]


def _colour(rows: Sequence[Divergence], row: Divergence, theme: Theme) -> str:
    candidates = [r for r in rows if r.role == "candidate"]
    return theme.line(candidates.index(row)) if row in candidates else theme.muted


def _dash(rows: Sequence[Divergence], row: Divergence, theme: Theme) -> Any:
    candidates = [r for r in rows if r.role == "candidate"]
    if row not in candidates:
        return _DASHES[2]
    return _DASHES[candidates.index(row) // len(theme.series) % len(_DASHES)]


def _end(row: Divergence) -> str:
    return "noise floor" if row.role == "floor" else fmt.clean(row.setting, 16)


def survival(run: GenerationRun, theme: Theme) -> Picture | None:
    """Share of answers that are still the 16-bit cache's, by place."""
    rows, most = _shown(run), tables.limit(run)
    if not rows or most < 2:
        return None
    figure = canvas.new_figure(3.4)
    picture = Picture(figure)
    (axes,) = canvas.panels(figure, 1, theme)
    _along(axes, most)
    axes.set_ylim(-0.03, 1.03)
    canvas.plain_ticks(axes, "y", [0, 0.25, 0.5, 0.75, 1], lambda v: f"{v:.0%}")
    axes.set_ylabel("prompts with the same answer so far")
    canvas.freeze(figure)
    _room(axes, rows)
    ends, texts, used = [], [], []
    for row in rows:
        xs, ys = _steps(row, most)
        colour = _colour(rows, row, theme)
        (line,) = axes.plot(xs, ys, color=colour, linewidth=1.6, drawstyle="steps-post",
                            linestyle=_dash(rows, row, theme))  # fmt: skip
        picture.tip(line, f"{tables.name(row)}: first difference {tables.first(row, most)}")
        ends.append((float(most), ys[-1]))
        texts.append(_end(row))
        used.append(colour)
    labels.at_line_ends(axes, ends, texts, used, theme)
    picture.title = "Answers that have not parted yet"
    picture.caption = (
        "Share of prompts whose greedy answer is still that of the 16-bit cache, token for token. "
        "The dotted line is 16-bit rounding alone (bf16 against f16)."
    )
    picture.summary = "Median place of the first difference: " + "; ".join(
        f"{tables.name(r)} {tables.first(r, most)}" for r in rows
    )
    picture.header = ("KV type", "prompts", "first difference of each prompt, 0 for none")
    picture.rows = [
        (tables.name(r), str(r.n_prompts), ", ".join(map(fmt.count, r.first_at))) for r in rows
    ]
    return picture


def _steps(row: Divergence, most: int) -> tuple[list[float], list[float]]:
    """Where the share of equal answers falls, and to what."""
    n = len(row.first_at)
    falls = sorted(f for f in row.first_at if f > 0)
    xs = [1.0, *map(float, falls), float(most)]
    ys = [1.0, *(1 - (i + 1) / n for i in range(len(falls)))]
    return xs, [*ys, ys[-1]]


def along(run: GenerationRun, theme: Theme) -> Picture | None:
    """Mean KLD by place in the 16-bit answer."""
    rows, most = _shown(run), tables.limit(run)
    rows = [r for r in rows if len(_points(r)) > 1]
    if not rows:
        return None
    bounds = [v for r in rows for _, e, _ in _points(r) for v in (e.low, e.value, e.high)]
    low, high = canvas.log_range([v for v in bounds if v is not None])
    figure = canvas.new_figure(3.6)
    picture = Picture(figure)
    (axes,) = canvas.panels(figure, 1, theme)
    _along(axes, most)
    canvas.log_axis(axes, "y", low, high)
    axes.set_ylabel("mean KLD, nats (log scale)")
    canvas.freeze(figure)
    _room(axes, rows)
    ends, texts, used = [], [], []
    for row in rows:
        found = _points(row)
        xs, ys = [x for x, _, _ in found], [max(e.value, low) for _, e, _ in found]
        colour = _colour(rows, row, theme)
        axes.fill_between(
            xs, [max(low, e.value if e.low is None else e.low) for _, e, _ in found],
            [max(low, e.value if e.high is None else e.high) for _, e, _ in found],
            color=colour, alpha=0.14, linewidth=0,
        )  # fmt: skip
        axes.plot(xs, ys, color=colour, linewidth=1.6,
                  linestyle=_dash(rows, row, theme))  # fmt: skip
        for (x, e, key), y in zip(found, ys, strict=True):
            (mark,) = axes.plot([x], [y], "o", color=colour, markersize=3.6, clip_on=False)
            picture.tip(
                mark, f"{tables.name(row)}, tokens {key}: mean KLD {fmt.kld_with_interval(e)}"
            )
        ends.append((xs[-1], ys[-1]))
        texts.append(_end(row))
        used.append(colour)
    labels.at_line_ends(axes, ends, texts, used, theme)
    picture.title = "Error along the answer"
    picture.caption = (
        "KLD against the 16-bit cache where both read the 16-bit answer, everything before it "
        "stored as the setting says. Each dot is the mean over a stretch of places; shading is its "
        "95 % interval over prompts."
    )
    picture.summary = "Slope of log KLD over log place: " + "; ".join(
        f"{tables.name(r)} {tables.number(r.trend)}" for r in rows
    )
    picture.header = ("KV type", "tokens", "mean KLD [low, high]")
    picture.rows = [
        (tables.name(r), key, fmt.kld_with_interval(e)) for r in rows for _, e, key in _points(r)
    ]
    return picture


def _points(row: Divergence) -> list[tuple[float, Estimate, str]]:
    """Middle of every stretch (geometric, as the axis is), its mean, its name."""
    found = []
    for key, estimate in tables.by_number(row.kld_along).items():
        start, _, stop = key.partition("-")
        if start.isdecimal() and stop.isdecimal():
            found.append(((int(start) * int(stop)) ** 0.5, estimate, fmt.clean(key, 30)))
    return found


def _along(axes: Axes, most: int) -> None:
    """A log axis of places with ticks that double twice."""
    axes.set_xscale("log")
    axes.set_xlim(1, most)
    ticks = [float(4**i) for i in range(7) if 4**i <= most]
    canvas.plain_ticks(axes, "x", ticks, fmt.count)
    axes.set_xlabel("generated tokens (log scale)")


def _room(axes: Axes, rows: Sequence[Divergence]) -> None:
    """Narrow the frozen axes so that the labels beside the lines fit on the canvas."""
    longest = max(len(_end(r)) for r in rows)
    room = (18 + 0.66 * canvas.SIZE * longest) / 72 / canvas.WIDTH  # 0.66 em a letter
    box = axes.get_position()
    axes.set_position((box.x0, box.y0, box.width - room, box.height))
