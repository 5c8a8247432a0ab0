"""Colours, sizes and drawing helpers shared by the pictures.

Pictures are drawn without pyplot: a bare `Figure` with an Agg canvas to measure text, saved as
SVG. `MARKED` draws with stand-in colours that `svg.py` turns into CSS variables, so that one
picture reads on a light and on a dark page; `PRINT` has the light colours themselves.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from nybble.report import format as fmt
from nybble.report.view import Limits
from nybble.results.records import Estimate

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation, Text

WIDTH = 7.6  # inches; the page shows 547 units at about 900 px, so 8 pt text reads as 13 px
SIZE = 8.0
SMALL = 7.0


@dataclass(frozen=True)
class Theme:
    """Colours by purpose; `series` repeats after its last."""

    fg: str
    muted: str
    grid: str
    bg: str
    safe: str
    degraded: str
    broken: str
    series: tuple[str, ...]

    def line(self, i: int) -> str:
        """Colour of the i-th setting or model."""
        return self.series[i % len(self.series)]


# Okabe and Ito's colour-blind-safe palette, without black and yellow, which vanish on one of
# the two backgrounds. https://jfly.uni-koeln.de/color/
PRINT = Theme(
    fg="#1b1f24",
    muted="#59636e",
    grid="#dfe3e8",
    bg="#ffffff",
    safe="#009e73",
    degraded="#e69f00",
    broken="#d55e00",
    series=("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"),
)
# The same hues, lighter: what report.css has for a dark page.
DARK = Theme(
    fg="#e6e9ed",
    muted="#9aa4af",
    grid="#2b3138",
    bg="#14171b",
    safe="#1fbf92",
    degraded="#f0b429",
    broken="#f0813a",
    series=("#4aa3df", "#f0813a", "#1fbf92", "#dc92bb", "#f0b429", "#8fd0f5"),
)
MARKED = Theme(
    fg="#010101",
    muted="#010102",
    grid="#010103",
    bg="#010104",
    safe="#010105",
    degraded="#010106",
    broken="#010107",
    series=tuple(f"#01011{i}" for i in range(6)),
)


def variables(theme: Theme) -> dict[str, str]:
    """A theme's colours by the name of their CSS variable."""
    names = ("fg", "muted", "grid", "bg", "safe", "degraded", "broken")
    found = {f"--{name}": str(getattr(theme, name)) for name in names}
    return found | {f"--s{i}": colour for i, colour in enumerate(theme.series)}


VARIABLES = {colour: f"var({name})" for name, colour in variables(MARKED).items()}


@dataclass
class Picture:
    """A drawn figure with the words and numbers that go with it.

    Attributes:
        figure: the drawing.
        title: heading.
        summary: what a screen reader says instead of the picture.
        caption: how to read it.
        header: column titles of the table of the same numbers.
        rows: that table.
        tips: tooltip by gid of a drawn mark.
    """

    figure: Figure
    title: str = ""
    summary: str = ""
    caption: str = ""
    header: tuple[str, ...] = ()
    rows: list[tuple[str, ...]] = field(default_factory=list)
    tips: dict[str, str] = field(default_factory=dict)

    def tip(self, artist: Artist, text: str) -> None:
        """Give a mark a tooltip."""
        gid = f"tip{len(self.tips)}"
        artist.set_gid(gid)
        self.tips[gid] = text


@contextmanager
def style(salt: str) -> Iterator[None]:
    """Our rcParams, restored afterwards. `$` in a name must not start mathematics.

    Text stays text in SVG, so a glyph that matplotlib's own font lacks is no loss.
    """
    params: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "font.family": ["DejaVu Sans"],  # wider than system fonts: what fits here fits there
        "font.size": SIZE,
        "text.parse_math": False,
        "axes.unicode_minus": False,
        "path.simplify": False,
    }
    with mpl.rc_context(params), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def new_figure(height: float) -> Figure:
    """A transparent figure of the common width that can measure text."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained", facecolor="none")
    FigureCanvasAgg(figure)
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.set(w_pad=0.06, h_pad=0.06, wspace=0.04, hspace=0.05)  # type: ignore[call-arg]
    return figure


def freeze(figure: Figure) -> None:
    """Lay the axes out for good, so that labels can be placed in their pixels."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def panels(figure: Figure, n: int, theme: Theme, share_x: bool = False) -> list[Axes]:
    """Up to three axes in a row, then more rows; y is shared, spare ones are removed."""
    columns = n if n <= 3 else 2
    lines = -(-n // columns)
    grid = figure.subplots(lines, columns, sharey=True, sharex=share_x, squeeze=False)
    flat = [a for line in grid for a in line]
    for spare in flat[n:]:
        spare.remove()
    for axes in flat[:n]:
        dress(axes, theme)
    return list(flat[:n])


def dress(axes: Axes, theme: Theme) -> None:
    """Quiet axes: no box, thin grid, muted ticks."""
    axes.set_facecolor("none")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(theme.muted)
    axes.spines["bottom"].set_linewidth(0.7)
    axes.tick_params(colors=theme.muted, labelcolor=theme.muted, length=0, labelsize=SMALL)
    axes.tick_params(axis="x", which="major", length=3, width=0.7)
    axes.grid(True, axis="y", color=theme.grid, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.xaxis.label.set_color(theme.fg)
    axes.yaxis.label.set_color(theme.fg)


def title(axes: Axes, text: str, theme: Theme) -> None:
    """What sets one panel apart from the next."""
    axes.set_title(text, fontsize=SIZE + 0.5, color=theme.fg, loc="left", fontweight="bold")


def plain_ticks(
    axes: Axes, which: str, values: Sequence[float], write: Callable[[float], str]
) -> None:
    """Exactly these ticks, written by `write`; no minor ones."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(FixedLocator(list(values)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))


def log_axis(axes: Axes, which: str, low: float, high: float) -> None:
    """A log axis from low to high: ticks at powers of ten, and between where they are few."""
    if which == "y":
        axes.set_yscale("log")
        axes.set_ylim(low, high)
    else:
        axes.set_xscale("log")
        axes.set_xlim(low, high)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if high < 40 * low else (1, 3) if high < 1000 * low else (1,)
    ticks = [s * 10.0**p for p in powers for s in steps]
    plain_ticks(axes, which, [t for t in ticks if low <= t <= high], fmt.tick)


def log_range(values: Sequence[float]) -> tuple[float, float]:
    """Limits of a log axis around the positive values."""
    positive = [v for v in values if v > 0]
    if not positive:
        return 1e-5, 1.0
    return min(positive) / 1.8, max(positive) * 1.8


def level(picture: Picture, axes: Axes, at: Estimate, name: str, theme: Theme) -> Annotation:
    """A dashed line across, named at its left end; returns the name."""
    text = f"{name} {fmt.kld(at.value)}"
    line = axes.axhline(at.value, color=theme.muted, linewidth=0.9, linestyle=(0, (4, 3)))
    picture.tip(line, f"{name}: mean KLD {fmt.kld(at.value)}")
    return axes.annotate(
        text,
        (0, at.value),
        xycoords=("axes fraction", "data"),
        xytext=(4, 3),
        textcoords="offset points",
        fontsize=SMALL,
        color=theme.muted,
    )


def bands(axes: Axes, limits: Limits, low: float, high: float, theme: Theme) -> list[Text]:
    """Faint safe, degraded and broken bands; returns their names, drawn at the right edge."""
    names: list[Text] = []
    parts = (
        ("safe", low, limits.safe, theme.safe),
        ("degraded", limits.safe, limits.broken, theme.degraded),
        ("broken", limits.broken, high, theme.broken),
    )
    for label, start, end, colour in parts:
        start, end = max(start, low), min(end, high)
        if end <= start:
            continue
        axes.axhspan(start, end, color=colour, alpha=0.09, linewidth=0, zorder=0)
        names.append(
            axes.annotate(
                label,
                (1, end),
                xycoords=("axes fraction", "data"),
                xytext=(-4, -3),
                textcoords="offset points",
                ha="right",
                va="top",
                fontsize=SMALL,
                color=theme.muted,
            )
        )
    return names
