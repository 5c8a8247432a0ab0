"""Right answers by KV setting, as a picture for the page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nybble.report import format as fmt
from nybble.report import rag_table as table
from nybble.report.charts import canvas, svg
from nybble.report.charts.canvas import Picture, Theme

if TYPE_CHECKING:
    from nybble.report.plots import Chart
    from nybble.results.rag import RagRow, RagRun
    from nybble.results.records import Estimate

_KEY = "rag-answers"


def chart(run: RagRun) -> Chart | None:
    """Two panels, answers that are right and those that cite it; None without a finished row."""
    from nybble.report.plots import Chart

    rows = [r for r in run.rows if r.status == "done" and r.accuracy is not None]
    if not rows:
        return None
    with canvas.style(f"nybble-{_KEY}"):
        picture = _draw(rows, canvas.MARKED)
        return Chart(_KEY, picture.title, svg.inline(picture, f"chart-{_KEY}"), picture.summary,
                     picture.caption, picture.header, picture.rows)  # fmt: skip


def _draw(rows: list[RagRow], theme: Theme) -> Picture:
    figure = canvas.new_figure(0.9 + 0.28 * len(rows))
    picture = Picture(figure)
    panels = canvas.panels(figure, 2, theme)
    for panel, name in zip(panels, ("right", "cites a source that answers"), strict=True):
        panel.grid(False, axis="y")
        panel.grid(True, axis="x", color=theme.grid, linewidth=0.7)
        panel.set_xlim(-0.02, 1.02)
        canvas.plain_ticks(panel, "x", [0, 0.25, 0.5, 0.75, 1], lambda v: f"{100 * v:.0f}%")
        canvas.title(panel, name, theme)
    for at, row in enumerate(rows):
        for panel, estimate in zip(panels, (row.accuracy, row.cites_source), strict=True):
            if estimate is None:
                continue
            colour = theme.muted if row.role != "candidate" else theme.line(0)
            low, high = _range(estimate)
            panel.plot([low, high], [at, at], color=colour, linewidth=1.6, alpha=0.5)
            (mark,) = panel.plot([estimate.value], [at], "o", color=colour, markersize=5.5)
            picture.tip(mark, f"{table.setting(row)}: {table.share(estimate)}")
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    panels[0].set_yticks(range(len(rows)), [fmt.label(r.setting) for r in rows])
    panels[0].tick_params(axis="y", labelcolor=theme.fg, labelsize=canvas.SIZE)
    picture.title = "Right answers, right citations"
    picture.caption = ("Shares of the same questions; lines are 95 % intervals over documents. "
                       "They overlap more than the answers differ, since all settings share the "
                       "questions: see the change in the table.")  # fmt: skip
    picture.summary = "Share of right answers: " + "; ".join(
        f"{table.setting(r)} {table.share(r.accuracy)}" for r in rows
    )
    picture.header = ("KV type", "right", "cites it")
    picture.rows = [(table.setting(r), table.share(r.accuracy), table.share(r.cites_source))
                    for r in rows]  # fmt: skip
    return picture


def _range(estimate: Estimate) -> tuple[float, float]:
    low = estimate.value if estimate.low is None else estimate.low
    return low, estimate.value if estimate.high is None else estimate.high
