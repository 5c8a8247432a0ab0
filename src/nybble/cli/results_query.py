"""`nybble results query`: a result base as a table, or asked in SQL."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from nybble.cli import console
from nybble.results.base.base import Base, open_base
from nybble.results.base.views import Table

BASE = Path("nybble-results")
base_option = click.option(
    "--base", type=click.Path(path_type=Path), default=BASE, show_default=True,
    help="Folder of runs, at any depth up to six.",
)  # fmt: skip
_MOST = 200  # lines of the table
_EXAMPLES = """\b
Examples:
  nybble results query
  nybble results query "select model, setting, mean_kld from cells where context = 16384"
  nybble results query "select category, avg(kld) from tokens group by all" --csv
  nybble results query "from imported"
  nybble results query --schema
"""


@click.command(epilog=_EXAMPLES)
@click.argument("sql", required=False)
@base_option
@click.option("--schema", "asked", is_flag=True, help="The views and their columns.")
@click.option("--json", "form", flag_value="json", help="A list of objects on stdout.")
@click.option("--csv", "form", flag_value="csv", help="Every column on stdout.")
@click.option("--markdown", "form", flag_value="markdown", help="Tables to paste on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def query(sql: str | None, base: Path, asked: bool, form: str | None, quiet: bool) -> int:
    """Print every KV setting in a result base, or the answer to SQL.

    SQL is one SELECT in DuckDB's dialect over the views cells (one setting of one model at one
    context; mean_kld, mean_kld_low, mean_kld_high and so on), runs, slices (of a cell, by
    category and position), tokens (one a scored token) and imported (other harnesses' numbers).
    It can read nothing else. Exit code 1 where a file of the base is damaged and was left out.
    """
    with console.BarProgress(quiet) as progress:
        opened = open_base(base, progress)
    with opened:
        if asked:
            _schema(opened, form)
        elif sql is None:
            _summary(opened, form)
        else:
            _answer(opened.query(sql), form)
        return report_damage(opened)


def report_damage(base: Base) -> int:
    """Name on stderr what was left out; the exit code."""
    from nybble.report import format as fmt

    for found in base.damaged:
        line = f"left out: {fmt.clean(found.path, 300)}: {fmt.clean(found.reason, 400)}"
        click.echo(line, err=True)
    return 1 if base.damaged else 0


def _answer(answer: Table, form: str | None) -> None:
    from nybble.report import query_table as table

    if form == "json":
        click.echo(json.dumps(table.records(answer), indent=1))
    elif form:
        text = table.csv_text(answer) if form == "csv" else table.markdown(answer)
        click.echo(text.rstrip("\n"))
    elif answer.columns == ("explain_key", "explain_value"):  # a drawing
        click.echo("\n".join(str(row[1]) for row in answer.rows))
    else:
        console.out().print(table.rich_table(answer))


def _schema(base: Base, form: str | None) -> None:
    views = base.schema()
    if form:
        lines: list[tuple[str, ...]] = [(v.name, *column) for v in views for column in v.columns]
        _answer(Table(("view", "column", "type"), lines), form)
        return
    for view in views:
        click.echo(f"{view.name}: {view.meaning}")
        for name, kind in view.columns:
            click.echo(f"  {name} {kind.lower()}")


def _summary(base: Base, form: str | None) -> None:
    from nybble.report import cells_table as table

    if form:
        cells = base.candidates()
        if form == "json":
            click.echo(json.dumps([asdict(cell) for cell in cells], indent=1))
        else:
            text = table.csv_text(cells) if form == "csv" else table.markdown(cells)
            click.echo(text.rstrip("\n"))
        return
    cells, n = base.candidates(_MOST), base.n_candidates
    if cells:
        out = console.out()
        out.print(table.rich_table(cells))
        for note in table.notes(cells):
            out.print(note, markup=False, highlight=False)
    more = {
        f"{len(cells)} of {n:,} shown; --csv or --json for all": n > len(cells),
        "no measurements in this base; nybble measure MODEL --out FOLDER in it adds one": not n,
        f'{base.n_imported:,} numbers of other harnesses: nybble results query "from imported"':
            base.n_imported,
    }  # fmt: skip
    for line in (line for line, told in more.items() if told):
        click.echo(line, err=True)
