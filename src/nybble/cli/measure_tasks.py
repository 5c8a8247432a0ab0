"""`nybble measure --tasks`: does the answer survive, at every task and length?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from nybble.cli import console
from nybble.errors import NybbleError
from nybble.scoring.request import MeasureRequest

if TYPE_CHECKING:
    from nybble.scoring.tasks.measure import PlannedTask, TaskResult


def run_tasks(
    measured: MeasureRequest, tasks: str, queries: int, *, dry_run: bool,
    form: str | None, quiet: bool,
) -> int:  # fmt: skip
    """Run `nybble measure --tasks`.

    Args:
        measured: the options that measurements share; its contexts are the lengths.
        tasks: names and at most one file with commas between; "all" for all names.
        queries: most questions of one context.
        dry_run: only list what would be asked.
        form: "json", "csv", "markdown" or None for tables.
        quiet: no progress on stderr.

    Returns:
        The exit code: 1 if a setting failed.

    Raises:
        NybbleError: something in the request or the model cannot be used.
    """
    from nybble.scoring.tasks.measure import measure_tasks, plan_tasks
    from nybble.scoring.tasks.request import TaskRequest

    names, own = _named(tasks)
    request = TaskRequest(measured, names, queries, own)
    if dry_run:
        _show_plan(plan_tasks(request), form)
        return 0
    with console.BarProgress(quiet) as progress:
        result = measure_tasks(request, progress)
        progress.stage("writing the report")
        report = _write_report(result)
    _show(result, report, form)
    for cell in result.failed:
        click.echo(f"failed: {cell.setting} at {cell.length:,} tokens: {cell.error}", err=True)
    return 1 if result.failed else 0


def _named(text: str) -> tuple[tuple[str, ...], Path | None]:
    """Names of tasks, and the file of the user's own."""
    from nybble.scoring.tasks.own import SUFFIX
    from nybble.scoring.tasks.registry import TASKS

    parts = console.names(text) or ()
    files = [part for part in parts if part.lower().endswith(SUFFIX)]
    if len(files) > 1:
        raise NybbleError("one file of questions at a time", seen=", ".join(files),
                          hint='"task" in a line names its task')  # fmt: skip
    names = tuple(part for part in parts if part not in files)
    own = Path(files[0]) if files else None
    return tuple(TASKS) if names == ("all",) else names, own


def _write_report(result: TaskResult) -> Path:
    from nybble.report.tasks import markdown
    from nybble.report.tasks_html import tasks_html
    from nybble.results.store import write_text

    write_text(result.folder / "tasks.md", markdown(result.run))
    return write_text(result.folder / "tasks.html", tasks_html(result.run))


def _show(result: TaskResult, report: Path, form: str | None) -> None:
    from nybble.report.tasks import csv_text, markdown, rich_tables
    from nybble.results.tasks import to_json

    if form:
        text = {"json": to_json, "csv": csv_text, "markdown": markdown}[form](result.run)
        click.echo(text.rstrip("\n"))
        return
    out = console.out()
    for table in rich_tables(result.run, out.width):
        out.print(table)
        out.print()
    for sentence in result.run.conclusions:
        out.print(sentence, style="bold", markup=False, highlight=False)
    for warning in result.run.warnings:
        out.print(f"note: {warning}", markup=False, highlight=False)
    click.echo(f"\nreport:  {report}\nanswers: {result.folder / 'tasks'}")


def _show_plan(cells: list[PlannedTask], form: str | None) -> None:
    console.planned(cells, form, "tasks to ask", {
        "task": lambda c: str(c.task),
        "tokens": lambda c: f"{c.length:,}",
        "contexts": lambda c: str(c.contexts),
        "questions": lambda c: str(c.contexts * c.queries),
        "settings": lambda c: str(c.settings),
        "caches": lambda c: f"{c.cache_bytes / 2**20:.1f} MiB",
    })  # fmt: skip
