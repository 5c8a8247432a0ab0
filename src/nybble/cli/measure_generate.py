"""`nybble measure --generate N`: where greedy answers part from the 16-bit cache's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nybble.cli import console

if TYPE_CHECKING:
    from nybble.scoring.generation.generate import Generated
    from nybble.scoring.generation.plan import PlannedLane


def run_generate(*, dry_run: bool, form: str | None, quiet: bool, **options: Any) -> int:
    """Run `nybble measure --generate`.

    Args:
        dry_run: only list what would be done.
        form: "json", "csv", "markdown" or None for tables.
        quiet: no progress on stderr.
        options: fields of GenerateRequest.

    Returns:
        The exit code: 1 if a setting failed.

    Raises:
        NybbleError: something in the request, the model or the text cannot be used.
    """
    from nybble.scoring.generation.generate import generate
    from nybble.scoring.generation.plan import plan_lanes
    from nybble.scoring.generation.request import GenerateRequest

    request = GenerateRequest(**options)
    if dry_run:
        _show_plan(plan_lanes(request), form)
        return 0
    with console.BarProgress(quiet) as progress:
        done = generate(request, progress)
        progress.stage("writing the report")
        report = _write_report(done)
    _show(done, report, form)
    for row in done.failed:
        click.echo(f"failed: {row.setting}: {row.error}", err=True)
    return 1 if done.failed else 0


def _write_report(done: Generated) -> Path:
    from nybble.report.generation import markdown
    from nybble.report.generation_html import generation_html
    from nybble.results.store import write_text

    write_text(done.folder / "generation.md", markdown(done.run))
    return write_text(done.folder / "generation.html", generation_html(done.run))


def _show(done: Generated, report: Path, form: str | None) -> None:
    from nybble.report.generation import LIMITS, csv_text, markdown, rich_tables
    from nybble.results.tasks import to_json
    from nybble.scoring.generation.generate import CELLS

    if form:
        text = {"json": to_json, "csv": csv_text, "markdown": markdown}[form](done.run)
        click.echo(text.rstrip("\n"))
        return
    out = console.out()
    for table in rich_tables(done.run):
        out.print(table)
        out.print()
    out.print(done.run.recommendation, style="bold", markup=False, highlight=False)
    for note in [LIMITS, *done.run.warnings]:
        out.print(f"note: {note}", markup=False, highlight=False)
    click.echo(f"\nreport:  {report}\nanswers: {done.folder / CELLS}")


def _show_plan(lanes: list[PlannedLane], form: str | None) -> None:
    console.planned(lanes, form, "answers to generate", {
        "KV type": lambda x: str(x.setting),
        "role": lambda x: str(x.role),
        "prompts": lambda x: str(x.prompts),
        "tokens": lambda x: f"{x.tokens:,}",
        "cache": lambda x: f"{x.cache_bytes / 2**20:.1f} MiB",
    })  # fmt: skip
