"""A run of long-context tasks as one HTML file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nybble.report import format as fmt
from nybble.report import tasks as tables
from nybble.report.describe import Entry
from nybble.report.page import Page, drawn, render
from nybble.results.tasks import TaskCell, TaskRun, to_json

if TYPE_CHECKING:
    from nybble.report.plots import Chart

_LEFT = ("task", "by", "KV type")
_DARKEST = 70  # percent of the colour where every question is lost


@dataclass(frozen=True)
class _HeatCell:
    text: str
    lost: int  # percent of colour


@dataclass(frozen=True)
class _HeatRow:
    task: str
    length: str
    cells: list[_HeatCell]


@dataclass(frozen=True)
class _Heat:
    title: str
    header: tuple[str, ...]
    rows: list[_HeatRow]


def tasks_html(run: TaskRun) -> str:
    """The page of a run."""
    name = fmt.clean(run.model.name, 120)
    page = Page(
        id="tasks",
        json=to_json(run),
        title=f"{name}: long-context tasks",
        eyebrow="long-context tasks with a quantized KV cache",
        name=name,
        sub=f"{tables.headline(run).partition(' · ')[2]} · {fmt.clean(run.created, 40)}",
        how=_how(run),
        how_title="How they were asked",
        setup=_entries({**run.versions, **run.hardware, "schema": run.schema_version}),
        warnings=[fmt.clean(w) for w in run.warnings],
        command=fmt.clean(run.command).split(),
        version=fmt.clean(run.versions.get("nybble", ""), 40),
        styles=("tasks.css",),
    )
    answers, changes = tables.grid(run), tables.changes(run)
    return render(
        "tasks.html.j2", page,
        conclusions=[fmt.clean(s) for s in run.conclusions],
        answers=answers,
        changes=changes,
        failures=tables.failures(run),
        glossary=[Entry(*pair) for pair in tables.GLOSSARY],
        chart=drawn(_chart(run)),
        heat=_heat(run),
        left=_LEFT,
        words=(*tables.FIRST, *changes.header),
        tasks=_tasks(run),
    )  # fmt: skip


def _chart(run: TaskRun) -> Chart | None:
    # Imported here: the plotting library takes half a second.
    from nybble.report.charts import canvas, svg, tasks
    from nybble.report.plots import Chart

    with canvas.style("nybble-tasks"):
        p = tasks.draw(run, canvas.MARKED)
        if p is None:
            return None
        svg_text = svg.inline(p, "chart-tasks")
        return Chart("change", p.title, svg_text, p.summary, p.caption, p.header, p.rows)


def _heat(run: TaskRun) -> list[_Heat]:
    """Every candidate's table by depth; none where nothing was asked by depth."""
    deep = [c for c in run.cells if c.depth and c.role != "floor"]
    columns = sorted({c.depth for c in deep}, key=lambda d: float(d.split("-")[0]))
    found = []
    for setting in dict.fromkeys(c.setting for c in deep):
        cells = {(c.task, c.length, c.depth): c for c in deep if c.setting == setting}
        rows = [
            _HeatRow(
                fmt.clean(task, 30), fmt.count(length),
                [_heat_cell(cells.get((task, length, d))) for d in columns],
            )
            for task, length in tables.places(run)
            if any((task, length, d) in cells for d in columns)
        ]  # fmt: skip
        found.append(_Heat(fmt.setting(setting), ("task", "tokens", *columns), rows))
    return found


def _heat_cell(cell: TaskCell | None) -> _HeatCell:
    if cell is None or not cell.n_queries:
        return _HeatCell(fmt.NONE, 0)
    found = tables.tested(cell)
    text = fmt.percent(found.value if found else None)
    lost = f" −{cell.lost}" if cell.lost else ""
    return _HeatCell(text + lost, round(_DARKEST * cell.lost / cell.n_queries))


def _tasks(run: TaskRun) -> list[Entry]:
    named = run.protocol.get("tasks")
    found = [t for t in named if isinstance(t, dict)] if isinstance(named, list) else []
    return [
        Entry(
            fmt.clean(t.get("name", ""), 40),
            fmt.clean(t.get("title", ""), 200)
            + (f". In the manner of {fmt.clean(t['source'], 200)}" if t.get("source") else ""),
        )
        for t in found
    ]


def _how(run: TaskRun) -> list[Entry]:
    m = run.model
    found = {
        "file": f"{m.file} ({fmt.size(m.size_bytes)})",
        "sha256": m.sha256,
        "weights": f"{m.scored_weights} (shipped as {m.shipped_weights})",
        "framing": m.framing,
        "sliding window": m.sliding_window or "none",
    }
    plain = {
        k: ", ".join(map(str, v)) if isinstance(v, list) else v
        for k, v in run.protocol.items()
        if k not in ("tasks", "framing")
    }
    return _entries({**found, **plain})


def _entries(values: dict[str, Any]) -> list[Entry]:
    return [
        Entry(fmt.clean(k, 40).replace("_", " "), fmt.clean("unknown" if v is None else v, 300))
        for k, v in values.items()
    ]
