"""How the families of KV types look in a picture, and the legend that names them."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from matplotlib.lines import Line2D

from nybble.report.charts import canvas
from nybble.report.charts.canvas import Theme
from nybble.report.charts.families import FAMILIES, OTHER, Family

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def colour(of: Family, theme: Theme) -> str:
    """Of a family's marks and bars."""
    return theme.line(of.colour) if isinstance(of.colour, int) else str(getattr(theme, of.colour))


def style(of: Family, theme: Theme, size: float) -> dict[str, Any]:
    """Matplotlib's options of a mark, `size` points wide."""
    shade = colour(of, theme)
    return {
        "marker": of.marker,
        "markersize": size * (1.5 if of.marker == "*" else 0.9 if of.marker == "D" else 1.0),
        "color": shade,
        "markerfacecolor": theme.bg if of.hollow else shade,
        "markeredgecolor": shade if of.hollow else theme.bg,
        "markeredgewidth": 1.3 if of.hollow else 0.5,
    }


def legend(axes: Axes, families: Collection[Family], theme: Theme) -> None:
    """Families above the axes, in two lines at most."""
    shown = [f for f in (*FAMILIES, OTHER) if any(f is x for x in families)]
    handles = [
        Line2D([], [], linestyle="none", label=f.name, **style(f, theme, 6.5)) for f in shown
    ]
    figure = axes.get_figure()
    assert figure is not None
    columns = len(shown) if len(shown) <= 6 else -(-len(shown) // 2)
    figure.legend(
        handles=handles, loc="outside upper left", ncols=columns, frameon=False,
        fontsize=canvas.SIZE, labelcolor=theme.fg, handletextpad=0.2, columnspacing=1.6,
    )  # fmt: skip
