"""Pictures of a plan and of its cost, as files for a README.

This module loads matplotlib; import it only where a picture is made.
"""

from __future__ import annotations

from pathlib import Path

from nybble.errors import NybbleError
from nybble.report import format as fmt
from nybble.report import plots
from nybble.report.charts import cost, memory
from nybble.results.plans import CostComparison, Plan


def save_memory(plan: Plan, path: str | Path, engine: str | None = None) -> None:
    """Write memory against context: an SVG that follows the page's light or dark, or a PNG.

    Args:
        plan: its fits need a `curve`.
        path: ends in .svg or .png; a PNG is on white.
        engine: whose fits; None for that of the first one that can be drawn.

    Raises:
        NybbleError: another ending, no fit that can be drawn, or the file cannot be written.
    """
    drawable = dict.fromkeys(f.engine for f in plan.fits if f.curve and not f.refused)
    what = f"nothing to draw: no KV setting of {engine or 'any engine'} has memory by context"
    nothing = NybbleError(
        fmt.clean(what), seen=fmt.clean(plan.model, 60), allowed=", ".join(drawable) or None
    )
    plots.save(
        path, "nybble-memory", lambda theme: memory.draw(plan, theme, engine), nothing, both=True
    )


def save_cost(found: CostComparison, path: str | Path) -> None:
    """Write cost against context: an SVG that follows the page's light or dark, or a PNG.

    Args:
        found: its `curve` is drawn.
        path: ends in .svg or .png; a PNG is on white.

    Raises:
        NybbleError: another ending, no cost by context, or the file cannot be written.
    """
    nothing = NybbleError(
        "nothing to draw: no option has a cost by context", seen=fmt.clean(found.model, 60)
    )
    plots.save(path, "nybble-cost", lambda theme: cost.draw(found, theme), nothing, both=True)
